"""From labels to a Network: which positions are one channel, which channels form a group, what is pinned, what it costs."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from onnx import helper

from onnxprune.graph.cells import with_cells
from onnxprune.graph.facts import FLOATS
from onnxprune.graph.joints import resolve
from onnxprune.graph.labels import Flow, components
from onnxprune.graph.structure import Graph
from onnxprune.graph.surroundings import surroundings
from onnxprune.graph.walk import walk
from onnxprune.network import Axis, Bools, Group, Ints, Kind, Layer, Member, Network, Pin, Slot, Term

# Of several kinds that a channel is, the first counts.
KINDS: tuple[Kind, ...] = ("head", "expert", "recurrent", "head-width", "embedding", "neuron", "channel")


def find(graph: Graph, *, inner: bool = False) -> Network:
    """Layers, groups, pins and costs of a traced model. `inner`: of split channels prefer the inner part (widths to heads)."""
    flow = walk(graph)
    count, channel = flow.components()
    free, held, chosen = resolve(flow, channel, _pinned(flow, channel, count), inner=inner)
    count, merged = components(count, free)
    channel = merged[channel]
    joint_pins = np.zeros(count, bool)
    joint_pins[merged[held]] = True
    slots = tuple(Slot(s.parameter, s.node, s.input, s.axis, s.role, channel[s.labels]) for s in flow.slots)
    summed = np.zeros(count, bool)
    for labels in flow.summed:
        summed[channel[labels]] = True
    layers = tuple(_grouped(flow, channel, joint_pins, surroundings(graph, layer)) for layer in flow.layers)
    marks = sorted(flow.kinds, key=lambda mark: KINDS.index(mark[1]), reverse=True)
    kinds = {int(c): kind for labels, kind in marks for c in channel[labels]}
    groups, loose = _groups(slots, layers, joint_pins, summed, kinds, count)
    groups = with_cells(flow, chosen, channel, groups, slots, layers)
    return Network(
        layers=layers,
        groups=groups,
        pins=_pins(flow, channel, slots, layers, loose, _alone(groups, joint_pins | loose, slots, count), count),
        slots=slots,
        channel_count=count,
        tensor_channels={t: {a: channel[v] for a, v in axes.items()} for t, axes in flow.tensors.items()},
        shapes=graph.shapes,
        input_shapes=graph.inputs,
        mac_terms=_mac_terms(layers, slots, groups, count),
        parameter_terms=_parameter_terms(graph, slots, groups, count),
        element_bytes={name: helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for name, t in graph.parameters.items()},
        new_bias_terms=_new_bias_terms(layers, {t: channel[v[1]] for t, v in flow.tensors.items() if 1 in v}, groups, count),
    )


def _grouped(flow: Flow, channel: Ints, pinned: Bools, layer: Layer) -> Layer:
    """Says of a grouped convolution whether its groups can go."""
    groups = flow.blocks.get(layer.node)
    return layer if groups is None else replace(layer, whole_groups=not bool(pinned[channel[groups]].all()))


def _pinned(flow: Flow, channel: Ints, count: int) -> Bools:
    mask = np.zeros(count, bool)
    for pin in flow.pins:
        mask[channel[pin.labels]] = True
    return mask


def _groups(
    slots: Sequence[Slot], layers: Sequence[Layer], pinned: Bools, summed: Bools, kinds: Mapping[int, Kind], count: int
) -> tuple[tuple[Group, ...], Bools]:
    """Free channels with the same members form a group. Also returns the free channels that nothing makes or nothing reads."""
    roles = {role: np.zeros(count, bool) for role in ("makes", "reads", "follows")}
    present = np.zeros(count, bool)
    for slot in slots:
        roles[slot.role][slot.channels] = True
        present[slot.channels] = True
    free = ~pinned & roles["makes"] & (roles["reads"] | summed)
    loose = ~pinned & present & ~free
    # A random number per slot, summed over a channel's positions, is equal for two channels exactly when their members are.
    marks = np.random.default_rng(0).integers(1, 2**62, len(slots), dtype=np.int64)
    signature = np.zeros(count, np.int64)
    first = np.full(count, np.iinfo(np.int64).max)
    for number, slot in enumerate(slots):
        np.add.at(signature, slot.channels, marks[number])
        np.minimum.at(first, slot.channels, number * 2**32 + np.arange(len(slot.channels)))
    found: dict[int, list[int]] = {}
    for c in np.flatnonzero(free)[np.argsort(first[free], kind="stable")]:
        found.setdefault(int(signature[c]), []).append(int(c))
    by_node = {layer.node: layer for layer in layers}
    groups: dict[str, Group] = {}
    for ids in found.values():
        if len(ids) == 1:
            continue
        group = _group(np.array(ids, np.int64), slots, by_node, kinds, count)
        name = _unique(group.name, groups)
        groups[name] = replace(group, name=name)
    return tuple(groups.values()), loose


def _unique(name: str, taken: Container[str]) -> str:
    if name not in taken:
        return name
    return next(numbered for i in itertools.count(2) if (numbered := f"{name}#{i}") not in taken)


def _group(ids: Ints, slots: Sequence[Slot], by_node: dict[int, Layer], kinds: Mapping[int, Kind], count: int) -> Group:
    place = np.full(count, -1, np.int64)
    place[ids] = np.arange(len(ids))
    members, makers, readers = [], [], []
    first = ""
    for number, slot in enumerate(slots):
        rows = place[slot.channels]
        hits = np.flatnonzero(rows >= 0)
        if not len(hits):
            continue
        order = hits[np.argsort(rows[hits], kind="stable")]
        members.append(Member(number, order.reshape(len(ids), -1)))
        layer = by_node.get(slot.node)
        first = first or (slot.parameter if slot.role == "makes" else "")
        if layer and slot.role == "makes":
            makers.append(layer.name)
        if layer and slot.role == "reads":
            readers.append(layer.name)
    ops = {by_node[slots[m.slot].node].op for m in members if slots[m.slot].node in by_node}
    spatial = any(op.startswith("Conv") for op in ops)
    kind = kinds.get(int(ids[0]), "channel" if spatial else "neuron")
    return Group(
        makers[0] if makers else first,
        kind,
        ids,
        tuple(members),
        tuple(dict.fromkeys(makers)),
        tuple(dict.fromkeys(readers)),
        spatial,
        max((m.positions.shape[1] for m in members if slots[m.slot].role == "makes"), default=1),
    )


def _alone(groups: Sequence[Group], others: Bools, slots: Sequence[Slot], count: int) -> Bools:
    """Channels that are made, and neither pinned nor loose nor in a group: alone with their members."""
    made = np.zeros(count, bool)
    for slot in slots:
        if slot.role == "makes":
            made[slot.channels] = True
    for group in groups:
        made[group.ids] = False
    return made & ~others


def _pins(
    flow: Flow, channel: Ints, slots: Sequence[Slot], layers: Sequence[Layer], loose: Bools, alone: Bools, count: int
) -> tuple[Pin, ...]:
    """One line for each reason that really keeps weights from leaving."""
    weighted = np.zeros(count, bool)
    for slot in slots:
        if slot.role == "makes":
            weighted[slot.channels] = True
    found: dict[tuple[str, str], Ints] = {}
    for pin in flow.pins:
        hit = np.unique(channel[pin.labels])
        hit = hit[weighted[hit]]
        if len(hit):
            found[pin.tensor, pin.reason] = np.union1d(found.get((pin.tensor, pin.reason), np.empty(0, np.int64)), hit)
    pins = [Pin(tensor, reason, len(hit)) for (tensor, reason), hit in found.items()]
    outputs = {layer.node: layer.output for layer in layers}
    for slot in slots:
        for kind, reason in ((loose, "no layer reads these channels"), (alone, "one channel by itself, which always stays")):
            if slot.role == "makes" and kind[slot.channels].any():
                pins.append(Pin(outputs.get(slot.node, slot.parameter), reason, int(kind[slot.channels].sum())))
    return tuple(pins)


def _axis(channels: Ints, groups: Sequence[Group], member_of: Ints) -> Axis:
    owner = member_of[channels]
    names, counts = np.unique(owner[owner >= 0], return_counts=True)
    per = {groups[int(g)].name: int(n) // groups[int(g)].size for g, n in zip(names, counts, strict=True)}
    return Axis(int((owner < 0).sum()), per)


def _member_of(groups: Sequence[Group], count: int) -> Ints:
    found = np.full(count, -1, np.int64)
    for number, group in enumerate(groups):
        found[group.ids] = number
    return found


def _mac_terms(layers: Sequence[Layer], slots: Sequence[Slot], groups: Sequence[Group], count: int) -> tuple[Term, ...]:
    member_of = _member_of(groups, count)
    terms = []
    for layer in layers:
        axes = {
            s.axis: _axis(s.channels, groups, member_of) for s in slots if s.node == layer.node and s.parameter == layer.weight
        }
        sizes = prod(layer.weight_shape[a] for a in axes)
        terms.append(Term(layer.name, layer.macs // sizes, tuple(axes.values())))
    return tuple(terms)


def _new_bias_terms(layers: Sequence[Layer], made: Mapping[str, Ints], groups: Sequence[Group], count: int) -> tuple[Term, ...]:
    """made: channels along axis 1 of every activation, where Conv, ConvTranspose and Gemm have their outputs."""
    member_of = _member_of(groups, count)
    bare = [layer for layer in layers if layer.widen_bias and layer.output in made]
    return tuple(Term(layer.weight, 1, (_axis(made[layer.output], groups, member_of),)) for layer in bare)


def _parameter_terms(graph: Graph, slots: Sequence[Slot], groups: Sequence[Group], count: int) -> tuple[Term, ...]:
    member_of = _member_of(groups, count)
    axes: dict[str, dict[int, Axis]] = {}
    for slot in slots:
        axes.setdefault(slot.parameter, {}).setdefault(slot.axis, _axis(slot.channels, groups, member_of))
    terms = []
    for name, tensor in graph.parameters.items():
        if tensor.data_type not in FLOATS:
            continue
        own: dict[int, Any] = axes.get(name, {})
        rest = prod(n for a, n in enumerate(tensor.dims) if a not in own)
        terms.append(Term(name, int(rest), tuple(own.values())))
    return tuple(terms)
