"""Operators that pick values along one axis or spread them over a new one: channels along the others go through."""

from __future__ import annotations

from onnxprune.graph.labels import Flow, rule


@rule("TopK", note="not along the axis it ranks")
def top_k(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    labels = dict(flow.labels(node.input[0]))
    axis = graph.attribute(index, "axis", -1) % len(graph.shapes[node.input[0]])
    if axis in labels:
        flow.pin(labels.pop(axis), node.input[0], f"{graph.label(index)!r} ranks these channels")
    for output in node.output:
        flow.give(output, labels)


@rule("OneHot", note="along the axes of the indices")
def one_hot(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    axis = graph.attribute(index, "axis", -1) % len(graph.shapes[node.output[0]])
    for name in node.input[1:]:
        flow.pin_all(name, f"{graph.label(index)!r} spreads indices over these channels")
    labels = flow.labels(node.input[0])
    flow.give(node.output[0], {a + (a >= axis): found for a, found in labels.items()})


@rule("Compress", note="not along the axis it picks from")
def compress(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    labels = dict(flow.labels(node.input[0]))
    axis = graph.attribute(index, "axis")
    touched = set(labels) if axis is None else {axis % len(graph.shapes[node.input[0]])}
    for a in touched & set(labels):
        flow.pin(labels.pop(a), node.input[0], f"{graph.label(index)!r} picks among these channels")
    flow.pin_all(node.input[1], f"{graph.label(index)!r} picks by these channels")
    flow.give(node.output[0], labels)
