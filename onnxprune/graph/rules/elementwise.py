"""Operators that work position by position, with numpy broadcasting: channels go straight through, two operands are tied."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from onnxprune.graph.labels import Flow, rule
from onnxprune.network import Ints

UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Elu",
    "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish",
    "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign",
    "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
BROADCASTING = (
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip


@rule(*UNARY)
def unary(flow: Flow, index: int) -> None:
    node = flow.graph.nodes[index]
    flow.give(node.output[0], flow.labels(node.input[0]))


@rule("Dropout", note="the mask follows too")
def dropout(flow: Flow, index: int) -> None:
    node = flow.graph.nodes[index]
    for output in node.output:
        flow.give(output, flow.labels(node.input[0]))


@rule("PRelu", note="a slope per channel follows")
def prelu(flow: Flow, index: int) -> None:
    broadcast(flow, index)


@rule(*BROADCASTING, note="per-channel constants follow, two activations are tied")
def broadcasting(flow: Flow, index: int) -> None:
    broadcast(flow, index)


def broadcast(flow: Flow, index: int, positions: Sequence[int] | None = None) -> None:
    """positions: of the inputs that are combined, all without."""
    graph = flow.graph
    node = graph.nodes[index]
    output = graph.shapes[node.output[0]]
    found: dict[int, Ints] = {}
    for axis, length in enumerate(output):
        found |= _one_axis(flow, index, range(len(node.input)) if positions is None else positions, axis, length)
    flow.give(node.output[0], found)


def _one_axis(flow: Flow, index: int, positions: Sequence[int], axis: int, length: int) -> dict[int, Ints]:
    """Labels of one output axis: operands that span it are tied; one that is broadcast over it may not lose its only channel."""
    graph = flow.graph
    node = graph.nodes[index]
    rank = len(graph.shapes[node.output[0]])
    spans: list[tuple[int, str, int]] = []
    labelled: Ints | None = None
    for position in positions:
        name = node.input[position]
        own = axis - rank + len(graph.shapes[name])
        if own < 0:
            continue
        labels = flow.labels(name).get(own)
        if graph.shapes[name][own] != length:
            if labels is not None:
                flow.pin(labels, name, f"broadcast over the channels of another operand of {graph.label(index)!r}")
            continue
        spans.append((position, name, own))
        labelled = labels if labelled is None else labelled
    alone = bool(spans) and all(name in graph.constants for _, name, _ in spans)
    if labelled is None and length > 1 and (alone or _scaled_constant(flow, index)):
        labelled = flow.fresh(length)  # a constant that an activation is broadcast over brings the axis in
    if labelled is None:
        return {}
    for position, name, own in spans:
        labels = flow.labels(name).get(own)
        if labels is not None:
            flow.tie(labelled, labels)
        elif name in graph.constants:
            if length > 1 or len(spans) == 1:
                flow.parameter(index, position, own, "follows", labelled)
        else:
            flow.pin(labelled, name, f"{graph.label(index)!r} combines it with {name!r}, which carries no channels")
    return {axis: np.asarray(labelled)}


def _scaled_constant(flow: Flow, index: int) -> bool:
    """A constant times a single number: the scales of quantised channels times that of their inputs, known at run time."""
    graph, node = flow.graph, flow.graph.nodes[index]
    moving = [name for name in node.input if name not in graph.constants]
    return node.op_type == "Mul" and len(moving) == 1 and prod(graph.shapes[moving[0]]) == 1
