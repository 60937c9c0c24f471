"""Operators that sample or lay out positions: channels go through along their own axis, the axes of positions are pinned."""

from __future__ import annotations

from onnxprune.graph.labels import Flow, rule
from onnxprune.network import Ints


def _pass(flow: Flow, index: int, axes: set[int], why: str) -> None:
    """Labels of the first input along `axes` are those of the output; all others are pinned."""
    graph = flow.graph
    node = graph.nodes[index]
    found: dict[int, Ints] = {}
    for axis, labels in flow.labels(node.input[0]).items():
        if axis in axes:
            found[axis] = labels
        else:
            flow.pin(labels, node.input[0], f"{graph.label(index)!r} {why}")
    for name in node.input[1:]:
        flow.pin_all(name, f"{graph.label(index)!r} {why}")
    flow.give(node.output[0], found)


@rule("GridSample", "MaxRoiPool", "RoiAlign", note="along the channels; not along the positions they sample")
def sample(flow: Flow, index: int) -> None:
    _pass(flow, index, {1}, "samples positions along these channels")


@rule("MaxUnpool", note="pinned: its indices count over all channels")
def max_unpool(flow: Flow, index: int) -> None:
    _pass(flow, index, set(), "puts values back by indices that count over all channels")


@rule("DFT", note="not along the axis it transforms")
def dft(flow: Flow, index: int) -> None:
    """The axis is an input since opset 20, an attribute before; the last axis holds real and imaginary parts."""
    graph = flow.graph
    name = graph.nodes[index].input[0]
    rank = len(graph.shapes[name])
    axis = graph.attribute(index, "axis", -2 if graph.opset >= 20 else 1)
    given = graph.input(index, 2)
    if given:
        known = graph.values.get(given)
        axis = None if known is None else int(known.reshape(-1)[0])
    free = set() if axis is None else set(range(rank - 1)) - {axis % rank}
    _pass(flow, index, free, "transforms these channels")


@rule("CenterCropPad", note="not along the axes it crops or pads")
def center_crop_pad(flow: Flow, index: int) -> None:
    graph = flow.graph
    rank = len(graph.shapes[graph.nodes[index].input[0]])
    touched = {int(a) % rank for a in graph.attribute(index, "axes") or range(rank)}
    _pass(flow, index, set(range(rank)) - touched, "crops or pads these channels")


@rule("Col2Im", note="along the channels; the positions of a block are pinned")
def col2im(flow: Flow, index: int) -> None:
    """(N, channels * block, positions) -> (N, channels, height, width)"""
    graph = flow.graph
    node = graph.nodes[index]
    labels = dict(flow.labels(node.input[0]))
    own = labels.pop(1, None)
    found: dict[int, Ints] = {}
    if own is not None:
        channels = graph.shapes[node.output[0]][1]
        kept, block = flow.split(own.reshape(channels, -1))
        if block is not None:
            flow.pin(block, node.input[0], f"{graph.label(index)!r} keeps the positions of its blocks")
        if kept is not None:
            found[1] = kept
    for rest in labels.values():
        flow.pin(rest, node.input[0], f"{graph.label(index)!r} lays out positions along these channels")
    flow.give(node.output[0], found)


@rule("DeformConv", note="makes and reads channels; groups and groups of offsets: pinned")
def deform_conv(flow: Flow, index: int) -> None:
    """X, W, offset, bias, mask: a convolution that samples where the offsets say."""
    graph = flow.graph
    node = graph.nodes[index]
    x, w, why = node.input[0], node.input[1], f"{graph.label(index)!r} samples positions along these channels"
    labels = dict(flow.labels(x))
    read = labels.pop(1, None)
    for rest in labels.values():
        flow.pin(rest, x, why)
    for position in (2, 4):
        flow.pin_all(graph.input(index, position), why)
    made = flow.fresh(graph.shapes[node.output[0]][1])
    plain = graph.attribute(index, "group", 1) == graph.attribute(index, "offset_group", 1) == 1
    if not plain:
        for found in (read, made):
            if found is not None:
                flow.pin(found, x, f"{graph.label(index)!r} keeps its groups")
    if w in graph.constants:
        if read is not None and plain:
            flow.parameter(index, 1, 1, "reads", read)
        flow.parameter(index, 1, 0, "makes", made)
    else:
        flow.pin_all(w, f"the weights of {graph.label(index)!r} are computed at run time")
        for found in (read, made):
            if found is not None:
                flow.pin(found, w, f"the weights of {graph.label(index)!r} are computed at run time")
    bias = graph.input(index, 3)
    if bias in graph.constants and bias:
        flow.parameter(index, 3, 0, "follows", made)
    elif bias:
        flow.pin(made, bias, f"added to {bias!r}, which is computed at run time")
        flow.pin_all(bias, why)
    flow.give(node.output[0], {1: made})
