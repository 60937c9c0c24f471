"""Which axis of a split loses channels: whole heads or the same width in each, whole groups or the same channels in each.

A Reshape that splits an axis leaves this open (labels.Joint). Splits that share labels form a *knot* and are decided together:
each takes the outermost axis that no pin holds, or each the innermost. Attention loses whole heads, which makes the smaller and
faster graph; elsewhere the side with the more units is the finer choice (128 channels in each of 2 groups, 32 groups of 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.graph.labels import Flow, Joint, components
from onnxprune.network import Bools, Ints

# A side that frees so much more of the positions is taken, whatever else speaks for the other.
MARGIN = 1.25


@dataclass(frozen=True)
class Choice:
    """Ties between channels that follow from the choice, and the channels it rules out.

    taken   the axis of each joint that may lose slices
    freed   positions that may go, in how many units; heads: some of them are attention heads
    """

    ties: tuple[tuple[Ints, Ints], ...]
    held: Ints
    taken: tuple[int, ...]
    freed: int
    units: int
    heads: bool


def resolve(
    flow: Flow, channel: Ints, pinned: Bools, *, inner: bool = False
) -> tuple[list[tuple[Ints, Ints]], Bools, list[tuple[Joint, int]]]:
    """Choose for every knot. `inner`: the inner axes also of attention.

    Returns ties between channels, `pinned` with more, and the axis that was taken of each joint.
    """
    found: list[tuple[Ints, Ints]] = []
    taken: list[tuple[Joint, int]] = []
    held = pinned.copy()
    heads = np.zeros(len(pinned), bool)
    for labels, kind in flow.kinds:
        heads[channel[labels]] |= kind == "head"
    for knot in _knots(flow.joints, channel, pinned):
        outer, other = (_choose(knot, channel, pinned, heads, backwards=b) for b in (False, True))
        inward = inner if outer.heads else other.units > outer.units
        first, second = (other, outer) if inward else (outer, other)
        best = second if second.freed > MARGIN * first.freed else first
        found += best.ties
        held[best.held] = True
        taken += zip(knot, best.taken, strict=True)
    return found, held, taken


def _knots(joints: Sequence[Joint], channel: Ints, pinned: Bools) -> list[list[Joint]]:
    """Joints that share channels which are not pinned anyway."""
    owner, member = [], []
    for number, joint in enumerate(joints):
        touched = _channels([joint], channel, len(pinned))
        touched = touched[~pinned[touched]]
        owner.append(np.full(len(touched), number))
        member.append(touched + len(joints))
    size = len(joints) + len(pinned)
    if not joints:
        return []
    rows, columns = np.concatenate(owner), np.concatenate(member)
    _, knot = connected_components(coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size)), directed=False)
    found: dict[int, list[Joint]] = {}
    for number, joint in enumerate(joints):
        found.setdefault(int(knot[number]), []).append(joint)
    return list(found.values())


def _choose(knot: Sequence[Joint], channel: Ints, pinned: Bools, heads: Bools, *, backwards: bool) -> Choice:
    """Decide joint by joint: the first axis (or the last) of which something can still go."""
    ids = _channels(knot, channel, len(pinned))
    place = np.zeros(len(pinned), np.int64)
    place[ids] = np.arange(len(ids))
    here = place[channel]
    local = [Joint(here[j.labels], tuple(here[m] for m in j.marginals)) for j in knot]
    held = pinned[ids].copy()
    ties: list[tuple[Ints, Ints]] = []
    chosen: list[int] = []
    part = np.arange(len(ids))
    for joint in local:
        dead = _spread(held, part)
        axes = range(joint.labels.ndim)
        taken = next((a for a in (reversed(axes) if backwards else axes) if not dead[joint.marginals[a]].all()), 0)
        chosen.append(taken)
        shape = [-1 if a == taken else 1 for a in axes]
        whole = np.broadcast_to(joint.marginals[taken].reshape(shape), joint.labels.shape)
        tie = whole.reshape(-1), joint.labels.reshape(-1)
        ties.append(tie)
        for axis in axes:
            if axis != taken:
                held[joint.marginals[axis]] = True
        part = components(int(part.max()) + 1, [(part[tie[0]], part[tie[1]])])[1][part]
    free = ~_spread(held, part)
    lies = np.zeros(len(ids), bool)
    for joint in local:
        lies[joint.labels] = True
    freed = np.flatnonzero(lies & free)
    units = int(np.count_nonzero(np.bincount(part[freed])))
    attention = bool((free & _spread(heads[ids], part)).any())
    # A single unit can never go: it would be all there is.
    freely = len(freed) if units > 1 else 0
    return Choice(tuple((ids[a], ids[b]) for a, b in ties), ids[held], tuple(chosen), freely, units, attention)


def _channels(joints: Sequence[Joint], channel: Ints, count: int) -> Ints:
    """The channels that lie on some of these splits."""
    mask = np.zeros(count, bool)
    for joint in joints:
        for labels in (joint.labels, *joint.marginals):
            mask[channel[labels]] = True
    return np.flatnonzero(mask)


def _spread(marked: Bools, part: Ints) -> Bools:
    """Everything in the same part as something marked."""
    touched = np.zeros(int(part.max(initial=-1)) + 1, bool)
    touched[part[marked]] = True
    return touched[part]
