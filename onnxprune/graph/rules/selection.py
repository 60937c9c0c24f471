"""Operators that take some positions of a tensor: Slice, Split, Gather and their kin. Labels go where their positions go."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from onnxprune.graph import sizes
from onnxprune.graph.facts import WEIGHTS
from onnxprune.graph.labels import Flow, Resizer, rule
from onnxprune.graph.structure import Graph
from onnxprune.network import Ints


class Cut(NamedTuple):
    """What a Slice does to one axis; `entry` is its place in the lists of starts and ends."""

    entry: int
    start: int
    end: int
    step: int


def _cuts(graph: Graph, index: int) -> dict[int, Cut | None]:
    """axis -> what is cut there, None where that is not known before a run."""
    node = graph.nodes[index]
    rank = len(graph.shapes[node.input[0]])
    if graph.attribute(index, "starts") is not None:
        starts, ends = graph.attribute(index, "starts"), graph.attribute(index, "ends")
        axes = graph.attribute(index, "axes") or range(len(starts))
        return {a % rank: Cut(i, s, e, 1) for i, (a, s, e) in enumerate(zip(axes, starts, ends, strict=True))}
    parts = [graph.values.get(graph.input(index, position)) for position in (1, 2, 3, 4)]
    if (graph.input(index, 3) and parts[2] is None) or (parts[0] is None and not graph.input(index, 3)):
        return dict.fromkeys(range(rank))
    length = graph.shapes[node.input[1]][0]
    axes = [int(a) % rank for a in (range(length) if parts[2] is None else parts[2])]
    if parts[0] is None or parts[1] is None or (graph.input(index, 4) and parts[3] is None):
        return dict.fromkeys(axes)
    steps = [1] * length if parts[3] is None else parts[3]
    return {a: Cut(i, int(parts[0][i]), int(parts[1][i]), int(steps[i])) for i, a in enumerate(axes)}


def _resize_slice(edit: Resizer, index: int) -> None:
    """Bounds count the channels that stay before them."""
    graph = edit.graph
    node = graph.nodes[index]
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for axis, cut in _cuts(graph, index).items():
        kept = edit.kept(node.input[0], axis)
        if kept is None or cut is None or cut.step != 1:
            continue
        length = graph.shapes[node.input[0]][axis]
        first, last, _ = slice(cut.start, cut.end).indices(length)
        starts[cut.entry] = int((kept < first).sum())
        if last < length:
            ends[cut.entry] = int((kept < last).sum())
    if graph.attribute(index, "starts") is None:
        sizes.restate(edit, index, 1, starts)
        sizes.restate(edit, index, 2, ends)
        return
    for name, changed in (("starts", starts), ("ends", ends)):
        stated = list(graph.attribute(index, name))
        if changed:
            edit.set_attribute(index, name, [changed.get(i, n) for i, n in enumerate(stated)])


@rule("Slice", resize=_resize_slice, note="constant bounds along channels; with a step, neighbours go together")
def slice_(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    found = dict(flow.labels(node.input[0]))
    for axis, cut in _cuts(graph, index).items():
        if axis in found:
            taken = _sliced(flow, index, found[axis], cut)
            if taken is None:
                flow.pin(found.pop(axis), node.input[0], f"{graph.label(index)!r} takes a slice of these channels")
            else:
                found[axis] = taken
    flow.give(node.output[0], found)


def _sliced(flow: Flow, index: int, labels: Ints, cut: Cut | None) -> Ints | None:
    """The labels that a slice takes; None where its bounds could not be stated anew."""
    if cut is None:
        return None
    taken = labels[slice(cut.start, cut.end if cut.step > 0 or cut.end > -len(labels) - 1 else None, cut.step)]
    if len(taken) == len(labels) and abs(cut.step) == 1:
        return taken
    if cut.step == 1:
        first, last, _ = slice(cut.start, cut.end).indices(len(labels))
        stored = "starts" if flow.graph.attribute(index, "starts") is not None else ""
        movable = first == 0 or stored or sizes.place(flow.graph, index, 1, cut.entry) is not None
        ending = last == len(labels) or stored or sizes.place(flow.graph, index, 2, cut.entry) is not None
        return taken if movable and ending else None
    if 0 <= cut.start < cut.step and len(labels) % cut.step == 0 and len(taken) == len(labels) // cut.step:
        neighbours = labels.reshape(-1, cut.step)
        flow.tie(neighbours[:, :1], neighbours)
        return taken
    return None


def _resize_split(edit: Resizer, index: int) -> None:
    """Sizes of the parts are stated, also where equal parts went without saying."""
    graph = edit.graph
    node = graph.nodes[index]
    axis = graph.attribute(index, "axis", 0) % len(graph.shapes[node.input[0]])
    if edit.kept(node.input[0], axis) is None:
        return
    parts = [edit.kept(o, axis) for o in node.output]
    lengths = [graph.shapes[o][axis] if kept is None else len(kept) for o, kept in zip(node.output, parts, strict=True)]
    if graph.opset < 13:
        edit.set_attribute(index, "split", lengths)
    elif graph.input(index, 1):
        sizes.restate(edit, index, 1, dict(enumerate(lengths)))
    else:
        edit.set_attribute(index, "num_outputs", None)
        edit.set_input(index, 1, np.array(lengths, np.int64))


@rule("Split", resize=_resize_split, note="constant sizes")
def split(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    labels = flow.labels(node.input[0])
    axis = graph.attribute(index, "axis", 0) % len(graph.shapes[node.input[0]])
    rest = {a: found for a, found in labels.items() if a != axis}
    own = labels.get(axis)
    unknown = any(not o for o in node.output) or (graph.input(index, 1) and graph.input(index, 1) not in graph.values)
    if own is not None and unknown:
        flow.pin(own, node.input[0], f"{graph.label(index)!r} splits these channels into parts that are not known before a run")
        own = None
    start = 0
    for output in node.output:
        length = graph.shapes[output][axis] if output else 0
        flow.give(output, rest if own is None else rest | {axis: own[start : start + length]})
        start += length


def _resize_gather(edit: Resizer, index: int) -> None:
    """Indices count the channels that stay; those of channels that went are left out."""
    graph = edit.graph
    node = graph.nodes[index]
    axis = graph.attribute(index, "axis", 0) % len(graph.shapes[node.input[0]])
    kept = edit.kept(node.input[0], axis)
    indices = graph.values.get(node.input[1])
    if kept is None or indices is None:
        return
    length = graph.shapes[node.input[0]][axis]
    place = np.full(length, -1, np.int64)
    place[kept] = np.arange(len(kept))
    moved = place[np.asarray(indices, np.int64) % length]
    edit.set_input(index, 1, moved[moved >= 0] if moved.ndim else moved)


@rule("Gather", resize=_resize_gather, note="constant indices along channels; a table of embeddings makes channels")
def gather(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    shape = graph.shapes[node.input[0]]
    axis = graph.attribute(index, "axis", 0) % len(shape)
    more = len(graph.shapes[node.input[1]]) - 1
    flow.pin_all(node.input[1], f"{graph.label(index)!r} looks positions up with them")
    labels = _table(flow, index, axis) if node.input[0] in graph.constants else flow.labels(node.input[0])
    found = {a if a < axis else a + more: own for a, own in labels.items() if a != axis}
    if axis in labels:
        indices = graph.values.get(node.input[1])
        if indices is None or node.input[1] not in graph.constants or more > 0:
            flow.pin(labels[axis], node.input[0], f"{graph.label(index)!r} picks from these channels at run time")
        elif more == 0:
            found[axis] = labels[axis][indices]
        else:
            flow.pin(labels[axis][indices].reshape(1), node.input[0], f"{graph.label(index)!r} picks this one channel")
    flow.give(node.output[0], found)


def _table(flow: Flow, index: int, axis: int) -> dict[int, Ints]:
    """An embedding table makes the channels along its other axes."""
    graph = flow.graph
    name = graph.nodes[index].input[0]
    found: dict[int, Ints] = {}
    if graph.types[name] not in WEIGHTS:
        return found
    for a, length in enumerate(graph.shapes[name]):
        if a != axis and length > 1:
            found[a] = flow.fresh(length)
            flow.mark(found[a], "embedding")
            flow.parameter(index, 0, a, "makes", found[a])
    return found


@rule("GatherElements", note="along other axes than its own channels go, where the indices are repeated for each of them")
def gather_elements(flow: Flow, index: int) -> None:
    """Position i takes what the index at i says, along one axis; along all others what lies at i itself."""
    graph, node = flow.graph, flow.graph.nodes[index]
    data, picks = node.input[0], node.input[1]
    axis = graph.attribute(index, "axis", 0) % len(graph.shapes[data])
    labels, own = dict(flow.labels(data)), dict(flow.labels(picks))
    found = {axis: own.pop(axis)} if axis in own else {}
    if axis in labels:
        flow.pin(labels.pop(axis), data, f"{graph.label(index)!r} picks positions by index ({node.op_type})")
    for other in sorted({*labels, *own}):
        if other in labels and other in own and len(labels[other]) == len(own[other]):
            flow.tie(labels[other], own[other])
            found[other] = labels[other]
            continue
        for name, carried in ((data, labels), (picks, own)):
            if other in carried:
                flow.pin(
                    carried[other], name, f"{graph.label(index)!r} picks by index for each of these channels ({node.op_type})"
                )
    flow.give(node.output[0], found)


@rule("ScatterElements", "Scatter", note="as GatherElements; data, indices and updates are tied")
def scatter_elements(flow: Flow, index: int) -> None:
    """Updates go to where the indices say, along one axis; along all others what lies at i itself is changed."""
    graph, node = flow.graph, flow.graph.nodes[index]
    rank = len(graph.shapes[node.input[0]])
    along = graph.attribute(index, "axis", 0) % rank
    _picked(flow, index, {0: {along}, 1: {along}, 2: {along}})
    others = [axis for axis in range(rank) if axis != along]
    flow.give(node.output[0], _across(flow, index, {axis: ((0, axis), (1, axis), (2, axis)) for axis in others}))


@rule("ScatterND", note="along axes that the indices do not count; data and updates are tied")
def scatter_nd(flow: Flow, index: int) -> None:
    """Index tuples count the first axes of the data; whole slices along the others are changed."""
    graph, node = flow.graph, flow.graph.nodes[index]
    data, indices = (graph.shapes[name] for name in node.input[:2])
    counted, listed = indices[-1], len(indices) - 1
    _picked(flow, index, {0: set(range(counted)), 1: set(range(listed + 1)), 2: set(range(listed))})
    others = range(counted, len(data))
    flow.give(node.output[0], _across(flow, index, {axis: ((0, axis), (2, axis - counted + listed)) for axis in others}))


@rule("GatherND", note="along axes that the indices do not count")
def gather_nd(flow: Flow, index: int) -> None:
    graph, node = flow.graph, flow.graph.nodes[index]
    indices = graph.shapes[node.input[1]]
    listed, counted = len(indices) - 1, graph.attribute(index, "batch_dims", 0) + indices[-1]
    _picked(flow, index, {0: set(range(counted)), 1: set(range(listed + 1))})
    labels = flow.labels(node.input[0])
    flow.give(node.output[0], {a - counted + listed: own for a, own in labels.items() if a >= counted})


def _picked(flow: Flow, index: int, touched: Mapping[int, Container[int]]) -> None:
    """Pin the channels of inputs along the axes in which positions are picked."""
    node = flow.graph.nodes[index]
    for position, axes in touched.items():
        for axis, labels in flow.labels(node.input[position]).items():
            if axis in axes:
                flow.pin(labels, node.input[position], f"{flow.graph.label(index)!r} picks positions by index ({node.op_type})")


def _across(flow: Flow, index: int, spans: Mapping[int, Sequence[tuple[int, int]]]) -> dict[int, Ints]:
    """Labels of output axes that several inputs (position, axis) span alike: activations are tied, constants follow."""
    graph = flow.graph
    found: dict[int, Ints] = {}
    for axis, places in spans.items():
        parts = [(p, graph.input(index, p), a) for p, a in places]
        carried = [(name, own) for _, name, a in parts if (own := flow.labels(name).get(a)) is not None]
        bare = [name for _, name, a in parts if a not in flow.labels(name) and name not in graph.constants]
        alike = len({graph.shapes[name][a] for _, name, a in parts}) == 1
        if bare or not alike:
            other = f"{(bare or [parts[0][1]])[0]!r}, which carries no channels" if bare else "others of another length"
            for name, own in carried:
                flow.pin(own, name, f"{graph.label(index)!r} combines it with {other} ({graph.nodes[index].op_type})")
        elif carried:
            found[axis] = carried[0][1]
            for _, own in carried[1:]:
                flow.tie(found[axis], own)
            for position, name, a in parts:
                if name in graph.constants:
                    flow.parameter(index, position, a, "follows", found[axis])
    return found


@rule("CumSum", "ReverseSequence", "Trilu", note="pinned along the axes they work on")
def along(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    rank = len(graph.shapes[node.input[0]])
    match node.op_type:
        case "Trilu":
            touched = {rank - 2, rank - 1}
        case "CumSum":
            value = graph.values.get(node.input[1])
            touched = set(range(rank)) if value is None else {int(value.reshape(-1)[0]) % rank}
        case _:
            touched = {graph.attribute(index, "batch_axis", 1), graph.attribute(index, "time_axis", 0)}
    found = dict(flow.labels(node.input[0]))
    for axis in touched & set(found):
        flow.pin(found.pop(axis), node.input[0], f"{graph.label(index)!r} works along these channels ({node.op_type})")
    flow.give(node.output[0], found)
