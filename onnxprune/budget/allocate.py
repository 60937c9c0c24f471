"""The budgets: uniform, global and auto, for a share of the channels or for a target of multiplications, parameters or bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.budget.alignment import Choices, settle
from onnxprune.errors import UnknownNameError, UsageError
from onnxprune.network import Axis, Network, Term

Floats = NDArray[np.float64]
Counts = dict[str, int]
BUDGETS = ("auto", "uniform", "global")


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


class Resource:
    """What is rationed: a sum of products of kept counts. Called with counts it gives the share that is left of the whole."""

    def __init__(self, full: Mapping[str, int], terms: Sequence[tuple[int, Term]], new: Sequence[tuple[int, Term]] = ()) -> None:
        """full: the counts when nothing goes; terms: (weight, term), of which the resource is the sum.

        new: terms that the result has besides, and the whole has not.
        """
        self.full = dict(full)
        self._terms = [*terms, *new]
        self._of: dict[str, list[tuple[int, Term]]] = {name: [] for name in full}
        self._near: dict[str, set[str]] = {name: {name} for name in full}
        for weight, term in self._terms:
            groups = {name for axis in term.axes for name in axis.per_channel}
            for name in groups:
                self._of[name].append((weight, term))
                self._near[name] |= groups
        self.whole = max(sum(weight * term.value(self.full) for weight, term in terms), 1)

    def __call__(self, kept: Mapping[str, int]) -> float:
        return self.amount(self.full | dict(kept)) / self.whole

    def amount(self, kept: Mapping[str, int]) -> int:
        """kept: a count for every group."""
        return sum(weight * term.value(kept) for weight, term in self._terms)

    def saved(self, kept: Mapping[str, int], name: str, count: int) -> int:
        """How much less there is when one group goes from kept[name] to `count`; only the terms with this group are computed."""
        new = {**kept, name: count}
        return sum(weight * (term.value(kept) - term.value(new)) for weight, term in self._of[name])

    def near(self, name: str) -> set[str]:
        """The groups whose savings depend on how many channels this one keeps."""
        return self._near[name]


def resource(network: Network, kind: str, *, new_biases: bool = False) -> Resource:
    """'channels', 'macs', 'params' or 'bytes' of a network. new_biases: layers without a bias are going to get one."""
    new: list[tuple[int, Term]] = []
    match kind:
        case "channels":
            terms = [(g.width, Term(g.name, 1, (Axis(0, {g.name: 1}),))) for g in network.groups]
        case "macs":
            terms = [(1, term) for term in network.mac_terms]
        case "params":
            terms = [(1, term) for term in network.parameter_terms]
            new = [(1, term) for term in network.new_bias_terms]
        case "bytes":
            terms = [(network.element_bytes[term.name], term) for term in network.parameter_terms]
            new = [(network.element_bytes[term.name], term) for term in network.new_bias_terms]
        case _:
            raise UnknownNameError("target", kind, ["channels", "macs", "params", "bytes", "latency"])
    return Resource(network.full(), terms, new if new_biases else ())


def by_ratio(budget: str, candidates: Sequence[Candidate], ratio: float) -> Counts:
    """Remove the share `ratio` of all candidates' channels.

    uniform   every group loses the same share
    global    channels compete over the network by score, each group's scores divided by their mean
    auto      the channels go whose loss is smallest (needs the candidates' losses; those without them: uniform)
    """
    if budget not in BUDGETS:
        raise UnknownNameError("budget", budget, BUDGETS)
    blind = [c for c in candidates if c.loss is None]
    if budget == "auto" and 0 < len(blind) < len(candidates):
        seen = [c for c in candidates if c.loss is not None]
        return by_ratio(budget, seen, ratio) | by_ratio("uniform", blind, ratio)
    if budget == "auto" and all(c.loss is not None for c in candidates):
        terms = [(c.choices.width, Term(c.name, 1, (Axis(0, {c.name: 1}),))) for c in candidates]
        return _Descent(candidates, Resource({c.name: c.choices.size for c in candidates}, terms)).to(1 - ratio, exact=False)
    wanted = _global_counts(candidates, ratio) if budget == "global" else [c.choices.size * (1 - ratio) for c in candidates]
    kept = settle([c.choices for c in candidates], wanted)
    return {c.name: k for c, k in zip(candidates, kept, strict=True)}


def by_target(budget: str, candidates: Sequence[Candidate], measure: Resource, share: float) -> Counts:
    """The mildest counts for which `measure` is at most `share`.

    Raises UsageError where even the floors of all groups leave more.
    """
    least = {c.name: c.choices.counts[-1] for c in candidates}
    if measure(least) > share:
        raise UsageError(
            f"a share of {share:g} cannot be reached: {measure(least):.3f} is left when every group is at its floor",
            "ask for a larger share",
        )
    if budget == "auto" and all(c.loss is not None for c in candidates):
        return _Descent(candidates, measure).to(share, exact=True)
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if measure(by_ratio(budget, candidates, middle)) <= share else (middle, high)
    return by_ratio(budget, candidates, high)


def _global_counts(candidates: Sequence[Candidate], ratio: float) -> list[float]:
    """The lowest scores of all go, down to each group's floor; of equal ones those that are low in their own group, so that a
    method that finds all channels alike prunes all groups alike.
    """
    scores = [c.scores / max(float(c.scores.mean()), 1e-30) for c in candidates]
    places = [np.argsort(np.argsort(s, kind="stable"), kind="stable") / len(s) for s in scores]
    owner = np.concatenate([np.full(len(s), i) for i, s in enumerate(scores)])
    order = np.lexsort((np.concatenate(places), np.concatenate(scores)))
    room = np.array([c.choices.size - c.choices.counts[-1] for c in candidates])
    gone = np.zeros(len(candidates), np.int64)
    left = round(ratio * sum(c.choices.size * c.choices.width for c in candidates))
    for i in owner[order]:
        if left >= candidates[i].choices.width and gone[i] < room[i]:
            gone[i] += 1
            left -= candidates[i].choices.width
    return [float(c.choices.size - g) for c, g in zip(candidates, gone, strict=True)]


class _Descent:
    """Take the step with the least loss per resource saved, again and again, until the share is met.

    Losses are replaced by their lower convex hull first, so that a dear first step does not hide cheap ones behind it. The last
    step usually saves too much: afterwards whatever can be given back without exceeding the share is, dearest loss first.
    """

    def __init__(self, candidates: Sequence[Candidate], resource: Resource) -> None:
        self._resource = resource
        self._hulls = {c.name: _hull(c) for c in candidates}
        self._steps = {c.name: c.choices.counts for c in candidates}
        self._at = dict.fromkeys(self._steps, 0)
        self._kept = resource.full | {name: counts[0] for name, counts in self._steps.items()}
        self._left = resource.amount(self._kept)
        self._prices: dict[str, float] = {}

    def to(self, share: float, *, exact: bool) -> Counts:
        """exact: the share must not be exceeded; otherwise the nearer of the two sides is taken."""
        limit = share * self._resource.whole + 1e-9 * self._resource.whole
        above: tuple[int, Counts] | None = None
        while self._left > limit:
            name = self._cheapest()
            if name is None:
                return self._counts()
            above = self._left, self._counts()
            self._move(name, 1)
        self._give_back(limit)
        if above is not None and not exact and above[0] - limit < limit - self._left:
            return above[1]
        return self._counts()

    def _counts(self) -> Counts:
        return {name: self._kept[name] for name in self._steps}

    def _cheapest(self) -> str | None:
        for name, counts in self._steps.items():
            if name not in self._prices and self._at[name] + 1 < len(counts):
                i = self._at[name]
                saved = self._resource.saved(self._kept, name, counts[i + 1])
                self._prices[name] = float(self._hulls[name][i + 1] - self._hulls[name][i]) / max(saved, 1e-9)
        return min(self._prices, key=lambda name: self._prices[name], default=None)

    def _move(self, name: str, by: int) -> None:
        """Go `by` steps along the counts of a group; the prices that this changes are forgotten."""
        self._at[name] += by
        count = self._steps[name][self._at[name]]
        self._left -= self._resource.saved(self._kept, name, count)
        self._kept[name] = count
        for other in self._resource.near(name):
            self._prices.pop(other, None)

    def _give_back(self, limit: float) -> None:
        while True:
            gains = []
            for name, counts in self._steps.items():
                i = self._at[name]
                if i and self._left - self._resource.saved(self._kept, name, counts[i - 1]) <= limit:
                    gains.append((float(self._hulls[name][i] - self._hulls[name][i - 1]), name))
            if not gains:
                return
            self._move(max(gains)[1], -1)


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
