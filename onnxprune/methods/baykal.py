"""Baykal et al.: weights sampled, or the best of them kept, by empirical sensitivity; each neuron's signs apart.

coreset-weight-rand, coreset-weight-det   "SiPPing Neural Networks" (2019) as "When Are Neural Pruning Approximation Bounds
                                          Useful?" quotes and measures it: Algorithms 1 and 2, Theorems A.1 and A.2
corenet, corenet+, corenet++              "Data-Dependent Coresets for Compressing Neural Networks" (ICLR 2019)

    s_j      = max over samples of w_j a_j / sum_k w_k a_k, k of the same sign (see Sensitivity)     score (groups, out, in)
    S        = sum of s_j over the weights of one sign of one neuron: a "part" below
    q_j      = s_j / S, w^_j = n_j / (N q_j) w_j after n_j of N draws hit j
    eps      of Theorem A.1: u + sqrt(u^2 + 6 u), u = S K log(4 / delta) / N
             of Theorem A.2: 3 K * sum of the s_j that go
             of CoreNet: N = 8 S K log(8 eta / delta) / eps^2

eps is relative to sum_k |w_k a_k|: |z^ - z| <= eps |z| holds for each part alone, and for the neuron only where nothing cancels.
The sums leave out the bias, which is never pruned. With probability 1 - delta per part, for inputs drawn as the samples were.

Departures from the papers:
* all parts of a layer share one clock: a part gets draws in proportion to its S, which is what one eps for all of them means;
* sparsity-first draws by exponential clocks until the wanted number of weights is hit, or all that can be: the paper's loop need
  not end. For N the bound takes the draws that were made;
* a part of which every weight was hit is left as it was: reweighing it would be noise and save nothing;
* weights that no sample made a share of anything have s = 0 and go, however much room the quota has;
* with --pattern the survivors of a draw are not reweighed: within a block of M nothing is known of N.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from onnxprune.contract import LayerPlan, LayerView, Option, Quota, Statistic, WeightMethod, method
from onnxprune.errors import UsageError
from onnxprune.methods.coreset import clocks
from onnxprune.methods.sensitivity import PATCHES, Sensitivity

SIPP = "Baykal et al., SiPPing Neural Networks, as in When Are Neural Pruning Approximation Bounds Useful?"
CORENET = "Baykal et al., Data-Dependent Coresets for Compressing Neural Networks (ICLR 2019)"
# Rows that candidates are judged by, one in so many of those that come.
SECOND, EVERY = 256, 5
# More hits than this are as good as expected, and more draws than this do not fit into 64 bits.
MANY_HITS, MOST_DRAWS = 1e12, 1 << 62
# Draws per unit of S beyond which nothing changes; an eps that is hardly more than 0 asks for infinitely many.
LONGEST = 1e200
# Times at which the expected number of distinct weights is computed.
GRID = 96


class HeldOut(Sensitivity):
    """Sensitivities of most rows, and a second batch of those in between: `second` (rows, groups, in), SECOND at most."""

    def __init__(self, matrix: Tensor, patches: int = PATCHES) -> None:
        super().__init__(matrix, patches)
        self.second = matrix.new_zeros(0, matrix.shape[0], matrix.shape[2])

    def add(self, rows: Tensor) -> None:
        held = rows[::EVERY][: SECOND - len(self.second)].float()
        self.second = torch.cat([self.second, held])
        rest = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        rest[: len(held) * EVERY : EVERY] = False
        super().add(rows[rest] if len(rows) > 1 else rows)

    def merge(self, other: Self) -> None:
        super().merge(other)
        self.second = torch.cat([self.second, other.second])[:SECOND]

    def bytes(self, groups: int, out: int, inputs: int) -> int:
        return super().bytes(groups, out, inputs) + 4 * SECOND * groups * inputs


@dataclass(frozen=True)
class Parts:
    """The weights of a layer that can be drawn, by the sign within their row. All (groups, out, in) but `total`.

    rates   s_j where the weight is not zero: how often it is drawn per unit of time
    total   (2, groups, out): S of the positive and of the negative part
    """

    rates: Tensor
    positive: Tensor

    @classmethod
    def of(cls, view: LayerView, scores: Tensor) -> Parts:
        return cls(scores.double().masked_fill(view.matrix == 0, 0.0), view.matrix > 0)

    def sums(self, values: Tensor) -> Tensor:
        """(groups, out, in) -> (2, groups, out)."""
        first = torch.where(self.positive, values, 0).sum(2)
        return torch.stack([first, values.sum(2) - first])

    def spread(self, sums: Tensor) -> Tensor:
        """(2, groups, out) -> (groups, out, in)."""
        return torch.where(self.positive, sums[0][..., None], sums[1][..., None])


class _Sensitive(WeightMethod):
    """What all of them share: the score, and the options of the bound."""

    target = "weight"
    needs: ClassVar[tuple[type[Statistic], ...]] = (Sensitivity,)
    options: ClassVar[dict[str, Option]] = {
        "K": Option(2.0, "K of Assumption A.3: the maximum over samples may be K times too small"),
        "delta": Option(0.5, "delta, the probability with which a neuron's bound may fail"),
        "patches": Option(PATCHES, "output positions per sample that sensitivities are taken from; 0: all"),
    }

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if not self.values["K"] > 0:
            raise UsageError(f"K is {self.values['K']}", "give a number above 0")
        if not 0 < self.values["delta"] < 1:
            raise UsageError(f"delta is {self.values['delta']}", "it is a probability: give a number between 0 and 1")
        Sensitivity(torch.ones(1, 1, 1), self.values["patches"])  # refuses what it cannot do

    def counter(self, kind: type[Statistic], matrix: Tensor | None) -> Statistic:
        assert matrix is not None, "sensitivities need the weights"
        return kind(matrix, int(self.values["patches"]))  # type: ignore[call-arg]

    def score(self, view: LayerView) -> Tensor:
        found = next(s for kind in self.needs if isinstance(s := view.statistic(kind), Sensitivity))
        # What no number is a weight's share of does not get lost: it is refused.
        return found.value.to(view.matrix) + 0 * view.matrix

    def facts(self, view: LayerView, plan: LayerPlan) -> Mapping[str, Any]:
        """Nothing of its own: a bound is told where no refit has changed the weights (decide.bounds)."""
        return {}


@method
class CoresetWeightDet(_Sensitive):
    """Algorithm 2: the weights with the largest sensitivities stay as they are. Error-first each part is cut by itself."""

    name = "coreset-weight-det"
    paper = SIPP + ", Algorithm 2, Theorem A.2"

    @property
    def constant(self) -> float:
        return 3 * float(self.values["K"])

    def errors(self, view: LayerView, scores: Tensor) -> Tensor:
        """3 K times the sum of what goes, of the worse part of each row."""
        parts = Parts.of(view, scores)
        ranked = scores.double().masked_fill(view.matrix == 0, -torch.inf)
        order = torch.argsort(ranked, dim=2, descending=True, stable=True)
        rates = parts.rates.gather(2, order)
        positive = parts.positive.gather(2, order)
        left = [torch.where(mask, rates, 0).flip(2).cumsum(2).flip(2) for mask in (positive, ~positive)]
        worst = torch.nn.functional.pad(torch.maximum(*left), (0, 1))
        return self.constant * worst.flatten(0, 1)

    def within(self, view: LayerView, scores: Tensor, epsilon: float, rng: torch.Generator) -> LayerPlan:
        parts = Parts.of(view, scores)
        keep = torch.zeros_like(parts.positive)
        worst = 0.0
        for mask in (parts.positive, ~parts.positive):
            ranked, order = torch.where(mask, parts.rates, torch.inf).sort(dim=2, stable=True)
            lost = self.constant * ranked.cumsum(2)
            stays = (lost > epsilon) & torch.isfinite(ranked)
            keep |= torch.zeros_like(keep).scatter(2, order, stays)
            worst = max(worst, float(torch.where(lost <= epsilon, lost, 0).max()))
        return LayerPlan(keep & (view.matrix != 0), error=worst)


class _Sampler(_Sensitive):
    """Weights drawn at a rate of s_j; a subclass says what error follows from the time, and which weights stay undrawn."""

    may_keep_fewer = True

    @abstractmethod
    def error_at(self, time: Tensor, view: LayerView) -> Tensor:
        """eps of a part that got `time` draws per unit of its S."""

    @abstractmethod
    def time_for(self, epsilon: float, view: LayerView) -> float:
        """The inverse."""

    def sure(self, rates: Tensor, time: Tensor) -> Tensor:
        """bool: kept without being drawn."""
        return torch.zeros_like(rates, dtype=torch.bool)

    def arrivals(self, rates: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """When each weight is first drawn, and when it is in: the same unless some stay undrawn."""
        drawn = clocks(rates.flatten().cpu(), rng).reshape(rates.shape).to(rates.device)
        return drawn, drawn

    def decide(self, view: LayerView, scores: Tensor, quota: Quota, rng: torch.Generator) -> LayerPlan:
        if quota.keep >= scores.numel():
            return LayerPlan(torch.ones_like(scores, dtype=torch.bool), error=0.0, draws=0)
        parts = Parts.of(view, scores)
        drawn, entered = self.arrivals(parts.rates, rng)
        keep = quota.choose(-entered, view) & (parts.rates > 0)
        if quota.pattern is not None:
            return LayerPlan(keep)
        ends = torch.where(keep, entered, 0.0)
        end = ends.amax(2, keepdim=True) if quota.rows is not None else ends.amax().expand(*ends.shape[:2], 1)
        # What is in without having been drawn is sure to stay, even where rounding has s t just below 1.
        sampled = keep & ~self.sure(parts.rates, end) & (drawn <= end)
        expected = torch.where(sampled, parts.rates * (end - drawn).clamp(min=0), 0.0)
        # The first hit, and further ones up to the end.
        hits = torch.where(sampled, 1 + _poisson(expected, rng), 0.0)
        return self._plan(view, parts, keep, sampled, hits)

    def within(self, view: LayerView, scores: Tensor, epsilon: float, rng: torch.Generator) -> LayerPlan:
        """As many draws as the theorem asks for, with replacement; how many weights they hit is an outcome."""
        parts = Parts.of(view, scores)
        time = parts.rates.new_tensor(min(self.time_for(epsilon, view), LONGEST))
        sure = self.sure(parts.rates, time) & (parts.rates > 0)
        rates = torch.where(sure, 0.0, parts.rates)
        generator = np.random.default_rng(int(torch.randint(1 << 62, (), generator=rng)))
        hits = torch.zeros_like(rates)
        for mask in (parts.positive, ~parts.positive):
            part = torch.where(mask, rates, 0.0).flatten(0, 1)
            total = part.sum(1, keepdim=True)
            draws = (total[:, 0] * time).ceil().clamp(max=float(MOST_DRAWS)).cpu().numpy().astype(np.int64)
            chances = (part / total.clamp(min=1e-300)).cpu().numpy()
            # numpy gives what rounding leaves of the sum to the last entry: that must be one that can be hit.
            order = np.argsort(chances, axis=1, kind="stable")
            counts = np.zeros_like(chances)
            np.put_along_axis(counts, order, generator.multinomial(draws, np.take_along_axis(chances, order, 1)), 1)
            hits += torch.from_numpy(counts).to(hits).reshape(hits.shape)
        return self._plan(view, parts, sure | (hits > 0), (hits > 0), hits)

    def _plan(self, view: LayerView, parts: Parts, keep: Tensor, sampled: Tensor, hits: Tensor) -> LayerPlan:
        """n_j / (N q_j) for what was drawn; parts of which all is there stay as they were."""
        can = parts.rates > 0
        rest = torch.where(can & (sampled | ~keep), parts.rates, 0.0)  # the distribution of the draws: what is not sure to stay
        totals, draws = parts.sums(rest), parts.sums(hits)
        whole = parts.sums((can & ~keep).double()) == 0
        factor = hits * parts.spread(totals) / (parts.spread(draws) * parts.rates).clamp(min=1e-300)
        factor = torch.where(sampled & ~parts.spread(whole), factor, 1.0)
        time = torch.where(totals > 0, draws / totals.clamp(min=1e-300), torch.inf)
        errors = torch.where(whole, 0.0, torch.where(draws > 0, self.error_at(time.clamp(min=1e-300), view), 1.0))
        matrix = (view.matrix.double() * factor * keep).to(view.matrix.dtype)
        return LayerPlan(keep, matrix, float(errors.max()), min(int(draws.sum()), MOST_DRAWS))

    def errors(self, view: LayerView, scores: Tensor) -> Tensor:
        """eps when m distinct weights of the row are expected to be there, m = 0 ... in; 0 once all that can be drawn are."""
        rates = Parts.of(view, scores).rates.flatten(0, 1)
        support, total = (rates > 0).sum(1), rates.sum(1)
        if not bool(support.any()):
            return rates.new_zeros(len(rates), rates.shape[1] + 1)
        slowest = max(float(rates[rates > 0].min()), 1e-9 * float(rates.max()))
        times = torch.logspace(float((0.1 / total.max()).log10()), float(np.log10(50 / slowest)), GRID, dtype=torch.float64)
        times = times.to(rates.device)
        distinct = torch.stack([self._distinct(rates, time) for time in times], 1)  # (rows, GRID), ascending
        counts = torch.arange(rates.shape[1] + 1, device=rates.device, dtype=torch.float64).expand(len(rates), -1).contiguous()
        # The last time of the grid with at most m distinct ones: never more draws than there are.
        at = (torch.searchsorted(distinct.contiguous(), counts, right=True) - 1).clamp(min=0)
        curve = self.error_at(times[at], view)
        return torch.where(counts >= support[:, None], 0.0, curve)

    def _distinct(self, rates: Tensor, time: Tensor) -> Tensor:
        """(rows,): how many of a row's weights are expected to be in at that time."""
        chance = torch.where(self.sure(rates, time) & (rates > 0), 1.0, -torch.expm1(-rates * time))
        return chance.sum(1)


def _poisson(expected: Tensor, rng: torch.Generator) -> Tensor:
    few = expected.clamp(max=MANY_HITS).cpu()
    return torch.where(expected > MANY_HITS, expected, torch.poisson(few, generator=rng).to(expected.device))


@method
class CoresetWeightRand(_Sampler):
    """Algorithm 1: weights sampled by q, reweighed; eps by Theorem A.1."""

    name = "coreset-weight-rand"
    paper = SIPP + ", Algorithm 1, Theorem A.1"

    @property
    def _factor(self) -> float:
        return float(self.values["K"]) * log(4 / self.values["delta"])

    def error_at(self, time: Tensor, view: LayerView) -> Tensor:
        u = self._factor / time
        return u + (u * u + 6 * u).sqrt()

    def time_for(self, epsilon: float, view: LayerView) -> float:
        return self._factor * (6 / epsilon + 2) / epsilon


@method
class CoreNet(_Sampler):
    """Weights sampled by q, reweighed; N = 8 S K log(8 eta / delta) / eps^2 with eta the neurons of the layer.

    The paper's eta counts the network's neurons and its eps is split over the layers; here each layer has its own. K and delta
    are those of the later papers, as this one gives none.
    """

    name = "corenet"
    paper = CORENET

    def _factor(self, view: LayerView) -> float:
        return 8 * float(self.values["K"]) * log(8 * view.matrix.shape[0] * view.matrix.shape[1] / self.values["delta"])

    def error_at(self, time: Tensor, view: LayerView) -> Tensor:
        return (self._factor(view) / time).sqrt()

    def time_for(self, epsilon: float, view: LayerView) -> float:
        return self._factor(view) / epsilon / epsilon


@method
class CoreNetPlus(CoreNet):
    """CoreNet+: weights that are expected to be drawn at least once (s_j t >= 1) stay as they are, only the rest is sampled.

    The paper chooses the split that needs the fewest samples; this rule of the authors' next paper (PFP) is its usable form.
    """

    name = "corenet+"
    paper = CORENET + ", CoreNet+"

    def sure(self, rates: Tensor, time: Tensor) -> Tensor:
        return rates * time >= 1

    def arrivals(self, rates: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn, _ = super().arrivals(rates, rng)
        return drawn, torch.minimum(drawn, torch.where(rates > 0, 1 / rates.clamp(min=1e-300), torch.inf))


@method
class CoreNetPlusPlus(CoreNetPlus):
    """CoreNet++: of ceil(log(4 / delta) / log(10 / 9)) candidates each neuron takes the best on a second batch.

    Judged by the mean of |z^ - z| / sum_k |w_k x_k|: relative as the bound is, for z itself may be zero. Row counts are those of
    the first draw, so that candidates are alike in size. Error-first the sizes are as they come.
    """

    name = "corenet++"
    paper = CORENET + ", CoreNet++"
    needs = (HeldOut,)
    options: ClassVar[dict[str, Option]] = CoreNetPlus.options | {
        "candidates": Option(None, "candidates per neuron; default: ceil(log(4 / delta) / log(10 / 9))")
    }

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        given = self.values["candidates"]
        if given is not None and (given != int(given) or given < 1):
            raise UsageError(f"candidates is {given}", "give a whole number from 1")

    @property
    def candidates(self) -> int:
        given = self.values["candidates"]
        return int(given) if given is not None else ceil(log(4 / self.values["delta"]) / log(10 / 9))

    def decide(self, view: LayerView, scores: Tensor, quota: Quota, rng: torch.Generator) -> LayerPlan:
        first = super().decide(view, scores, quota, rng)
        if quota.pattern is not None or first.matrix is None:
            return first
        counts = first.keep.sum(2)
        alike = Quota(int(counts.sum()), quota.unit, rows=counts)
        others = (super(CoreNetPlusPlus, self).decide(view, scores, alike, rng) for _ in range(self.candidates - 1))
        return self._best(view, first, others)

    def within(self, view: LayerView, scores: Tensor, epsilon: float, rng: torch.Generator) -> LayerPlan:
        first = super().within(view, scores, epsilon, rng)
        others = (super(CoreNetPlusPlus, self).within(view, scores, epsilon, rng) for _ in range(self.candidates - 1))
        return self._best(view, first, others)

    def _best(self, view: LayerView, first: LayerPlan, others: Any) -> LayerPlan:
        rows = view.statistic(HeldOut).second.to(view.matrix)
        size = torch.einsum("ngi,goi->ngo", rows.abs(), view.matrix.abs()).clamp(min=1e-12)

        def losses(plan: LayerPlan) -> Tensor:
            change = plan.weights(view) - view.matrix
            return (
                (torch.einsum("ngi,goi->ngo", rows, change).abs() / size).mean(0)
                if len(rows)
                else change.new_zeros(size.shape[1:])
            )

        keep, matrix, best = first.keep, first.weights(view), losses(first)
        error, draws = first.error or 0.0, first.draws or 0
        for plan in others:
            found = losses(plan)
            better = (found < best)[..., None]
            keep = torch.where(better, plan.keep, keep)
            matrix = torch.where(better, plan.weights(view), matrix)
            best = torch.minimum(best, found)
            error = max(error, plan.error or 0.0)
            draws += plan.draws or 0
        return LayerPlan(keep, matrix, error, draws)
