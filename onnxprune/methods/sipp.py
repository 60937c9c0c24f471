"""Baykal, Liebenwein, Gilitschenski, Feldman, Rus: "SiPPing Neural Networks: Sensitivity-informed Provable Pruning" (2019).

Row i of a layer (a filter, a neuron) keeps m_i of its weights, by their empirical sensitivity s_ij in [0, 1] (sensitivity.py).

    S_i      = sum_j s_ij                               q_ij = s_ij / S_i
    eps_det  = C * sum of the s that go                 Lemma 6: relative error of an output of row i
    eps_rand = u + sqrt(u^2 + 6 u), u = S~ / N          Lemma 7, 2 exp(-3 eps^2 N / (S C (6 + 2 eps))) = delta / (8 eta)
    S~       = C S_i / 3 * log(16 eta / delta)          N draws with probability q give m_i different weights on average
    OptAlloc = the m_i that make the sum of eps_i least, the budget `bound` (section 4)
    |S|      = K log(8 eta rho / delta) samples         eta: output scalars of all layers, rho: weights of the largest row

C, K, delta are options of these names. eta of the bounds is positions * rows of the layer times the number of layers, so that the
failures of all layers together stay below delta.

Departures from the paper's text:
* it draws N times, and how many different weights that gives is random; here exactly m_i are kept: the m_i first of exponential
  clocks with rates q, which is sampling until m_i are seen (algorithms.md 1.3). Instead of n / (N q), which then is biased, what
  stays is divided by the probability 1 - exp(-q t) that its clock rings before t, the time of the first weight that goes:
  exactly unbiased. eps_rand is that of the N draws that give m_i different weights on average;
* OptAlloc takes the hull of the error curves instead of a convex solver (allocation.py), and needs no rounding of the solution
  but among equals. Of no draws at all eps_rand is infinite; the curve takes half a draw there;
* rows are not split by sign, as in the paper and unlike the authors' code; C = 3 and delta = 1e-16 are the code's;
* output positions are sampled (option patches), which makes s too small rather than too large.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil, isfinite, log
from typing import Any, ClassVar

import torch
from torch import Tensor

from onnxprune.allocation import allocate, unit_gains
from onnxprune.contract import LayerPlan, LayerView, Option, Quota, Scope, Statistic, WeightMethod, method
from onnxprune.errors import UsageError
from onnxprune.methods.sensitivity import PATCHES, Sensitivity
from onnxprune.methods.sipp_bounds import Signs, layer_facts, network_facts

PAPER = "Baykal et al., SiPPing Neural Networks (2019)"
# Half octaves of the number of draws that a table covers, and of probabilities: 2^64 is more than anybody draws.
OCTAVES = 64
# Rows that are tabulated together: a few megabytes.
CHUNK = 32


def eps_det(total: Tensor | float, constant: float) -> Tensor:
    """Lemma 6: relative error of an output when weights with sensitivities that add up to `total` go."""
    return constant * torch.as_tensor(total)


def eps_rand(total: Tensor | float, draws: Tensor | float, constant: float, failures: float) -> Tensor:
    """Lemma 7: relative error of an output when its row, with sensitivities that add up to `total`, is drawn `draws` times.

    failures   16 eta / delta: it holds with probability 1 - delta for all eta outputs together
    """
    u = constant * torch.as_tensor(total, dtype=torch.float64) / 3 * log(failures) / torch.as_tensor(draws)
    return u + (u**2 + 6 * u).sqrt()


def sample_size(outputs: int, row: int, delta: float, constant: float) -> int:
    """|S| = K log(8 eta rho / delta): samples from which sensitivities are estimated well enough (Algorithm 2, line 1)."""
    return ceil(constant * log(8 * outputs * row / delta))


def draws_for(probabilities: Tensor, wanted: Tensor) -> Tensor:
    """(rows, any): draws with replacement that give so many different items on average, U(N) = sum_j 1 - (1 - q_j)^N.

    probabilities (rows, items) add up to 1 or are all 0; infinite where as many are wanted as there are. Items of about the same
    probability (half an octave) count as equal and N is interpolated: right to about one percent.
    """
    q = probabilities.double()
    support = (q > 0).sum(1, keepdim=True)
    relative = q / q.amax(1, keepdim=True).clamp(min=1e-300)
    bins = (-2 * torch.log2(relative.clamp(min=1e-300))).clamp(max=2 * OCTAVES - 1).long()
    blank = q.new_zeros(len(q), 2 * OCTAVES)
    count = blank.scatter_add(1, bins, (q > 0).double())
    mean = blank.scatter_add(1, bins, q) / count.clamp(min=1)
    numbers = 2 ** (torch.arange(2 * OCTAVES, dtype=torch.float64, device=q.device) / 2)
    parts = zip(torch.split(count, CHUNK), torch.split(torch.log1p(-mean), CHUNK), strict=True)
    seen = torch.cat([-(torch.expm1(numbers[:, None] * missed[:, None]) * c[:, None]).sum(2) for c, missed in parts])
    seen = seen.cummax(1).values
    goal = wanted.double()
    upper = torch.searchsorted(seen, goal.contiguous()).clamp(1, 2 * OCTAVES - 1)
    low, high = seen.gather(1, upper - 1), seen.gather(1, upper)
    part = ((goal - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
    found = 2 ** ((upper - 1 + part) / 2)
    return torch.where(goal <= 0, 0.0, torch.where(goal >= support, torch.inf, found))


def sample(probabilities: Tensor, counts: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(rows, items) which `counts` items of each row are kept, and the factor on each that makes the whole unbiased.

    Rows with no more possible items than are to stay keep all of these, as they are.
    """
    q = probabilities.double()
    uniform = torch.rand(q.shape, generator=rng, dtype=torch.float64).to(q.device)
    times = torch.where(q > 0, -torch.log1p(-uniform) / q.clamp(min=1e-300), torch.inf)
    ordered, order = torch.sort(times, dim=1, stable=True)
    place = torch.argsort(order, dim=1)
    keep = (place < counts[:, None]) & (q > 0)
    border = torch.nn.functional.pad(ordered, (0, 1), value=torch.inf).gather(1, counts[:, None])
    factors = torch.where(keep & torch.isfinite(border), 1 / -torch.expm1(-q * border).clamp(max=-1e-300), 1.0)
    return keep, factors


class _Sipp(WeightMethod):
    """What the four have in common: sensitivities, constants, rows and what the report tells of the bound."""

    target = "weight"
    paper = PAPER
    needs = (Sensitivity, Signs)
    scope: ClassVar[Scope] = "bound"
    options: ClassVar[dict[str, Option]] = {
        "C": Option(3.0, "constant of the sensitivities' tails (C): every bound is a multiple of it (authors' code: 3)"),
        "K": Option(3.0, "constant of the number of samples (K); only a warning comes of it"),
        "delta": Option(1e-16, "probability with which the bounds may fail (delta); the authors' code has 1e-16"),
        "patches": Option(PATCHES, "output positions per sample that sensitivities are measured at; 0: all, as in the paper"),
        "patch_reduce": Option("max", "over these positions: max (the paper) or mean (the authors' code for sipp-det)"),
    }

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        for name in ("C", "K"):
            if not (isfinite(self.values[name]) and self.values[name] > 0):
                raise UsageError(f"{name} is {self.values[name]}", "give a number above 0")
        if not 0 < self.values["delta"] < 1:
            raise UsageError(f"delta is {self.values['delta']}", "it is a probability: give a number between 0 and 1")
        Sensitivity(torch.ones(1, 1, 1), self.values["patches"], self.values["patch_reduce"])  # refuses what it cannot do

    def counter(self, kind: type[Statistic], matrix: Tensor | None) -> Statistic:
        if kind is Sensitivity and matrix is not None:
            return Sensitivity(matrix, self.values["patches"], self.values["patch_reduce"])
        return super().counter(kind, matrix)

    def score(self, view: LayerView) -> Tensor:
        if not bool(torch.isfinite(view.matrix).all()):
            return view.matrix
        return view.statistic(Sensitivity).value.to(view.matrix) * (view.matrix != 0)

    def failures(self, view: LayerView) -> float:
        """16 eta / delta, delta shared out among the layers."""
        outputs = view.positions * view.matrix.shape[0] * view.matrix.shape[1]
        return float(16 * outputs * view.place[1] / self.values["delta"])

    def facts(self, view: LayerView, plan: LayerPlan) -> Mapping[str, Any]:
        return layer_facts(view, plan)

    def bounds(self, layers: Mapping[str, Mapping[str, Any]], samples: int) -> Mapping[str, Any]:
        outputs, row = sum(f["outputs"] for f in layers.values()), max(f["row"] for f in layers.values())
        wanted = sample_size(outputs, row, self.values["delta"], self.values["K"])
        told = network_facts(layers) | {"samples": samples, "samples_wanted": wanted}
        if self.values["patches"]:
            told["summary"] += f"; sensitivities from at most {int(self.values['patches'])} output positions per sample"
        if samples < wanted:
            told["warnings"] = [
                f"SiPP's bounds ask for {wanted} calibration samples, {samples} were looked at: sensitivities may be too small"
            ]
        return told


def _curve_det(scores: Tensor, constant: float) -> Tensor:
    """(rows, in + 1): eps_det when the m largest stay."""
    falling = scores.double().flatten(0, 1).sort(dim=1).values.cumsum(1).flip(1)
    return constant * torch.nn.functional.pad(falling, (0, 1))


def _probabilities(scores: Tensor) -> Tensor:
    """(rows, in): s / S, zero in rows without sensitivity."""
    rows = scores.double().flatten(0, 1)
    return rows / rows.sum(1, keepdim=True).clamp(min=1e-300)


@method
class SippDet(_Sipp):
    """The m_i weights with the largest sensitivities stay, as they are (SiPPDet)."""

    name = "sipp-det"

    def errors(self, view: LayerView, scores: Tensor) -> Tensor | None:
        return _curve_det(scores, self.values["C"])

    def decide(self, view: LayerView, scores: Tensor, quota: Quota, rng: torch.Generator) -> LayerPlan:
        keep = quota.choose(scores, view)
        gone = (scores.double() * ~keep).sum(2)
        return LayerPlan(keep, error=float(eps_det(gone, self.values["C"]).max()))


@method
class SippSimple(SippDet):
    """SiPPDet without OptAlloc: the largest sensitivities of the whole network stay (SiPPSimple)."""

    name = "sipp-simple"
    scope = "network"


@method
class SippRand(_Sipp):
    """m_i weights of each row are drawn by sensitivity and reweighed, so that the row is right on average (SiPPRand).

    Weights that no sample has a use for are never drawn; they stay where a row has room left. With a pattern the draws say which
    weights stay, and none is reweighed.
    """

    name = "sipp-rand"

    def errors(self, view: LayerView, scores: Tensor) -> Tensor | None:
        return self.curve(view, scores)

    def curve(self, view: LayerView, scores: Tensor) -> Tensor:
        """(rows, in + 1): eps_rand(N(m)); at m = 0 that of half a draw."""
        q = _probabilities(scores)
        wanted = torch.arange(q.shape[1] + 1, device=q.device).expand(len(q), -1)
        return self.eps(view, scores, draws_for(q, wanted).clamp(min=0.5))

    def eps(self, view: LayerView, scores: Tensor, draws: Tensor) -> Tensor:
        return eps_rand(scores.double().flatten(0, 1).sum(1, keepdim=True), draws, self.values["C"], self.failures(view))

    def row_bounds(self, view: LayerView, scores: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """(rows,) eps_rand and eps_det of so many weights in each row."""
        draws = draws_for(_probabilities(scores), counts[:, None]).clamp(min=0.5)
        fixed = _curve_det(scores, self.values["C"]).gather(1, counts[:, None])
        return self.eps(view, scores, draws)[:, 0], fixed[:, 0]

    def random_rows(self, random: Tensor, fixed: Tensor) -> Tensor:
        """(rows,) bool: which rows are drawn, from their eps_rand and eps_det; the others keep their largest sensitivities."""
        return torch.ones_like(random, dtype=torch.bool)

    def decide(self, view: LayerView, scores: Tensor, quota: Quota, rng: torch.Generator) -> LayerPlan:
        q = _probabilities(scores)
        if quota.pattern is not None:
            uniform = torch.rand(q.shape, generator=rng, dtype=torch.float64).to(q.device)
            earliest = (q.clamp(min=1e-300) / -torch.log1p(-uniform).clamp(max=-1e-300)).reshape(scores.shape)
            return LayerPlan(quota.choose(earliest.log(), view))
        counts = self._counts(view, scores, quota)
        chosen, factors = sample(q, counts, rng)
        random, fixed = self.row_bounds(view, scores, counts)
        drawn = self.random_rows(random, fixed)
        best = replace(quota, rows=counts.reshape(scores.shape[:2])).choose(scores, view)
        # Where all that can be drawn stays, so does the rest as far as there is room.
        drawn &= counts < (q > 0).sum(1)
        keep = torch.where(drawn[:, None], chosen, best.flatten(0, 1)).reshape(scores.shape)
        factors = torch.where(drawn[:, None], factors, 1.0).reshape(scores.shape)
        error = float(torch.where(drawn, random, fixed).max())
        return LayerPlan(keep, (view.matrix * factors).to(view.matrix) * keep if bool(drawn.any()) else None, error)

    def _counts(self, view: LayerView, scores: Tensor, quota: Quota) -> Tensor:
        """(rows,) how many stay in each: as prescribed, else OptAlloc within the layer; no more than there are."""
        there = (view.matrix != 0).flatten(0, 1).sum(1)
        if quota.rows is not None:
            return torch.minimum(quota.rows.flatten().to(there.device), there)
        curves = self.errors(view, scores)
        assert curves is not None
        (counts,) = allocate([unit_gains(curves, there)], quota.keep, torch.Generator().manual_seed(0))
        return torch.minimum(counts.to(there.device), there)


@method
class SippHybrid(SippRand):
    """Row by row SiPPRand or SiPPDet, whichever has the smaller bound (SiPPHybrid)."""

    name = "sipp-hybrid"

    def errors(self, view: LayerView, scores: Tensor) -> Tensor | None:
        return torch.minimum(self.curve(view, scores), _curve_det(scores, self.values["C"]))

    def random_rows(self, random: Tensor, fixed: Tensor) -> Tensor:
        return random < fixed
