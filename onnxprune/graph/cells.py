"""Channels that may change places: a grouped convolution or a shuffle says how many channels of a block go, but not which.

Position i of every block is tied to a label of its own, the inner marginal of a joint, only so that each block loses as many.
Where nothing else hangs on that label, two positions of one block may be exchanged without any change of the function, if the
weights that make and read them are. A *cell* holds the finer channels of a group that lie in the same blocks of all joints and on
the same slots. Exchanged within their cells, they meet in other units (rewrite.arrange).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.graph.labels import Flow, Joint, LabelledSlot, components
from onnxprune.network import Bools, Group, Ints, Layer, Member, Slot

Chosen = Sequence[tuple[Joint, int]]
BIG = 2**62


@dataclass(frozen=True)
class Place:
    """Where finer channels lie: on a slot, or in one block of it (Member.block)."""

    slot: int
    block: tuple[int, int] | None
    fine: Ints


def with_cells(
    flow: Flow, chosen: Chosen, channel: Ints, groups: Sequence[Group], slots: Sequence[Slot], layers: Iterable[Layer]
) -> tuple[Group, ...]:
    """The groups, each with its cells. `chosen`: the axis taken of every joint. `channel`: of every label."""
    soft = _soft(flow, chosen)
    if not soft:
        return tuple(groups)
    hard = [_tie(joint, axis) for joint, axis in chosen if not any(joint is s for s, _ in soft)]
    count, fine = components(flow.count, [*flow.ties, *hard])
    unit = np.full(count, -1, np.int64)
    unit[fine] = channel
    for joint, axis in soft:
        unit[fine[joint.marginals[axis]]] = -1  # no channel, but the name of one position in all blocks
    places = _places(flow, soft, fine)
    mark = _marks(soft, places, fine, count)
    made = np.zeros(count, bool)
    for place in places:
        if slots[place.slot].role == "makes":
            made[place.fine] = True
    names = {layer.node: layer.name for layer in layers}
    found = [_cells(group, unit, mark, made) for group in groups]
    on = _places_of([ids[0] for cells in found for ids in cells], places, count)
    made_of = [
        tuple(_cell(f"{group.name}[{i}]", group, ids, on[int(ids[0])], slots, names, count) for i, ids in enumerate(cells))
        for group, cells in zip(groups, found, strict=True)
    ]
    return tuple(replace(group, cells=cells) for group, cells in zip(groups, made_of, strict=True))


def _soft(flow: Flow, chosen: Chosen) -> list[tuple[Joint, int]]:
    """Joints whose slices are held together by nothing but the count: the marginal that was taken lies nowhere else.

    Nothing may look along the other axes either (a softmax over the blocks compares what lies at the same place in each).
    """
    uses = np.zeros(flow.count, np.int64)
    for joint, _ in chosen:
        for labels in (joint.labels, *joint.marginals):
            uses[np.unique(labels)] += 1
    for labels in flow.blocks.values():
        uses[labels] += 1
    looked = _looked_at(flow, chosen)
    return [
        (joint, axis) for joint, axis in chosen
        if not any(looked[m].any() for m in joint.marginals) and bool((uses[joint.marginals[axis]] == 1).all())
    ]  # fmt: skip


def _looked_at(flow: Flow, chosen: Chosen) -> Bools:
    """Labels along which some operator does more than count: ties, pins, parameters, sums, norms."""
    count, part = flow.components()
    looked = np.bincount(part, minlength=count)[part] > 1
    for labels in (*flow.summed, *flow.normalised, *(own for own, _ in flow.kinds)):
        looked[labels] = True
    # A grouped convolution that reads what carries no channels keeps its groups, but looks at each alone.
    own = {(flow.graph.nodes[node].input[0], groups.tobytes()) for node, groups in flow.blocks.items()}
    for pin in flow.pins:
        if (pin.tensor, pin.labels.tobytes()) not in own:
            looked[pin.labels] = True
    joints = {joint.marginals[-1].tobytes(): joint for joint, axis in chosen if joint.labels.ndim == 2 and axis == 1}
    for slot in flow.slots:
        joint = joints.get(slot.labels.tobytes())
        if joint is None or not _by_block(flow, slot, joint):
            looked[slot.labels] = True
    return looked


def _by_block(flow: Flow, slot: LabelledSlot, joint: Joint) -> bool:
    """Whether the slot is the axis that the groups of a convolution share: each of them has other numbers there."""
    groups = flow.blocks.get(slot.node)
    stored = flow.graph.stored(flow.graph.input(slot.node, slot.input))
    if groups is None or stored is None or stored.axes[:2] != (0, 1) or slot.axis != 1:
        return False
    return stored.parameter == slot.parameter and np.array_equal(joint.marginals[0], groups)


def _tie(joint: Joint, axis: int) -> tuple[Ints, Ints]:
    shape = [-1 if a == axis else 1 for a in range(joint.labels.ndim)]
    return np.broadcast_to(joint.marginals[axis].reshape(shape), joint.labels.shape).reshape(-1), joint.labels.reshape(-1)


def _rows(joint: Joint, axis: int) -> Ints:
    """The labels of each block."""
    return np.moveaxis(joint.labels, axis, -1).reshape(-1, joint.labels.shape[axis])


def _places(flow: Flow, soft: Chosen, fine: Ints) -> list[Place]:
    rows = {joint.marginals[axis].tobytes(): _rows(joint, axis) for joint, axis in soft}
    found = []
    for number, slot in enumerate(flow.slots):
        blocks = rows.get(slot.labels.tobytes())
        if blocks is None:
            found.append(Place(number, None, fine[slot.labels]))
        else:
            found += [Place(number, (block, len(blocks)), fine[labels]) for block, labels in enumerate(blocks)]
    return found


def _marks(soft: Chosen, places: Sequence[Place], fine: Ints, count: int) -> Ints:
    """A number for every finer channel, equal for those that lie on the same slots and in the same blocks, as often."""
    rng = np.random.default_rng(0)
    mark = np.zeros(count, np.int64)
    rows = [fine[row] for joint, axis in soft for row in _rows(joint, axis)]
    for channels in (*(place.fine for place in places), *rows):
        np.add.at(mark, channels, rng.integers(1, BIG))
    return mark


def _places_of(channels: Sequence[int], places: Sequence[Place], count: int) -> dict[int, list[Place]]:
    """The places that each of these finer channels lies on."""
    asked = np.zeros(count, bool)
    asked[channels] = True
    found: dict[int, list[Place]] = {int(channel): [] for channel in channels}
    for place in places:
        for channel in dict.fromkeys(place.fine[asked[place.fine]].tolist()):
            found[channel].append(place)
    return found


def _cells(group: Group, unit: Ints, mark: Ints, made: Bools) -> list[Ints]:
    """Finer channels with the same mark, where each channel of the group has as many of them and some layer makes them."""
    place = np.full(int(max(unit.max(), group.ids.max())) + 2, -1, np.int64)
    place[group.ids] = np.arange(group.size)
    inside = np.flatnonzero(place[unit] >= 0)
    if len(inside) == group.size:
        return []
    found: list[Ints] = []
    for value in np.unique(mark[inside]):
        own = inside[mark[inside] == value]
        per = np.bincount(place[unit[own]], minlength=group.size)
        if bool(made[own].all()) and per.min() == per.max():
            found.append(own[np.argsort(place[unit[own]], kind="stable")])
    return found


def _cell(
    name: str, group: Group, ids: Ints, places: Sequence[Place], slots: Sequence[Slot], names: Mapping[int, str], count: int
) -> Group:
    """places: those of the first of the channels `ids`; all of one mark lie on the same."""
    at = np.full(count, -1, np.int64)
    at[ids] = np.arange(len(ids))
    members: list[Member] = []
    layers: dict[str, list[str]] = {"makes": [], "reads": []}
    for place in places:
        rows = at[place.fine]
        hits = np.flatnonzero(rows >= 0)
        order = hits[np.argsort(rows[hits], kind="stable")]
        members.append(Member(place.slot, order.reshape(len(ids), -1), place.block))
        slot = slots[place.slot]
        if slot.node in names and slot.role in layers:
            layers[slot.role].append(names[slot.node])
    makers, readers = (tuple(dict.fromkeys(layers[role])) for role in ("makes", "reads"))
    return Group(name, group.kind, ids, tuple(members), makers, readers, group.spatial)
