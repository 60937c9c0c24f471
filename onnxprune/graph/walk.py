"""One walk through the graph, in order: the rule of every node tells how the channels flow through it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import defs

import onnxprune.graph.rules  # noqa: F401  (registers every operator)
from onnxprune.graph import sizes
from onnxprune.graph.facts import STAND_INS
from onnxprune.graph.labels import Flow, LabelledSlot, operator
from onnxprune.graph.structure import Graph
from onnxprune.network import Ints


def walk(graph: Graph, *, through_norms: bool = False) -> Flow:
    """Apply the rule of every node. An operator without a rule pins what it reads: safe by default."""
    flow = Flow(graph, through_norms=through_norms)
    for index, node in enumerate(graph.nodes):
        if node.output and all(name in graph.constants for name in node.output if name):
            continue
        if not sizes.follow(flow, index):
            _apply(flow, index)
    _share(flow)
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
    if found is not None and not missing and (found.blind or all(o in graph.shapes for o in node.output[:1] if o)):
        found.flow(flow, index)
        return
    why = f"operator {node.op_type} has no rule" if found is None else _without_shape(node, missing)
    flow.hold(index, f"{why} (node {graph.label(index)!r})")


def _without_shape(node: onnx.NodeProto, missing: Sequence[str]) -> str:
    """Why a rule could not be asked; whoever wrote one for an operator that ONNX does not know is told what it lacks."""
    why = f"the shape of {[*missing, *node.output[:1], 'it'][0]!r} is not known"
    domain = "" if node.domain == "ai.onnx" else node.domain
    if missing or defs.has(node.op_type, domain) or (domain, node.op_type) in STAND_INS:
        return why
    return f"{why}: ONNX does not know operator {node.op_type}, so that its rule needs a shape="


def _share(flow: Flow) -> None:
    """Weights that several layers read (siamese branches, ALBERT's layers) stay one: their readers lose the same channels.

    Not so what only follows: exporters merge equal biases by accident, and a copy of one costs nothing. Unless they read it
    through one DequantizeLinear.
    """
    graph = flow.graph
    axes: dict[tuple[str, int], dict[tuple[int, int], Ints]] = {}
    for slot in flow.slots:
        if slot.role in ("makes", "reads") or _behind_one(graph, slot):
            axes.setdefault((slot.parameter, slot.axis), {})[slot.node, slot.input] = slot.labels
    for (parameter, _), found in axes.items():
        users = graph.end_users(parameter)
        if len(users) < 2:
            continue
        first = next(iter(found.values()))
        for labels in found.values():
            flow.tie(first, labels)
        for user in [u for u in users if u not in found]:
            flow.pin(first, parameter, f"{graph.label(user[0])!r} shares this weight and needs all of it")


def _behind_one(graph: Graph, slot: LabelledSlot) -> bool:
    """Whether the node reads the parameter through a DequantizeLinear that others read too."""
    node, position = graph.place(slot.node, slot.input, slot.parameter)
    return (node, position) != (slot.node, slot.input) and len(graph.end_users(graph.nodes[node].output[0])) > 1
