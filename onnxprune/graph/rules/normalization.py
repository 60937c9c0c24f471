"""Normalisations. BatchNormalization treats each channel by itself; statistics across channels pin them (graph.norms)."""

from __future__ import annotations

import numpy as np

from onnxprune.graph import norms
from onnxprune.graph.labels import Flow, Resizer, rule
from onnxprune.network import Norm

OVER = "pinned along the axes it normalises, unless --through-norms; parameters follow"


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
    labels = flow.labels(node.input[0])
    if 1 in labels and flow.graph.attribute(index, "size", 1) > 1:
        flow.pin(labels[1], node.input[0], f"{flow.graph.label(index)!r} divides each channel by its neighbours (LRN)")
    flow.give(node.output[0], labels)


@rule("Softmax", "LogSoftmax", "Hardmax", note="pinned along the axis it normalises")
def softmax(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    labels = flow.labels(node.input[0])
    rank = len(graph.shapes[node.input[0]])
    axis = graph.attribute(index, "axis", -1 if graph.opset >= 13 else 1) % rank
    # Before opset 13 everything from `axis` on was flattened into one row.
    for touched in [axis] if graph.opset >= 13 else range(axis, rank):
        if touched in labels:
            flow.pin(labels[touched], node.input[0], f"{graph.label(index)!r} normalises over these channels ({node.op_type})")
    flow.give(node.output[0], labels)


@rule("LayerNormalization", note=OVER)
def layer_normalization(flow: Flow, index: int) -> None:
    _over_the_last_axes(flow, index, Norm(index, (0,), (), "mean", scale=(index, 1), attribute=True))


@rule("RMSNormalization", "SimplifiedLayerNormalization", note=OVER)
def rms_normalization(flow: Flow, index: int) -> None:
    _over_the_last_axes(flow, index, Norm(index, (0,), (), "zero", scale=(index, 1), attribute=True))


def _over_the_last_axes(flow: Flow, index: int, norm: Norm) -> None:
    graph = flow.graph
    axis = int(graph.attribute(index, "axis", -1)) % len(graph.shapes[graph.nodes[index].input[0]])
    norms.last_axes(flow, index, axis, norm, parameters=(1, 2))


@rule("InstanceNormalization", note="scale and bias follow; along positions as LayerNormalization")
def instance_normalization(flow: Flow, index: int) -> None:
    """Each channel by itself, over its positions. Behind a Reshape that lays groups along the channel axis it is a group norm."""
    graph, node = flow.graph, flow.graph.nodes[index]
    labels, rank = flow.labels(node.input[0]), len(graph.shapes[node.input[0]])
    norm = Norm(index, (0,), tuple(range(2, rank)), "mean", scale=(index, 1), attribute=True)
    norms.take(flow, [own for axis, own in labels.items() if axis >= 2], norm)
    if 1 in labels:
        for position in (1, 2):
            norms.follow_along(flow, index, position, 0, labels[1])
    flow.give(node.output[0], labels)


def _resize_groups(edit: Resizer, index: int) -> None:
    """As many groups as still have a channel."""
    graph = edit.graph
    tensor = graph.nodes[index].input[0]
    kept, groups = edit.kept(tensor, 1), graph.attribute(index, "num_groups", 1)
    if kept is not None:
        left = len(np.unique(kept // (graph.shapes[tensor][1] // groups)))
        if left != groups:
            edit.set_attribute(index, "num_groups", left)


@rule(
    "GroupNormalization",
    resize=_resize_groups,
    note="whole groups go, parameters follow; within the groups as LayerNormalization",
)
def group_normalization(flow: Flow, index: int) -> None:
    graph, node = flow.graph, flow.graph.nodes[index]
    labels, shape = flow.labels(node.input[0]), graph.shapes[node.input[0]]
    count = graph.attribute(index, "num_groups", 1)
    norm = Norm(index, (0,), tuple(range(1, len(shape))), "mean", count, scale=(index, 1), attribute=True)
    over = [own for axis, own in labels.items() if axis >= 2]
    groups = None
    if 1 in labels:
        groups, within = flow.split(labels[1].reshape(count, -1))
        over += [] if within is None else [within]
    norms.take(flow, over, norm)
    for position in (1, 2):
        if 1 in labels and graph.shapes[node.input[position]] == shape[1:2]:
            norms.follow_along(flow, index, position, 0, labels[1])
        elif groups is not None:  # before opset 21: a number per group
            norms.follow_along(flow, index, position, 0, groups)
    flow.give(node.output[0], labels)


@rule("MeanVarianceNormalization", note="pinned along the axes it normalises")
def mean_variance_normalization(flow: Flow, index: int) -> None:
    graph, node = flow.graph, flow.graph.nodes[index]
    labels, rank = flow.labels(node.input[0]), len(graph.shapes[node.input[0]])
    axes = tuple(sorted(int(a) % rank for a in graph.attribute(index, "axes") or (0, 2, 3)))
    norms.take(flow, [own for axis, own in labels.items() if axis in axes], Norm(index, (0,), axes, "mean"), mends=False)
    flow.give(node.output[0], labels)


@rule("LpNormalization", note="pinned along the axis it normalises, unless --through-norms")
def lp_normalization(flow: Flow, index: int) -> None:
    graph, node = flow.graph, flow.graph.nodes[index]
    labels, rank = flow.labels(node.input[0]), len(graph.shapes[node.input[0]])
    axis = int(graph.attribute(index, "axis", -1)) % rank
    # A sum of powers forgets what is zero, and no divisor counts the channels: nothing to mend.
    norms.take(flow, [labels[axis]] if axis in labels else [], Norm(index, (0,), (axis,), "zero"))
    flow.give(node.output[0], labels)
