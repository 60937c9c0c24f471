"""Operators that repeat or fill: Expand, Tile, ConstantOfShape, Range. What is the same everywhere can be cut anywhere."""

from __future__ import annotations

import numpy as np

from onnxprune.graph import sizes
from onnxprune.graph.labels import Flow, Resizer, rule
from onnxprune.network import Ints


def _resize_filled(edit: Resizer, index: int) -> None:
    """As many are filled in as stay."""
    output = edit.graph.nodes[index].output[0]
    kept = {axis: edit.kept(output, axis) for axis in range(len(edit.graph.shapes[output]))}
    sizes.restate(edit, index, 0, {axis: len(keep) for axis, keep in kept.items() if keep is not None})


@rule("ConstantOfShape", resize=_resize_filled, note="stated sizes follow the channels that the result is combined with")
def filled(flow: Flow, index: int) -> None:
    graph = flow.graph
    output = graph.nodes[index].output[0]
    found = {}
    for axis, length in enumerate(graph.shapes[output]):
        labels = _same(flow, index, 0, axis, length)
        if labels is not None:
            found[axis] = labels
    flow.give(output, found)


@rule("Range", note="carries no channels")
def counted(flow: Flow, index: int) -> None:
    """Nothing to say: channel counts that come in were pinned on the way."""


def _same(flow: Flow, index: int, position: int, entry: int, length: int) -> Ints | None:
    """Labels of an axis along which all positions are alike: those that its length counts, new ones where it is stored."""
    counted = sizes.counted(flow, flow.graph.input(index, position), entry)
    if counted is not None and len(counted) == length:
        return counted
    return flow.fresh(length) if length > 1 and sizes.place(flow.graph, index, position, entry) is not None else None


def _resize_expand(edit: Resizer, index: int) -> None:
    graph = edit.graph
    output, target = graph.nodes[index].output[0], graph.values.get(graph.input(index, 1))
    if target is None:
        return
    shift = len(graph.shapes[output]) - len(target)
    kept = {entry: edit.kept(output, entry + shift) for entry in range(len(target)) if target[entry] > 1}
    sizes.restate(edit, index, 1, {entry: len(keep) for entry, keep in kept.items() if keep is not None})


@rule("Expand", resize=_resize_expand, note="repeated positions are alike: any of them may go")
def expand(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    before, after, target = graph.shapes[node.input[0]], graph.shapes[node.output[0]], graph.values.get(node.input[1])
    labels = _source(flow, index)
    if target is None:
        for own in labels.values():
            flow.pin(own, node.input[0], f"the size that {graph.label(index)!r} expands to is not known before a run")
        return
    shift, grown = len(after) - len(target), len(after) - len(before)
    found = {a + grown: own for a, own in labels.items() if before[a] == after[a + grown]}
    for axis in [a for a in labels if before[a] != after[a + grown]]:
        flow.pin(labels[axis], node.input[0], f"{graph.label(index)!r} repeats this one channel")
    for axis in range(shift, len(after)):
        if axis not in found and (axis < grown or before[axis - grown] == 1):
            same = _same(flow, index, 1, axis - shift, after[axis])
            found |= {} if same is None else {axis: same}
    sizes.settle(flow, index, 1, {e + shift: e for e in range(len(target)) if target[e] > 1}, found)
    flow.give(node.output[0], found)


def _source(flow: Flow, index: int) -> dict[int, Ints]:
    """Labels of what is repeated; a constant (a class token) can be cut like any parameter."""
    graph = flow.graph
    name = graph.nodes[index].input[0]
    if name not in graph.constants:
        return flow.labels(name)
    found = {a: flow.fresh(n) for a, n in enumerate(graph.shapes[name]) if n > 1}
    for axis, labels in found.items():
        flow.parameter(index, 0, axis, "follows", labels)
    return found


@rule("Tile", note="constant repeats")
def tile(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    repeats = graph.values.get(graph.input(index, 1))
    labels = _source(flow, index)
    if repeats is None or node.input[1] not in graph.constants:
        before, after = graph.shapes[node.input[0]], graph.shapes[node.output[0]]
        for axis in [a for a in labels if repeats is None or before[a] != after[a]]:
            flow.pin(labels[axis], node.input[0], f"how often {graph.label(index)!r} repeats is not known before a run")
        labels = {a: own for a, own in labels.items() if before[a] == after[a]}
        repeats = np.ones(len(before), np.int64)
    flow.give(node.output[0], {a: np.tile(own, int(repeats[a])) for a, own in labels.items()})
