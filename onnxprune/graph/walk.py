"""One walk through the graph, in order: the rule of every node tells how the channels flow through it."""

from __future__ import annotations

import onnxprune.graph.rules  # noqa: F401  (registers every operator)
from onnxprune.graph import sizes
from onnxprune.graph.labels import Flow, operator
from onnxprune.graph.structure import Graph


def walk(graph: Graph) -> Flow:
    """Apply the rule of every node. An operator without a rule pins what it reads: safe by default."""
    flow = Flow(graph)
    for index, node in enumerate(graph.nodes):
        if node.output and all(name in graph.constants for name in node.output if name):
            continue
        if not sizes.follow(flow, index):
            _apply(flow, index)
    for name in graph.captured:
        flow.pin_all(name, "read inside a subgraph")
        sizes.pin_counts(flow, name, "read inside a subgraph")
    for name in graph.outputs:
        flow.pin_all(name, f"graph output {name!r}")
        sizes.pin_counts(flow, name, f"graph output {name!r}")
    return flow


def _apply(flow: Flow, index: int) -> None:
    graph, node = flow.graph, flow.graph.nodes[index]
    found = operator(node.domain, node.op_type)
    missing = [n for n in node.input if n and n not in graph.shapes]
    if found is not None and not missing and (found.blind or all(o in graph.shapes for o in node.output[:1])):
        found.flow(flow, index)
        return
    unknown = [*missing, *node.output[:1], "it"][0]
    why = f"operator {node.op_type} has no rule" if found is None else f"the shape of {unknown!r} is not known"
    for name in node.input:
        flow.pin_all(name, f"{why} (node {graph.label(index)!r})")
