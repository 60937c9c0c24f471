"""Operators that lay the same data out along other axes: Reshape, Flatten, Squeeze, Unsqueeze, Transpose, DepthToSpace."""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.graph import sizes
from onnxprune.graph.labels import Flow, Resizer, rule
from onnxprune.network import Ints


@rule("Transpose")
def transpose(flow: Flow, index: int) -> None:
    node = flow.graph.nodes[index]
    rank = len(flow.graph.shapes[node.input[0]])
    order = flow.graph.attribute(index, "perm") or list(range(rank))[::-1]
    labels = flow.labels(node.input[0])
    flow.give(node.output[0], {i: labels[a] for i, a in enumerate(order) if a in labels})


def _resize_reshape(edit: Resizer, index: int) -> None:
    """A target that states the number of channels is stated anew; 0, -1 and targets that follow at run time stay as they are."""
    graph = edit.graph
    node = graph.nodes[index]
    target = graph.values.get(graph.input(index, 1))
    if target is None:
        return
    kept = {axis: edit.kept(node.output[0], axis) for axis in range(len(target)) if target[axis] > 0}
    sizes.restate(edit, index, 1, {axis: len(keep) for axis, keep in kept.items() if keep is not None})


@rule("Reshape", resize=_resize_reshape, note="merges and splits axes; of a split (heads, groups) whole slices go along one axis")
def reshape(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    target = graph.values.get(graph.input(index, 1))
    if target is None and graph.opset >= 5:
        flow.pin_all(node.input[0], f"the target of {graph.label(index)!r} is not known before a run")
        sizes.pin_counts(flow, node.input[1], f"the target of {graph.label(index)!r} is not known before a run")
        return
    found = _laid_out(flow, index)
    if target is not None:
        sizes.settle(flow, index, 1, {axis: axis for axis in range(len(target)) if target[axis] > 0}, found)
    flow.give(node.output[0], found)


@rule("Flatten", "Squeeze", "Unsqueeze")
def regroup(flow: Flow, index: int) -> None:
    flow.give(flow.graph.nodes[index].output[0], _laid_out(flow, index))


def _laid_out(flow: Flow, index: int) -> dict[int, Ints]:
    """Labels after a change of shape, block by block.

    Both shapes are read from the left and cut wherever their products agree; each block of input axes then becomes a block of
    output axes: their labels are merged into one array, and that is split along the new axes.
    """
    graph = flow.graph
    node = graph.nodes[index]
    before, after = graph.shapes[node.input[0]], graph.shapes[node.output[0]]
    labels = flow.labels(node.input[0])
    found: dict[int, Ints] = {}
    for ins, outs in blocks(before, after):
        for axis in [a for a in ins if a in labels and before[a] == 1]:
            flow.pin(labels[axis], node.input[0], f"{graph.label(index)!r} drops the axis of this one channel")
        carrying = [labels[a] if a in labels and before[a] > 1 else None for a in ins]
        if all(c is None for c in carrying):
            continue
        whole = flow.merge(carrying, [before[a] for a in ins])
        spread = flow.split(whole.reshape([after[a] for a in outs]))
        found |= {axis: own for axis, own in zip(outs, spread, strict=True) if own is not None}
    return found


@rule("DepthToSpace", note="the pixels of a block stay, channels go")
def depth_to_space(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    found = dict(flow.labels(node.input[0]))
    pixels = graph.attribute(index, "blocksize") ** 2
    if 1 in found:
        inner = graph.attribute(index, "mode", "DCR") == "DCR"
        block, channels = flow.split(found[1].reshape(pixels, -1) if inner else found[1].reshape(-1, pixels).T)
        if block is not None:
            flow.pin(block, node.input[0], f"{graph.label(index)!r} makes pixels of these channels")
        found = {a: own for a, own in found.items() if a == 0} | ({} if channels is None else {1: channels})
    flow.give(node.output[0], found)


@rule("SpaceToDepth", note="every pixel of a block follows its channel")
def space_to_depth(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    labels = flow.labels(node.input[0])
    found = {a: own for a, own in labels.items() if a == 0}
    if 1 in labels:
        found[1] = np.tile(labels[1], graph.attribute(index, "blocksize") ** 2)
    flow.give(node.output[0], found)


def blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Split two shapes of equal product into the shortest blocks of axes with equal products; axes of length 1 join one."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        ins, outs = [], []
        if i < len(before):
            ins.append(i)
            i += 1
        if j < len(after):
            outs.append(j)
            j += 1
        while prod(before[a] for a in ins) != prod(after[a] for a in outs):
            if prod(before[a] for a in ins) < prod(after[a] for a in outs) and i < len(before):
                ins.append(i)
                i += 1
            elif j < len(after):
                outs.append(j)
                j += 1
            else:
                break
        found.append((ins, outs))
    return found
