"""What stands right behind a layer: its bias when that is an Add of its own, batch norm, the activation, the residual sum."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from onnxprune.graph.structure import Graph
from onnxprune.network import Layer, Residual

ACTIVATIONS = {
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Sigmoid",
    "HardSigmoid",
    "Tanh",
    "Softplus",
    "Elu",
    "HardSwish",
    "Gelu",
    "Clip",
    "Abs",
}


def surroundings(graph: Graph, layer: Layer, quantised: Container[str]) -> Layer:
    """The layer with bias, batch_norm, activation, residual, shared, quantised and widen_bias filled in.

    quantised: the parameters that hold integers.
    """
    layer = _separate_bias(graph, layer)
    bare = layer.op in ("Conv", "ConvTranspose", "Gemm") and not graph.input(layer.node, 2)
    tensor = layer.output
    user = graph.sole_user(tensor)
    batch_norm = user if user is not None and graph.nodes[user].op_type == "BatchNormalization" else None
    if batch_norm is not None:
        tensor = graph.nodes[batch_norm].output[0]
    return replace(
        layer,
        shared=len({node for node, _ in graph.end_users(layer.weight)}) > 1,
        quantised=layer.weight in quantised,
        widen_bias=layer.bias is None and bare and layer.weight not in quantised,
        batch_norm=batch_norm,
        activation=_activation(graph, tensor),
        residual=_residual(graph, tensor, batch_norm),
    )


def _separate_bias(graph: Graph, layer: Layer) -> Layer:
    """MatMul has no bias of its own: an Add of a constant vector that alone reads its output is one."""
    user = graph.sole_user(layer.output)
    if layer.op != "MatMul" or layer.side == "left" or user is None or graph.nodes[user].op_type != "Add":
        return layer
    other = next((n for n in graph.nodes[user].input if n != layer.output), "")
    stored = graph.stored(other) if other in graph.constants else None
    if stored is None or graph.shapes[other][-1:] != layer.output_shape[-1:] or any(n != 1 for n in graph.shapes[other][:-1]):
        return layer
    return replace(layer, bias=stored.parameter, bias_node=user, output=graph.nodes[user].output[0])


def _activation(graph: Graph, tensor: str) -> tuple[str, tuple[float, ...]]:
    """The function between a layer and what reads it; x * sigmoid(x), written as two nodes, counts as Silu."""
    users = [graph.nodes[node] for node, _ in graph.users.get(tensor, ())]
    if sorted(n.op_type for n in users) == ["Mul", "Sigmoid"] and set(users[0].output) | set(users[1].output) >= set(
        users[0].input
    ) - {tensor}:
        return "Silu", ()
    if len(users) != 1 or users[0].op_type not in ACTIVATIONS:
        return "identity", ()
    index = graph.users[tensor][0][0]
    match users[0].op_type:
        case "Clip":
            low, high = (_bound(graph, index, i, name, d) for i, name, d in ((1, "min", float("-inf")), (2, "max", float("inf"))))
            return "Clip", (low, high)
        case "LeakyRelu":
            return "LeakyRelu", (float(graph.attribute(index, "alpha", 0.01)),)
        case "PRelu":
            slope = graph.values.get(graph.input(index, 1))
            return "PRelu", (float(abs(slope).max()),) if slope is not None else (1.0,)
        case "Elu":
            return "Elu", (float(graph.attribute(index, "alpha", 1.0)),)
        case "HardSigmoid":
            return "HardSigmoid", (float(graph.attribute(index, "alpha", 0.2)), float(graph.attribute(index, "beta", 0.5)))
        case name:
            return name, ()


def _bound(graph: Graph, index: int, position: int, name: str, default: float) -> float:
    """A limit of Clip: an attribute up to opset 6, an input since opset 11."""
    value = graph.values.get(graph.input(index, position))
    return float(value) if value is not None else float(graph.attribute(index, name, default))


def _residual(graph: Graph, tensor: str, batch_norm: int | None) -> Residual | None:
    """The sum in which the output (after batch norm) ends, if it goes nowhere else."""
    user = graph.sole_user(tensor)
    if user is None or graph.nodes[user].op_type not in ("Add", "Sum") or len(graph.nodes[user].input) != 2:
        return None
    other = next((n for n in graph.nodes[user].input if n != tensor), tensor)
    total = graph.nodes[user].output[0]
    if other == tensor or other in graph.constants or graph.shapes.get(other) != graph.shapes.get(total):
        return None
    return Residual(total, other, batch_norm)
