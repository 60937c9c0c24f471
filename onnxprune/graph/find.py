"""From labels to a Network: which positions are one channel, which channels form a group, what is pinned, what it costs."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np
from onnx import helper

from onnxprune.graph.cells import with_cells
from onnxprune.graph.facts import WEIGHTS
from onnxprune.graph.joints import resolve
from onnxprune.graph.labels import Flow, components
from onnxprune.graph.structure import Graph
from onnxprune.graph.surroundings import surroundings
from onnxprune.graph.walk import walk
from onnxprune.network import Axis, Bools, Group, Ints, Kind, Layer, Member, Network, Pin, Slot, Term

# Of several kinds that a channel is, the first counts.
KINDS: tuple[Kind, ...] = ("head", "expert", "recurrent", "head-width", "embedding", "neuron", "channel")
UNREAD = "no layer reads these channels"
ALONE = "all of it is one channel, which can only go as a whole"
GIVEN_WAY = "another axis of the same split loses slices in place of this one"
# parameter -> node that reads it -> axis -> its length
Axes = dict[str, dict[int, dict[int, Axis]]]


def find(graph: Graph, *, inner: bool = False, through_norms: bool = False) -> Network:
    """Layers, groups, pins and costs of a traced model.

    inner           of split channels prefer the inner part (widths to heads)
    through_norms   channels that a norm takes statistics over may go (graph.norms)
    """
    flow = walk(graph, through_norms=through_norms)
    count, channel = flow.components()
    pinned = _pinned(flow, channel, count)
    free, held, chosen = resolve(flow, channel, pinned, inner=inner)
    count, merged = components(count, free)
    channel = merged[channel]
    joint_pins = _flags(merged[held], count)
    slots = tuple(Slot(s.parameter, s.node, s.input, s.axis, s.role, channel[s.labels]) for s in flow.slots)
    summed = np.zeros(count, bool)
    for labels in flow.summed:
        summed[channel[labels]] = True
    layers = tuple(_grouped(flow, channel, joint_pins, surroundings(graph, layer, flow.quantised)) for layer in flow.layers)
    marks = sorted(flow.kinds, key=lambda mark: KINDS.index(mark[1]), reverse=True)
    kinds = {int(c): kind for labels, kind in marks for c in channel[labels]}
    names = _names(graph, flow, layers)
    groups, loose, alone = _groups(slots, names, layers, joint_pins, summed, kinds, count)
    groups = with_cells(flow, chosen, channel, groups, slots, layers)
    given_way = _flags(merged[held & ~pinned], count) & ~_flags(merged[pinned], count)
    axes = _axes(slots, groups, count)
    pins = _pins(flow, channel, slots, layers, {UNREAD: loose, ALONE: alone})
    return Network(
        layers=layers,
        groups=groups,
        pins=tuple(pin for pin in pins if pin.count),
        idle_pins=(*(pin for pin in pins if not pin.count), Pin("", GIVEN_WAY, 0, np.flatnonzero(given_way))),
        slots=slots,
        norms=tuple(flow.norms),
        channel_count=count,
        tensor_channels={t: {a: channel[v] for a, v in axes.items()} for t, axes in flow.tensors.items()},
        shapes=graph.shapes,
        input_shapes=graph.inputs,
        mac_terms=_mac_terms(graph, layers, flow.work, axes),
        parameter_terms=_parameter_terms(graph, axes),
        element_bytes={name: helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for name, t in graph.parameters.items()},
        quantised=flow.quantised,
        measured=channel[np.concatenate([np.empty(0, np.int64), *flow.measured])],
        sums=tuple(flow.sums),
        new_bias_terms=_new_bias_terms(layers, {t: channel[v[1]] for t, v in flow.tensors.items() if 1 in v}, groups, count),
    )


def _grouped(flow: Flow, channel: Ints, pinned: Bools, layer: Layer) -> Layer:
    """Says of a grouped convolution whether its groups can go."""
    groups = flow.blocks.get(layer.node)
    return layer if groups is None else replace(layer, whole_groups=not bool(pinned[channel[groups]].all()))


def _flags(marked: Ints, count: int) -> Bools:
    mask = np.zeros(count, bool)
    mask[marked] = True
    return mask


def _pinned(flow: Flow, channel: Ints, count: int) -> Bools:
    mask = np.zeros(count, bool)
    for pin in flow.pins:
        mask[channel[pin.labels]] = True
    return mask


def _names(graph: Graph, flow: Flow, layers: Sequence[Layer]) -> dict[int, str]:
    """node -> its name, of those that groups are named after: layers and recurrent nodes."""
    return {node: graph.label(node) for node, _, _ in flow.work} | {layer.node: layer.name for layer in layers}


def _groups(
    slots: Sequence[Slot], names: Mapping[int, str], layers: Sequence[Layer], pinned: Bools, summed: Bools,
    kinds: Mapping[int, Kind], count: int,
) -> tuple[tuple[Group, ...], Bools, Bools]:  # fmt: skip
    """Free channels with the same members form a group.

    Also returns the free channels that nothing makes or nothing reads, and those without a second one of their kind.
    """
    roles = {role: np.zeros(count, bool) for role in ("makes", "reads", "follows", "scales")}
    present = np.zeros(count, bool)
    for slot in slots:
        roles[slot.role][slot.channels] = True
        present[slot.channels] = True
    free = ~pinned & roles["makes"] & (roles["reads"] | summed)
    loose, alone = ~pinned & present & ~free, np.zeros(count, bool)
    # A random number per slot, summed over a channel's positions, is equal for two channels exactly when their members are.
    marks = np.random.default_rng(0).integers(1, 2**62, len(slots), dtype=np.int64)
    every = np.concatenate([np.empty(0, np.int64), *(slot.channels for slot in slots)])
    signature = np.zeros(count, np.int64)
    np.add.at(signature, every, np.repeat(marks, [len(slot.channels) for slot in slots]))
    first = np.zeros(count, np.int64)
    first[every[::-1]] = np.arange(len(every))[::-1]
    ordered = np.flatnonzero(free)[np.argsort(first[free], kind="stable")]
    found: dict[int, list[int]] = {}
    for c, own in zip(ordered.tolist(), signature[ordered].tolist(), strict=True):
        found.setdefault(own, []).append(c)
    by_node = {layer.node: layer for layer in layers}
    on = _slots_of([ids[0] for ids in found.values()], slots, count)
    groups: dict[str, Group] = {}
    for ids in found.values():
        if len(ids) == 1:
            alone[ids] = True
            continue
        group = _group(np.array(ids, np.int64), slots, on[ids[0]], names, by_node, kinds, count)
        name = _unique(group.name, groups)
        groups[name] = replace(group, name=name)
    return tuple(groups.values()), loose, alone


def _slots_of(channels: Sequence[int], slots: Sequence[Slot], count: int) -> dict[int, list[int]]:
    """The numbers of the slots that each of these channels lies on."""
    asked = _flags(np.array(channels, np.int64), count)
    found: dict[int, list[int]] = {c: [] for c in channels}
    for number, slot in enumerate(slots):
        for channel in dict.fromkeys(slot.channels[asked[slot.channels]].tolist()):
            found[channel].append(number)
    return found


def _unique(name: str, taken: Container[str]) -> str:
    if name not in taken:
        return name
    return next(numbered for i in itertools.count(2) if (numbered := f"{name}#{i}") not in taken)


def _group(
    ids: Ints, slots: Sequence[Slot], on: Sequence[int], names: Mapping[int, str], by_node: Mapping[int, Layer],
    kinds: Mapping[int, Kind], count: int,
) -> Group:  # fmt: skip
    """on: the numbers of the slots that every one of the channels `ids` lies on."""
    place = np.full(count, -1, np.int64)
    place[ids] = np.arange(len(ids))
    members, makers, readers = [], [], []
    first = ""
    for number in on:
        slot = slots[number]
        rows = place[slot.channels]
        hits = np.flatnonzero(rows >= 0)
        order = hits[np.argsort(rows[hits], kind="stable")]
        members.append(Member(number, order.reshape(len(ids), -1)))
        name = names.get(slot.node, slot.parameter)
        first = first or (slot.parameter if slot.role == "makes" else "")
        if slot.role == "makes":
            makers.append(name)
        if slot.role == "reads":
            readers.append(name)
    ops = {by_node[slots[m.slot].node].op for m in members if slots[m.slot].node in by_node}
    spatial = any(op.startswith("Conv") for op in ops)
    kind = kinds.get(int(ids[0]), "channel" if spatial else "neuron")
    return Group(
        next((m for m in makers if m in names.values()), first),
        kind,
        ids,
        tuple(members),
        tuple(dict.fromkeys(makers)),
        tuple(dict.fromkeys(readers)),
        spatial,
        max((m.positions.shape[1] for m in members if slots[m.slot].role == "makes"), default=1),
    )


def _pins(flow: Flow, channel: Ints, slots: Sequence[Slot], layers: Sequence[Layer], others: Mapping[str, Bools]) -> list[Pin]:
    """One entry for each tensor and reason. `others`: reasons that show only once all is known, and the channels they hold."""
    weighted = _flags(np.empty(0, np.int64), len(others[UNREAD]))
    for slot in slots:
        if slot.role == "makes":
            weighted[slot.channels] = True
    parts: dict[tuple[str, str], list[Ints]] = {}
    for pin in flow.pins:
        parts.setdefault((pin.tensor, pin.reason), []).append(channel[pin.labels])
    outputs = {layer.node: layer.output for layer in layers}
    for reason, held in others.items():
        for slot in slots:
            if slot.role == "makes" and held[slot.channels].any():
                tensor = outputs.get(slot.node, slot.parameter)
                parts.setdefault((tensor, reason), []).append(slot.channels[held[slot.channels]])
    found = []
    for (tensor, reason), held_here in parts.items():
        channels = np.unique(np.concatenate(held_here))
        found.append(Pin(tensor, reason, int(weighted[channels].sum()), channels))
    return found


def _axis(channels: Ints, groups: Sequence[Group], member_of: Ints) -> Axis:
    counts = np.bincount(member_of[channels] + 1)
    found = np.flatnonzero(counts[1:]).tolist()
    return Axis(int(counts[0]), {groups[g].name: int(counts[g + 1]) // groups[g].size for g in found})


def _member_of(groups: Sequence[Group], count: int) -> Ints:
    found = np.full(count, -1, np.int64)
    for number, group in enumerate(groups):
        found[group.ids] = number
    return found


def _axes(slots: Sequence[Slot], groups: Sequence[Group], count: int) -> Axes:
    member_of = _member_of(groups, count)
    found: Axes = {}
    for slot in slots:
        found.setdefault(slot.parameter, {}).setdefault(slot.node, {})[slot.axis] = _axis(slot.channels, groups, member_of)
    return found


def _mac_terms(graph: Graph, layers: Sequence[Layer], work: Sequence[tuple[int, int, int]], axes: Axes) -> tuple[Term, ...]:
    """Of every layer, and of the weights that recurrent nodes hold besides."""
    terms = []
    products = [(layer.name, layer.node, layer.weight, layer.macs) for layer in layers]
    for node, position, macs in work:
        stored = graph.stored(graph.input(node, position))
        products.append((graph.label(node), node, stored.parameter if stored else "", macs))
    for name, node, weight, macs in products:
        own = axes.get(weight, {}).get(node, {})
        terms.append(Term(name, macs // prod(graph.parameters[weight].dims[a] for a in own), tuple(own.values())))
    return tuple(terms)


def _new_bias_terms(layers: Sequence[Layer], made: Mapping[str, Ints], groups: Sequence[Group], count: int) -> tuple[Term, ...]:
    """made: channels along axis 1 of every activation, where Conv, ConvTranspose and Gemm have their outputs."""
    member_of = _member_of(groups, count)
    bare = [layer for layer in layers if layer.widen_bias and layer.output in made]
    return tuple(Term(layer.weight, 1, (_axis(made[layer.output], groups, member_of),)) for layer in bare)


def _parameter_terms(graph: Graph, axes: Axes) -> tuple[Term, ...]:
    terms = []
    for name, tensor in graph.parameters.items():
        if tensor.data_type not in WEIGHTS:
            continue
        own: dict[int, Axis] = {}
        for read in axes.get(name, {}).values():
            own = read | own
        rest = prod(n for a, n in enumerate(tensor.dims) if a not in own)
        terms.append(Term(name, int(rest), tuple(own.values())))
    return tuple(terms)
