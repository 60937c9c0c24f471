"""Put two thin layers in the place of one: two MatMuls, MatMul and Gemm, or a convolution of few filters and one of size 1.

Three models are made from the same plan:

    factorised    the result
    dense_twin    the original's nodes with the product of both factors as weights: same function, nothing made thin
    whole_twin    the original with an Identity where the first of two layers stands, so that its nodes pair off with the result's
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from onnxprune.contract import Factors
from onnxprune.graph import surgeon
from onnxprune.graph.structure import Graph
from onnxprune.matrix import from_matrix
from onnxprune.network import Layer
from onnxprune.rewrite.cut import as_read, light_copy

# Marks what is new; `save` finds the original's data file by what stands in front of it.
FIRST, SECOND, DENSE = "@first", "@second", "@dense"


@dataclass(frozen=True)
class Split:
    """The layers that read one weight, and the two matrices that take its place."""

    layers: tuple[Layer, ...]
    factors: Factors


def activation_input(layer: Layer) -> int:
    """At which input the layer's node reads its activation; the weight stands at the other."""
    return 1 if layer.side == "left" else 0


def splittable(graph: Graph, layer: Layer) -> str:
    """Why a layer cannot become two; empty where it can."""
    node = graph.nodes[layer.node]
    if layer.op not in ("Conv", "Gemm", "MatMul"):
        return "its matrices lie inside its node" if layer.op != "ConvTranspose" else "it is a transposed convolution"
    if node.op_type != layer.op or node.domain not in ("", "ai.onnx"):
        return f"{node.op_type} does not come apart"
    return "its groups are thin already" if layer.groups > 1 else ""


def free_bias(graph: Graph, layer: Layer) -> bool:
    """Whether the layer has a bias of its own length, or room for one."""
    if not layer.bias_scale:
        return False
    if layer.bias is None:
        return layer.widen_bias
    return graph.array(layer.bias).size == _out(graph, layer)


def _out(graph: Graph, layer: Layer) -> int:
    axis = 1 if layer.op == "Conv" else len(layer.output_shape) - (2 if layer.side == "left" else 1)
    return layer.output_shape[axis]


def factorised(graph: Graph, splits: Sequence[Split]) -> onnx.ModelProto:
    """A new model; `graph.model` is left as it is. What nothing reads any more is still there (rewrite.finish)."""
    model = light_copy(graph.model, lambda _: False)
    taken = _taken(graph)
    _shift_biases(model, graph, splits, taken)
    made = _Stock(model, graph, taken)
    pairs: dict[int, list[onnx.NodeProto]] = {}
    for split in splits:
        for layer in split.layers:
            pairs[layer.node] = _pair(model.graph.node[layer.node], graph, layer, split.factors, made)
    _replace(model, pairs)
    return model


def dense_twin(graph: Graph, splits: Sequence[Split]) -> onnx.ModelProto:
    model = light_copy(graph.model, lambda _: False)
    taken = _taken(graph)
    _shift_biases(model, graph, splits, taken)
    made = _Stock(model, graph, taken)
    for split in splits:
        for layer in split.layers:
            name = graph.input(layer.node, 1 - activation_input(layer))

            def value(layer: Layer = layer, split: Split = split, name: str = name) -> NDArray[Any]:
                stored = from_matrix(layer, split.factors.matrix, layer.weight_shape).cpu().numpy()
                return as_read(graph, name, layer.weight, stored)

            model.graph.node[layer.node].input[1 - activation_input(layer)] = made.weight(layer, DENSE, name, value)
    return model


def whole_twin(graph: Graph, result: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes alone, and the weights that the result's nodes do not lead to; all others are those of `graph.model`.

    What a layer read through other nodes, or out of a Constant, is stored plainly here: the result has no such nodes to pair
    with.
    """
    model = light_copy(graph.model)
    del model.graph.initializer[:], model.graph.node[:]
    stored = {t.name for t in graph.model.graph.initializer}
    held = {t.name for t in result.graph.initializer}
    originals = {o: node for node in graph.nodes for o in node.output if o}
    middle = {node.output[0] for node in result.graph.node} - originals.keys()
    for node in result.graph.node:
        if node.output[0] not in originals:
            read = next(n for n in node.input if n not in held)
            model.graph.node.append(helper.make_node("Identity", [read], [node.output[0]], name=node.name))
            continue
        own = model.graph.node.add()
        own.CopyFrom(originals[node.output[0]])
        for position, (old, new) in enumerate(zip(own.input, node.input, strict=False)):
            if new in middle:
                own.input[position] = new  # what the first of two layers gives
            elif old and old != new and old not in stored:
                found = graph.stored(old)
                assert found is not None, old
                value = as_read(graph, old, found.parameter, graph.array(found.parameter))
                model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), new))
                own.input[position] = new
    return model


def _taken(graph: Graph) -> set[str]:
    return {*graph.parameters, *graph.producer, *graph.inputs}


@dataclass
class _Stock:
    """New weights of a model; those that several layers share are made once."""

    model: onnx.ModelProto
    graph: Graph
    taken: set[str]

    def __post_init__(self) -> None:
        self._names: dict[tuple[object, ...], str] = {}

    def weight(self, layer: Layer, mark: str, like: str, value: Callable[[], NDArray[Any]], *form: object) -> str:
        """The name of an initializer with this value, of the type of tensor `like`."""
        key = (layer.weight, mark, layer.op, layer.side, layer.transposed, self.graph.types[like], layer.scale, *form)
        if key not in self._names:
            self._names[key] = self.add(f"{layer.weight}{mark}", value(), self.graph.types[like])
        return self._names[key]

    def add(self, name: str, value: NDArray[Any], element: int) -> str:
        name = self.name(name)
        kind = helper.tensor_dtype_to_np_dtype(element)
        surgeon.add_initializer(self.model, numpy_helper.from_array(np.ascontiguousarray(value.astype(kind)), name))
        return name

    def name(self, wanted: str) -> str:
        """Free, and with its mark at the end."""
        stem, at, mark = wanted.rpartition("@")
        found = wanted
        number = 2
        while found in self.taken:
            found = f"{stem}#{number}{at}{mark}"
            number += 1
        self.taken.add(found)
        return found


def _pair(node: onnx.NodeProto, graph: Graph, layer: Layer, factors: Factors, made: _Stock) -> list[onnx.NodeProto]:
    """The two nodes; the second keeps the name of the one."""
    at = activation_input(layer)
    read = node.input[1 - at]
    middle = made.name(f"{graph.label(layer.node)}{FIRST}")
    turned = layer.side == "right" and not (layer.op == "Gemm" and graph.attribute(layer.node, "transB", 0))
    first, second = _numbers(factors.first), _numbers(factors.second / layer.scale)
    ahead, behind = onnx.NodeProto(), onnx.NodeProto()
    behind.CopyFrom(node)
    behind.input[at] = middle
    if layer.op == "Conv":
        ahead.CopyFrom(node)
        del ahead.input[2:]
        ahead.doc_string = ""
        spatial = layer.weight_shape[2:]
        filters = first.reshape(len(first), *layer.weight_shape[1:])
        ahead.input[1] = made.weight(layer, FIRST, read, lambda: filters)
        points = second.reshape(*second.shape, *(1 for _ in spatial))
        behind.input[1] = made.weight(layer, SECOND, read, lambda: points)
        del behind.attribute[:]
        behind.attribute.append(helper.make_attribute("kernel_shape", [1] * len(spatial)))
    else:
        ahead = helper.make_node("MatMul", [node.input[at]] * 2, [middle])
        ahead.input[1 - at] = made.weight(layer, FIRST, read, lambda: first.T if layer.side == "right" else first)
        behind.input[1 - at] = made.weight(layer, SECOND, read, lambda: second.T if turned else second, turned)
    ahead.name = middle
    ahead.output[0] = middle
    return [ahead, behind]


def _numbers(value: Tensor) -> NDArray[Any]:
    return np.asarray(value.cpu().numpy())


def _shift_biases(model: onnx.ModelProto, graph: Graph, splits: Iterable[Split], taken: set[str]) -> None:
    """New biases where the plan shifts them: each layer gets its own, for others may read the old one."""
    made = _Stock(model, graph, taken)
    for split in splits:
        if split.factors.shift is None:
            continue
        for layer in split.layers:
            shift = _numbers(split.factors.shift / layer.bias_scale)
            node = layer.node if layer.bias_node is None else layer.bias_node
            inputs = model.graph.node[node].input
            if layer.bias is None:
                name = made.add(f"{layer.weight}.bias@{layer.name}", shift, graph.types[layer.output])
                del inputs[2:]
                inputs.append(name)
                continue
            place = 2 if node == layer.node else next(i for i, n in enumerate(inputs) if n in graph.constants)
            read = inputs[place]
            old = as_read(graph, read, layer.bias, graph.array(layer.bias)).astype(np.float64)
            inputs[place] = made.add(f"{layer.bias}@{layer.name}", old + shift.reshape(old.shape), graph.types[read])


def _replace(model: onnx.ModelProto, pairs: Mapping[int, Sequence[onnx.NodeProto]]) -> None:
    """Each node of `pairs` by the nodes that take its place."""
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    for index, node in enumerate(nodes):
        model.graph.node.extend(pairs.get(index, [node]))


def weight_bytes(graph: Graph, layer: Layer) -> int:
    """Bytes of one number of the two new weights: of the type in which the layer reads the old one."""
    element = graph.types[graph.input(layer.node, 1 - activation_input(layer))]
    return int(helper.tensor_dtype_to_np_dtype(element).itemsize)
