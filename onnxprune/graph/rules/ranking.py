"""TopK and OneHot: channels go through along the axes that are not ranked, and around the one that is added."""

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
