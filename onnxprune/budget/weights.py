"""How many weights every layer keeps: each layer or row the same share, the best of the whole network, or what bounds say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np
import torch
from torch import Tensor

from onnxprune.allocation import allocate, unit_gains
from onnxprune.contract import Quota, Scope
from onnxprune.errors import UsageError

# A layer keeps at least this share of its units when layers compete: an empty one cuts the network in two. Where less than twice
# that stays in all, half of what does.
FLOOR = 0.01
# Points between two trials of a layer, and the share of the whole loss that is no loss at all.
FINER, NEARLY_NONE = 24, 1e-5


@dataclass(frozen=True)
class Share:
    """One layer that may lose weights.

    scores   (groups, out, units) importance; of units that are zero already it does not count
    unit     weights per unit
    zero     (groups, out, units) bool: nothing is left to lose there
    errors   (groups * out, units + 1) bound on the error of each row when so many of its best units stay; None without a bound
    """

    scores: Tensor
    unit: int
    zero: Tensor
    errors: Tensor | None = None


@dataclass(frozen=True)
class Trials:
    """What a layer costs the network when so many of its weights stay: tried at some counts, from 0 to all that are not zero.

    zeros   weights that are zero already: nothing has to stay for them, and they count among those that go
    """

    counts: Sequence[int]
    losses: Sequence[float]
    zeros: int = 0

    def refined(self) -> tuple[list[int], list[float]]:
        """The curve at many counts: between trials losses fall by the same factor with each weight, at the end to almost none."""
        losses = np.maximum.accumulate(np.asarray(self.losses, np.float64)[::-1])[::-1]
        logs = np.log(np.maximum(losses, NEARLY_NONE * max(losses[0], 1e-300)))
        counts = np.unique(np.concatenate([np.linspace(a, b, FINER + 1).round() for a, b in pairwise(self.counts)]))
        return counts.astype(int).tolist(), np.exp(np.interp(counts, self.counts, logs)).tolist()


def keep_layers(shapes: Mapping[str, tuple[int, int, int]], units: Mapping[str, int], ratio: float) -> dict[str, Quota]:
    """Every layer loses the same share. shapes: (groups, out, units)."""
    return {name: Quota(round((1 - ratio) * g * o * i), units[name]) for name, (g, o, i) in shapes.items()}


def keep_rows(shapes: Mapping[str, tuple[int, int, int]], units: Mapping[str, int], ratio: float) -> dict[str, Quota]:
    """Every row of every layer loses the same share (Wanda's comparison group), to one weight: what is over goes to some rows."""
    found = {}
    for name, (g, o, i) in shapes.items():
        whole = round((1 - ratio) * g * o * i)
        # The n-th row ends where n equal parts of the whole do.
        ends = torch.arange(g * o + 1) * whole // (g * o)
        found[name] = Quota(whole, units[name], rows=ends.diff().reshape(g, o))
    return found


def keep_pattern(
    shapes: Mapping[str, tuple[int, int, int]], units: Mapping[str, int], pattern: tuple[int, int]
) -> dict[str, Quota]:
    """n of every m neighbouring inputs, in every row."""
    n, m = pattern
    return {name: Quota(n * (i // m) * g * o, units[name], pattern=pattern) for name, (g, o, i) in shapes.items()}


def floor_of(units: int, ratio: float) -> int:
    """Units that a layer keeps whatever the others need."""
    return ceil(min(FLOOR, (1 - ratio) / 2) * units)


def keep_network(shares: Mapping[str, Share], ratio: float) -> dict[str, Quota]:
    """The best units of the whole network stay, whatever their layer, down to a floor for each layer.

    Where units of several layers tie, the same share of those of each layer stays.
    """
    ranked = {name: share.scores.masked_fill(share.zero, -torch.inf).flatten() for name, share in shares.items()}
    unit = {name: share.unit for name, share in shares.items()}
    room = round((1 - ratio) * sum(unit[name] * len(r) for name, r in ranked.items()))
    bar = _bar(ranked, unit, room)
    counts = {name: int((r > bar).sum()) for name, r in ranked.items()}
    room -= sum(unit[name] * count for name, count in counts.items())
    tied = {name: int((r == bar).sum()) for name, r in ranked.items()}
    for name, more in _spread(tied, unit, room).items():
        counts[name] += more
    floors = {name: floor_of(len(r), ratio) for name, r in ranked.items()}
    settled = _without(list(counts.values()), list(floors.values()))
    return {name: Quota(max(count, floors[name]), unit[name]) for name, count in zip(counts, settled, strict=True)}


def _bar(ranked: Mapping[str, Tensor], unit: Mapping[str, int], room: int) -> float:
    """The largest score for which the units above it fit: nothing is sorted where all units weigh the same."""
    values = torch.cat(list(ranked.values()))
    sizes = set(unit.values())
    if len(sizes) == 1:
        fitting = min(room // sizes.pop(), len(values) - 1)
        return float(values.kthvalue(len(values) - fitting).values)
    weights = torch.cat([torch.full((len(r),), unit[name]) for name, r in ranked.items()]).to(values.device)
    order = torch.argsort(values, descending=True)
    fitting = min(int((weights[order].cumsum(0) <= room).sum()), len(values) - 1)
    return float(values[order[fitting]])


def _spread(tied: Mapping[str, int], unit: Mapping[str, int], room: int) -> dict[str, int]:
    """Of each layer's tied units the same share, to one unit, as many as there is room for."""
    whole = sum(unit[name] * count for name, count in tied.items())
    share = min(room / whole, 1.0) if whole else 0.0
    found = {name: int(share * count) for name, count in tied.items()}
    left = room - sum(unit[name] * count for name, count in found.items())
    for name in sorted(tied, key=lambda name: int(share * tied[name]) - share * tied[name]):
        if found[name] < tied[name] and unit[name] <= left:
            found[name] += 1
            left -= unit[name]
    return found


def _without(counts: Sequence[int], floors: Sequence[int]) -> list[int]:
    """What the floors hold back is taken from the others, so that the sum stays as asked for."""
    missing = sum(max(floor - count, 0) for count, floor in zip(counts, floors, strict=True))
    found = list(counts)
    for i in sorted(range(len(counts)), key=lambda i: floors[i] - counts[i]):
        spare = min(max(counts[i] - floors[i], 0), missing)
        found[i] -= spare
        missing -= spare
    return found


def keep_bound(shares: Mapping[str, Share], ratio: float) -> dict[str, Quota]:
    """OptAlloc: the sum of the rows' error bounds is made least, down to a floor for each layer. Costs count in weights."""
    if any(share.errors is None for share in shares.values()) or len({share.unit for share in shares.values()}) > 1:
        raise UsageError("the budget 'bound' is not possible with this method", "use --budget uniform, row or global")
    room = {name: (~share.zero).sum(2).flatten() for name, share in shares.items()}
    gains = {name: unit_gains(share.errors, room[name]) for name, share in shares.items() if share.errors is not None}
    budget = round((1 - ratio) * sum(g.numel() for g in gains.values()))
    found: dict[str, Tensor] = {}
    while True:
        free = [name for name in gains if name not in found]
        left = budget - sum(int(counts.sum()) for counts in found.values())
        counts = dict(zip(free, allocate([gains[name] for name in free], left, _seeded()), strict=True))
        floors = {name: min(floor_of(gains[name].numel(), ratio), left) for name in free}
        poor = [name for name in free if int(counts[name].sum()) < floors[name]]
        if not poor:
            break
        (found[poor[0]],) = allocate([gains[poor[0]]], floors[poor[0]], _seeded())
    return {
        name: Quota(int(rows.sum()), share.unit, rows=rows.reshape(share.scores.shape[:2]))
        for name, share in shares.items()
        for rows in [(found | counts)[name]]
    }


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def keep_by_trials(trials: Mapping[str, Trials], ratio: float) -> dict[str, Quota]:
    """Layers share what stays so that their losses add up to the least: along the lower hull of each curve, best first."""
    sizes = {name: t.counts[-1] + t.zeros for name, t in trials.items()}
    whole = round((1 - ratio) * sum(sizes.values()))
    counts = {name: min(floor_of(sizes[name], ratio), t.counts[-1]) for name, t in trials.items()}
    edges = []
    for name, tried in trials.items():
        hull = _hull(*tried.refined())
        edges += [((a[1] - b[1]) / (b[0] - a[0]), name, a[0], b[0]) for a, b in pairwise(hull)]
    left = whole - sum(counts.values())
    for _, name, _, high in sorted(edges, key=lambda edge: -edge[0]):
        more = min(max(high - counts[name], 0), max(left, 0))
        counts[name] += more
        left -= more
    return {name: Quota(count) for name, count in counts.items()}


def _hull(counts: Sequence[int], losses: Sequence[float]) -> list[tuple[int, float]]:
    """The lower convex hull of points in rising order of counts."""
    hull: list[tuple[int, float]] = []
    for x, y in zip(counts, losses, strict=True):
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (y - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    return hull


def by_scope(scope: Scope, shares: Mapping[str, Share], ratio: float) -> dict[str, Quota]:
    """The quota of every layer. Raises UsageError for a budget that the method's paper has no bound for."""
    shapes = {name: (s.scores.shape[0], s.scores.shape[1], s.scores.shape[2]) for name, s in shares.items()}
    units = {name: s.unit for name, s in shares.items()}
    match scope:
        case "layer":
            return keep_layers(shapes, units, ratio)
        case "row":
            return keep_rows(shapes, units, ratio)
        case "network" | "gain":
            return keep_network(shares, ratio)
        case "bound":
            return keep_bound(shares, ratio)
