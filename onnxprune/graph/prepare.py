"""A traced graph that is ready for the rules: sizes made plain, weights that the graph computes from constants folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from onnxprune.graph import surgeon
from onnxprune.graph.branches import take_branches
from onnxprune.graph.facts import FLOATS
from onnxprune.graph.simplify import simplify
from onnxprune.graph.structure import Graph, trace, trace_again

LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def prepare(model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]] | None = None) -> tuple[Graph, int]:
    """Trace `model`; weights that the graph computes from constants are folded first, in place. Also returns how many were."""
    graph = trace(model, sizes)
    while take_branches(graph):
        graph = trace(model, sizes)
    if simplify(graph):
        graph = trace_again(graph)
    computed = {
        name
        for node in graph.nodes
        if not all(o in graph.constants for o in node.output if o)
        for position, name in enumerate(node.input)
        if name in graph.constants and _to_fold(graph, node, position, name)
    }
    if not computed:
        return graph, 0
    folded = surgeon.fold(model, computed)
    return trace_again(graph), len(folded)


def _to_fold(graph: Graph, node: onnx.NodeProto, position: int, name: str) -> bool:
    """Whether a constant input can only be cut once it is a parameter: it is computed, or layer weights of another rank."""
    if name not in graph.producer or graph.types.get(name) not in FLOATS or _quantised(graph, name):
        return False
    stored = graph.stored(name)
    return stored is None or (node.op_type in LAYERS and position < 2 and None in stored.axes)


def _quantised(graph: Graph, name: str) -> bool:
    """Folding quantised weights would make a float model of a quantised one."""
    node = graph.nodes[graph.producer[name]] if name in graph.producer else None
    return node is not None and (node.op_type == "DequantizeLinear" or any(_quantised(graph, n) for n in node.input if n))
