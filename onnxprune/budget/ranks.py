"""At which rank every layer stands: each the same share of its parameters, or where the spectra say that the least is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from onnxprune.errors import UsageError

# None: the layer stays whole.
Ranks = dict[str, int | None]
# Halvings of the ratio: a thousandth of a millionth of the parameters.
HALVINGS = 30


@dataclass(frozen=True)
class Spectrum:
    """A layer of (out, inputs) weights; energies: what every rank is worth, the most first.

    price   what a weight costs: 1, or its multiplications where these are to go
    gain    what the energies, squared errors of the layer's outputs, do to the model's; None: unknown, then every layer's energy
            as a whole counts the same
    """

    name: str
    out: int
    inputs: int
    energies: Sequence[float]
    price: int = 1
    gain: float | None = None

    @property
    def whole(self) -> int:
        return self.price * self.out * self.inputs

    @property
    def per_rank(self) -> int:
        return self.price * (self.out + self.inputs)

    @property
    def highest(self) -> int:
        """The largest rank with fewer parameters than before, 0 where there is none."""
        return min((self.whole - 1) // self.per_rank, self.out, self.inputs)

    def loss(self, rank: int | None) -> float:
        """Share of the energy that is lost."""
        total = sum(self.energies)
        return 0.0 if rank is None or not total else sum(self.energies[rank:]) / total

    @cached_property
    def steps(self) -> list[tuple[float, int, int | None]]:
        """(gain per price, price, rank it leads to), from rank 1 up to the whole layer, gains falling.

        The lower convex hull of the loss over the price: ranks that a mixture of its neighbours would beat are left out.
        """
        worth = 1 / (sum(self.energies) or 1.0) if self.gain is None else self.gain
        points: list[tuple[int, float, int | None]] = []
        left = sum(self.energies)
        for rank in range(1, self.highest + 1):
            left -= self.energies[rank - 1]
            points.append((rank * self.per_rank, max(left, 0.0) * worth, rank))
        points.append((self.whole, 0.0, None))
        hull: list[tuple[int, float, int | None]] = []
        for point in points:
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
                hull.pop()
            hull.append(point)
        return [(_slope(a, b), b[0] - a[0], b[2]) for a, b in pairwise(hull)]


def _slope(a: tuple[int, float, int | None], b: tuple[int, float, int | None]) -> float:
    return (a[1] - b[1]) / (b[0] - a[0])


def uniform(spectra: Sequence[Spectrum], ratio: float) -> Ranks:
    """floor((1 - ratio) out in / (out + in)), at least 1: every layer loses the same share of its parameters."""
    if not ratio:
        return dict.fromkeys((s.name for s in spectra), None)
    return {s.name: min(max(int((1 - ratio) * s.whole / s.per_rank), 1), s.highest) or None for s in spectra}


def by_spectrum(spectra: Sequence[Spectrum], ratio: float) -> Ranks:
    """All layers together lose this share of their price: where what is lost by that is worth least."""
    if not ratio:
        return uniform(spectra, 0)
    ranks: Ranks = {s.name: 1 if s.highest else None for s in spectra}
    room = (1 - ratio) * sum(s.whole for s in spectra) - sum(s.per_rank if s.highest else s.whole for s in spectra)
    steps = [(-gain, s.name, number) for s in spectra if s.highest for number, (gain, _, _) in enumerate(s.steps)]
    known = {s.name: s for s in spectra}
    stopped: set[str] = set()
    for gain, name, number in sorted(steps, key=lambda step: step[0]):
        layer = known[name]
        _, price, rank = layer.steps[number]
        if name in stopped or not gain:
            continue
        if price > room:
            # Part of the way: every rank on it loses less than the one before.
            stopped.add(name)
            before = ranks[name] or 1
            rank = min(before + max(int(room / layer.per_rank), 0), layer.highest)
            price = (rank - before) * layer.per_rank
        ranks[name] = rank
        room -= price
    return ranks


def share_gone(spectra: Sequence[Spectrum], ranks: Mapping[str, int | None]) -> float:
    """What these ranks take of the price of all layers."""
    left = sum(s.whole if (rank := ranks[s.name]) is None else rank * s.per_rank for s in spectra)
    return 1 - left / max(sum(s.whole for s in spectra), 1)


def by_target(choose: Callable[[float], Ranks], measure: Callable[[Mapping[str, int | None]], float], share: float) -> Ranks:
    """The mildest ranks that `choose` gives for any ratio at which at most `share` is left by `measure`."""
    low, high = 0.0, 1.0
    if measure(choose(low)) <= share:
        return choose(low)
    best = choose(high)
    if (least := measure(best)) > share:
        raise UsageError(
            f"a share of {share:g} cannot be reached: with every layer at rank 1 {least:.3f} is left", "ask for a larger share"
        )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        ranks = choose(middle)
        if measure(ranks) <= share:
            high, best = middle, ranks
        else:
            low = middle
    return best
