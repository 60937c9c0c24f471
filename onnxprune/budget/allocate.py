"""The budgets: uniform, global and auto, for a share of the channels or for a target of multiplications, parameters or bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from onnxprune.budget.alignment import Choices, settle
from onnxprune.errors import UnknownNameError, UsageError
from onnxprune.network import Cost, Network

Floats = NDArray[np.float64]
Counts = dict[str, int]
BUDGETS = ("auto", "uniform", "global")
Measure = Callable[[Counts], float]


@dataclass(frozen=True)
class Candidate:
    """A group that may lose channels.

    scores   (size,) importance from the method
    loss     (size + 1,) what the network loses if m channels stay, for m = 0 ... size; None without statistics
    """

    choices: Choices
    scores: Floats
    loss: Floats | None

    @property
    def name(self) -> str:
        return self.choices.group


def resource(network: Network, kind: str) -> Measure:
    """What is rationed, as a share of the whole: 'channels', 'macs', 'params' or 'bytes'."""
    whole = network.cost()
    if kind == "channels":
        total = sum(g.size for g in network.groups)
        return lambda kept: sum(kept.values()) / total

    def measure(kept: Counts) -> float:
        return _amount(network.cost(kept), kind) / max(_amount(whole, kind), 1)

    return measure


def _amount(cost: Cost, kind: str) -> int:
    found = {"macs": cost.macs, "params": cost.parameters, "bytes": cost.bytes}
    if kind not in found:
        raise UnknownNameError("target", kind, [*found, "latency"])
    return found[kind]


def by_ratio(budget: str, candidates: Sequence[Candidate], ratio: float) -> Counts:
    """Remove the share `ratio` of all candidates' channels.

    uniform   every group loses the same share
    global    channels compete over the network by score, each group's scores divided by their mean
    auto      the channels go whose loss is smallest (needs the candidates' losses; without them: uniform)
    """
    if budget not in BUDGETS:
        raise UnknownNameError("budget", budget, BUDGETS)
    if budget == "auto" and all(c.loss is not None for c in candidates):
        total = sum(c.choices.size for c in candidates)
        return _greedy(candidates, lambda kept: sum(kept.values()) / total, 1 - ratio, exact=False)
    wanted = _global_counts(candidates, ratio) if budget == "global" else [c.choices.size * (1 - ratio) for c in candidates]
    kept = settle([c.choices for c in candidates], wanted)
    return {c.name: k for c, k in zip(candidates, kept, strict=True)}


def by_target(budget: str, candidates: Sequence[Candidate], measure: Measure, share: float) -> Counts:
    """The mildest counts for which `measure` is at most `share`.

    Raises UsageError where even the floors of all groups leave more.
    """
    least = {c.name: c.choices.counts[-1] for c in candidates}
    if measure(least) > share:
        raise UsageError(
            f"a share of {share:g} cannot be reached: {measure(least):.3f} is left when every group is at its floor",
            "ask for more",
        )
    if budget == "auto" and all(c.loss is not None for c in candidates):
        return _greedy(candidates, measure, share, exact=True)
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if measure(by_ratio(budget, candidates, middle)) <= share else (middle, high)
    return by_ratio(budget, candidates, high)


def _global_counts(candidates: Sequence[Candidate], ratio: float) -> list[float]:
    scores = [c.scores / max(float(c.scores.mean()), 1e-30) for c in candidates]
    owner = np.concatenate([np.full(len(s), i) for i, s in enumerate(scores)])
    order = np.argsort(np.concatenate(scores), kind="stable")
    room = np.array([c.choices.size - c.choices.counts[-1] for c in candidates])
    gone = np.zeros(len(candidates), np.int64)
    left = round(ratio * len(owner))
    for i in owner[order]:
        if left and gone[i] < room[i]:
            gone[i] += 1
            left -= 1
    return [float(c.choices.size - g) for c, g in zip(candidates, gone, strict=True)]


def _greedy(candidates: Sequence[Candidate], measure: Measure, share: float, *, exact: bool) -> Counts:
    """Take the step with the least loss per resource saved, again and again, until the share is met.

    Losses are replaced by their lower convex hull first, so that a dear first step does not hide cheap ones behind it. The last
    step usually saves too much: afterwards whatever can be given back without exceeding the share is, dearest loss first.
    exact: the share must not be exceeded; otherwise the nearer of the two sides is taken.
    """
    hulls = {c.name: _hull(c) for c in candidates}
    steps = {c.name: c.choices.counts for c in candidates}
    at = dict.fromkeys(steps, 0)
    kept = {name: counts[0] for name, counts in steps.items()}
    now = measure(kept)
    while now > share + 1e-12:
        name = _cheapest(steps, hulls, at, kept, now, measure)
        if name is None:
            return kept
        at[name] += 1
        before, kept = kept, kept | {name: steps[name][at[name]]}
        after = measure(kept)
        if not exact and abs(before_share := now - share) < abs(after - share) and before_share >= 0:
            return before
        now = after
    return _give_back(steps, hulls, at, kept, measure, share)


def _cheapest(
    steps: Mapping[str, Sequence[int]],
    hulls: Mapping[str, Floats],
    at: Mapping[str, int],
    kept: Counts,
    now: float,
    measure: Measure,
) -> str | None:
    best, choice = inf, None
    for name, counts in steps.items():
        i = at[name]
        if i + 1 == len(counts):
            continue
        saved = now - measure(kept | {name: counts[i + 1]})
        price = (hulls[name][i + 1] - hulls[name][i]) / max(saved, 1e-15)
        if price < best:
            best, choice = price, name
    return choice


def _give_back(
    steps: Mapping[str, Sequence[int]],
    hulls: Mapping[str, Floats],
    at: dict[str, int],
    kept: Counts,
    measure: Measure,
    share: float,
) -> Counts:
    while True:
        gains = []
        for name, counts in steps.items():
            i = at[name]
            if i and measure(kept | {name: counts[i - 1]}) <= share + 1e-12:
                gains.append((hulls[name][i] - hulls[name][i - 1], name))
        if not gains:
            return kept
        _, name = max(gains)
        at[name] -= 1
        kept = kept | {name: steps[name][at[name]]}


def _hull(candidate: Candidate) -> Floats:
    """Loss at each allowed count, on its lower convex hull over the counts."""
    assert candidate.loss is not None  # callers ask before
    counts = np.array(candidate.choices.counts, float)
    losses = np.maximum.accumulate(candidate.loss[list(candidate.choices.counts)])
    keep = [0]
    for i in range(1, len(counts)):
        while len(keep) > 1 and _slope(counts, losses, keep[-1], i) < _slope(counts, losses, keep[-2], keep[-1]):
            keep.pop()
        keep.append(i)
    return np.asarray(np.interp(-counts, -counts[keep], losses[keep]))


def _slope(counts: Floats, losses: Floats, a: int, b: int) -> float:
    return float((losses[b] - losses[a]) / (counts[a] - counts[b]))
