"""Parts of a model that run by themselves: from tensors that are at hand to tensors that are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx
from onnx import helper

from onnxprune.graph.structure import Graph

VARIABLE = onnx.TensorProto.UNDEFINED


@dataclass(frozen=True)
class Segment:
    """Nodes of a model with the tensors they take from outside and the ones they are asked for."""

    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def segment(graph: Graph, at_hand: Iterable[str], wanted: Sequence[str]) -> Segment:
    """The nodes needed to compute `wanted` from what is at hand; constants are computed again in every segment."""
    known = set(at_hand)
    nodes: set[int] = set()
    inputs: list[str] = []
    stack = [name for name in wanted if name not in known]
    seen = set(stack)
    while stack:
        name = stack.pop()
        index = graph.producer.get(name)
        if index is None or index in nodes:
            continue
        nodes.add(index)
        for source in reads(graph, index):
            if source in known:
                inputs.append(source)
            elif source not in seen:
                seen.add(source)
                stack.append(source)
    return Segment(tuple(sorted(nodes)), tuple(dict.fromkeys(inputs)), tuple(n for n in wanted if n not in known))


def reads(graph: Graph, index: int) -> list[str]:
    """What a node reads, its subgraphs' captures included."""
    node = graph.nodes[index]
    captured = [
        n for a in node.attribute if a.type == onnx.AttributeProto.GRAPH for i in a.g.node for n in i.input if n in graph.captured
    ]
    return [n for n in [*node.input, *captured] if n]


class Parts:
    """Cuts segments out of one model. The model may be another than the graph's, as long as its nodes pair off with the graph's.

    weights: another model whose initializers it uses besides its own.
    """

    def __init__(self, graph: Graph, model: onnx.ModelProto, weights: onnx.ModelProto | None = None) -> None:
        self._graph, self._model, self._weights = graph, model, weights

    @cached_property
    def _stored(self) -> Mapping[str, onnx.TensorProto]:
        borrowed = self._weights.graph.initializer if self._weights else ()
        return {t.name: t for t in (*borrowed, *self._model.graph.initializer)}

    def refresh(self) -> None:
        """Call after initializers were added to the model."""
        self.__dict__.pop("_stored", None)

    def model(self, part: Segment) -> onnx.ModelProto:
        """The segment as a model of its own, with only its own weights."""
        source = self._model
        model = onnx.ModelProto(ir_version=source.ir_version, opset_import=source.opset_import, functions=source.functions)
        model.graph.name = "segment"
        names: dict[str, None] = {}
        for index in part.nodes:
            node = source.graph.node[index]
            model.graph.node.append(node)
            names |= dict.fromkeys([*node.input, *reads(self._graph, index)])
        for name in names:
            if name in self._stored and name not in part.inputs:
                model.graph.initializer.append(self._stored[name])
                if source.ir_version < 4:
                    tensor = self._stored[name]
                    model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
        for name in part.inputs:
            model.graph.input.append(helper.make_tensor_value_info(name, self._graph.types[name], None))
        for name in part.outputs:
            model.graph.output.append(helper.make_tensor_value_info(name, self._graph.types.get(name, VARIABLE), None))
        return model
