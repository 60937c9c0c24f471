"""Normalisations. BatchNormalization treats each channel by itself; those that take statistics across channels pin them."""

from __future__ import annotations

from onnxprune.graph.labels import Flow, rule


@rule("BatchNormalization", note="scale, bias, mean and variance follow; training mode: pinned")
def batch_normalization(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    labels = flow.labels(node.input[0])
    if graph.attribute(index, "training_mode", 0) or len([o for o in node.output if o]) > 1:
        flow.pin_all(node.input[0], f"{graph.label(index)!r} computes its statistics at run time")
        return
    if 1 in labels:
        for position in range(1, 5):
            if node.input[position] in graph.constants:
                flow.parameter(index, position, 0, "follows", labels[1])
            else:
                flow.pin(labels[1], node.input[position], f"parameter {node.input[position]!r} is computed at run time")
    flow.give(node.output[0], labels)


@rule("LRN", note="pinned: each channel is divided by its neighbours")
def lrn(flow: Flow, index: int) -> None:
    node = flow.graph.nodes[index]
    labels = dict(flow.labels(node.input[0]))
    if 1 in labels and flow.graph.attribute(index, "size", 1) > 1:
        flow.pin(labels.pop(1), node.input[0], f"{flow.graph.label(index)!r} divides each channel by its neighbours (LRN)")
    flow.give(node.output[0], labels)


@rule("Softmax", "LogSoftmax", "Hardmax", note="pinned along the axis it normalises")
def softmax(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    labels = dict(flow.labels(node.input[0]))
    rank = len(graph.shapes[node.input[0]])
    axis = graph.attribute(index, "axis", -1 if graph.opset >= 13 else 1) % rank
    # Before opset 13 everything from `axis` on was flattened into one row.
    for touched in [axis] if graph.opset >= 13 else range(axis, rank):
        if touched in labels:
            flow.pin(
                labels.pop(touched), node.input[0], f"{graph.label(index)!r} normalises over these channels ({node.op_type})"
            )
    flow.give(node.output[0], labels)
