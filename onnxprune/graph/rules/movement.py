"""Operators that put tensors together or around: Concat and Pad; and what reads sizes. Labels move with the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.graph import sizes
from onnxprune.graph.labels import Flow, Resizer, rule
from onnxprune.network import Ints


@rule("Shape", note="channel counts may be moved about and end in Reshape or Resize; computing with them: pinned")
def shape(flow: Flow, index: int) -> None:
    sizes.read(flow, index)


@rule("Size", note="pinned: a number that changes with the channels")
def size(flow: Flow, index: int) -> None:
    name = flow.graph.nodes[index].input[0]
    flow.pin_all(name, f"{flow.graph.label(index)!r} computes with the size of these channels")


@rule("Concat")
def concat(flow: Flow, index: int) -> None:
    join(flow, index, [position for position, name in enumerate(flow.graph.nodes[index].input) if name])


def join(flow: Flow, index: int, positions: Sequence[int]) -> None:
    """Concat of the inputs at these positions."""
    graph = flow.graph
    node = graph.nodes[index]
    rank = len(graph.shapes[node.output[0]])
    along = graph.attribute(index, "axis", 1) % rank
    found: dict[int, Ints] = {}
    for axis in range(rank):
        if not any(axis in flow.labels(node.input[position]) for position in positions):
            continue
        parts = [_concat_part(flow, index, position, axis) for position in positions]
        if axis == along:
            found[axis] = np.concatenate(parts)
        else:
            for part in parts[1:]:
                flow.tie(parts[0], part)
            found[axis] = parts[0]
    flow.give(node.output[0], found)


def _concat_part(flow: Flow, index: int, position: int, axis: int) -> Ints:
    """Labels of one part; a constant part (zeros that widen a shortcut) can be cut like any parameter."""
    graph = flow.graph
    name = graph.input(index, position)
    length = graph.shapes[name][axis]
    if name in graph.constants:
        labels = flow.fresh(length)
        flow.parameter(index, position, axis, "follows", labels)
        return labels
    return flow.need(name, axis, length, f"{graph.label(index)!r} joins it with channels, and it carries none")


def _pads(flow_or_edit: Flow | Resizer, index: int) -> tuple[list[int], list[int]] | None:
    """Amounts before and after every axis; None where they are not known before a run."""
    graph = flow_or_edit.graph
    node = graph.nodes[index]
    rank = len(graph.shapes[node.input[0]])
    amounts = graph.attribute(index, "pads") or graph.attribute(index, "paddings")
    name = graph.input(index, 1)
    if name:
        if name not in graph.values:
            return None
        amounts = graph.values[name].tolist()
    axes = list(range(rank))
    if graph.input(index, 3):
        if graph.input(index, 3) not in graph.values:
            return None
        axes = [int(a) % rank for a in graph.values[graph.input(index, 3)].tolist()]
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = int(amounts[i]), int(amounts[i + len(axes)])
    return before, after


def _resize_pad(edit: Resizer, index: int) -> None:
    """Padded positions are channels of their own: as many are added as stay."""
    graph = edit.graph
    found = _pads(edit, index)
    if found is None:
        return
    before, after = found
    changed = False
    for axis, length in enumerate(graph.shapes[graph.nodes[index].output[0]]):
        kept = edit.kept(graph.nodes[index].output[0], axis)
        if kept is not None and (before[axis] or after[axis]):
            before[axis], after[axis] = int((kept < before[axis]).sum()), int((kept >= length - after[axis]).sum())
            changed = True
    if not changed:
        return
    axes = graph.values[graph.input(index, 3)].tolist() if graph.input(index, 3) else range(len(before))
    rank = len(before)
    amounts = [before[int(a) % rank] for a in axes] + [after[int(a) % rank] for a in axes]
    if graph.input(index, 1):
        edit.set_input(index, 1, np.array(amounts, np.int64))
    else:
        edit.set_attribute(index, "pads", amounts)


@rule(
    "Pad",
    resize=_resize_pad,
    note="zero-padded channels (option A shortcuts) are channels; other modes along the channels: pinned",
)
def pad(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    labels = flow.labels(node.input[0])
    amounts = _pads(flow, index)
    found: dict[int, Ints] = {}
    for axis, values in labels.items():
        plain = graph.attribute(index, "mode", "constant") == "constant"
        if (
            amounts is None
            or not (plain or amounts[0][axis] == amounts[1][axis] == 0)
            or min(amounts[0][axis], amounts[1][axis]) < 0
        ):
            flow.pin(values, node.input[0], f"{graph.label(index)!r} pads or crops these channels")
            continue
        before, after = amounts[0][axis], amounts[1][axis]
        found[axis] = np.concatenate([flow.fresh(before), values, flow.fresh(after)]) if before or after else values
    flow.give(node.output[0], found)
