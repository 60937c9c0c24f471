"""Mussay, Feldman, Zhou, Braverman, Osadchy: "Data-Independent Structured Pruning of Neural Networks via Coresets".

A layer of neurons (channels) P is replaced by a weighted subset C so that every consumer i still computes nearly the same:
|sum_{p in P} w_i(p) phi(p^T x) - sum_{p in C} u_i(p) phi(p^T x)| <= eps for all ||x|| <= beta (Corollary 9; section III-D).

    p        row that makes a channel, its bias appended (the query is (x, 1))      maker weight (channels, fan-in)
    w_i(p)   weight with which consumer output i, kernel position o, reads it       reader weight (channels, outputs * positions)
    phi      activation between them                                                view.activation
    beta     largest norm of a query; from calibration data, or the option          MaxNorm of the makers' inputs
    s(p)     = max_i |w_i(p)| phi(beta ||p||)     importance (Algorithm 2, line 2)
    pr(p)    = s(p) / sum s                       probability of a draw
    u_i(p)   = w_i(p) n(p) / (m pr(p))            weight after n(p) of m draws hit p (line 8)
    m        >= c t / eps^2 (d log t + log 1/delta), t = sum s(p), d = inputs of p with its bias; the paper leaves c >= 1 open,
             so that this eps is known up to the constant c. What the coreset that was drawn can do at worst needs no c: `errors`

Departures from the paper's text:
* it prints w, not |w|; Corollary 8 splits the signs, and the authors' code takes absolute values, as here;
* it draws m times and keeps what was hit; here draws go on until the wanted number of distinct channels is reached, as in the
  authors' code, but by exponential clocks, which give the same distribution in one step and always end (algorithms.md 1.3);
* error-first (--epsilon), with m draws as Algorithm 2 has them, a draw that hits every channel is not reweighed: nothing goes;
* several coresets are drawn and the one is kept whose least-squares loss on calibration data is smallest (amplification, as
  CoreNet++ does; --option draws=1 switches it off; with --budget uniform or global there is no such loss, and one draw is made);
* the paper never says how beta is chosen. For positively homogeneous phi (ReLU) it cancels out of pr.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil, isfinite, log, sqrt
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from onnxprune.contract import Activation, ChannelMethod, ChannelPlan, ChannelView, MaxNorm, Option, Statistic, method
from onnxprune.errors import UsageError

# Draws that fit into 64 bits.
MOST_DRAWS = 1 << 62
PAPER = "Mussay et al., Data-Independent Structured Pruning of Neural Networks via Coresets"


def reader_peaks(view: ChannelView) -> Tensor:
    """(channels,): max over all consumers, their outputs and kernel positions of |w|.

    1 for channels that no weights read, because another activation is multiplied with them (the width of attention heads).
    """
    if not view.readers:
        return torch.ones(view.channels, device=view.makers[0].weight.device)
    peaks = [reader.weight.abs().amax(1) for reader in view.readers]
    return torch.stack(peaks).amax(0)


def clocks(probabilities: Tensor, rng: torch.Generator) -> Tensor:
    """(channels,) times at which each channel is first drawn, when draws come at rate 1: independent exponentials of rate pr.

    The m smallest are, in distribution, the first m distinct items of sampling with replacement. Impossible ones come last.
    """
    uniform = torch.rand(len(probabilities), generator=rng, dtype=torch.float64).to(probabilities.device)
    waiting = -torch.log1p(-uniform)
    return torch.where(probabilities > 0, waiting / probabilities.clamp(min=1e-300), torch.full_like(waiting, torch.inf))


def hits(probabilities: Tensor, times: Tensor, keep: Tensor, rng: torch.Generator) -> Tensor | None:
    """(kept,) n(p): the first hit and, up to the last first hit, Poisson many further ones; N is their sum.

    None where what was kept could not be drawn.
    """
    last = times[keep].max()
    if not bool(torch.isfinite(last)):
        return None
    expected = (probabilities[keep] * (last - times[keep])).cpu()
    return 1 + torch.poisson(expected, generator=rng).to(probabilities.device)


def reweigh(probabilities: Tensor, times: Tensor, keep: Tensor, rng: torch.Generator) -> Tensor:
    """(kept,) factors n(p) / (N pr(p))."""
    found = hits(probabilities, times, keep, rng)
    if found is None:
        return torch.ones(len(keep), dtype=probabilities.dtype, device=probabilities.device)
    return found / (found.sum() * probabilities[keep])


def importances(norms: Tensor, weights: Tensor, activation: Activation, beta: float) -> Tensor:
    """s(p) (n,) of points with ||p|| in norms (n,) read with weights (k, n): one row is Algorithm 1, several are Algorithm 2."""
    return weights.abs().amax(0) * activation.supremum(beta * norms)


def coreset(importance: Tensor, draws: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Algorithms 1 and 2, lines 4 to 8, as printed: which points were hit by so many draws, and u(p) / w(p) of each."""
    probabilities = _probabilities(importance)
    # numpy's takes no longer for 10^9 draws than for one; what rounding leaves of 1 goes to its last entry, here the likeliest.
    order = torch.argsort(probabilities, stable=True)
    generator = np.random.default_rng(int(torch.randint(1 << 62, (), generator=rng)))
    found = generator.multinomial(draws, probabilities[order].cpu().numpy())
    counts = torch.zeros_like(probabilities)
    counts[order] = torch.from_numpy(found).to(probabilities)
    keep = counts.nonzero()[:, 0]
    return keep, counts[keep] / (draws * probabilities[keep])


def draws_needed(total: float, width: int, epsilon: float, delta: float, c: float = 1.0) -> int:
    """m for an additive error of epsilon: c t / eps^2 (d log t + log 1/delta), up to the constant c. log t counts from 0."""
    return max(1, ceil(min(_complexity(total, width, delta, c) / epsilon / epsilon, MOST_DRAWS)))


def epsilon_of(total: float, width: int, draws: int, delta: float, c: float = 1.0) -> float:
    """The inverse."""
    return sqrt(_complexity(total, width, delta, c) / draws)


def _complexity(total: float, width: int, delta: float, c: float) -> float:
    return c * total * (width * max(log(max(total, 1e-300)), 0.0) + log(1 / delta))


class _Sampler(ChannelMethod):
    """Sampling until the wanted number is reached, then reweighing; subclasses say with which probabilities."""

    def score(self, view: ChannelView) -> Tensor:
        raise AssertionError("a sampler needs importances")

    def rank(self, view: ChannelView, scores: Tensor, rng: torch.Generator) -> Tensor:
        probabilities = _probabilities(scores)
        return torch.argsort(clocks(probabilities, rng), stable=True)

    def decide(self, view: ChannelView, scores: Tensor, order: Tensor, keep: int, rng: torch.Generator) -> ChannelPlan:
        probabilities = _probabilities(scores)
        times = clocks(probabilities, rng)  # the same seed as in rank, hence the same clocks
        chosen = torch.sort(order[:keep]).values
        if not torch.equal(order, torch.argsort(times, stable=True)):
            return ChannelPlan(chosen)  # the largest importances, not drawn, hence not reweighed
        if keep == view.channels:
            return ChannelPlan(chosen)
        found = hits(probabilities, times, chosen, rng)
        if found is None:
            return ChannelPlan(chosen, torch.ones_like(probabilities[chosen]))
        return ChannelPlan(chosen, found / (found.sum() * probabilities[chosen]), int(found.sum()))


def _probabilities(scores: Tensor) -> Tensor:
    """Importances as probabilities; all equal where every importance is zero (a dead layer has no better channels)."""
    total = scores.double().sum()
    if float(total) <= 0:
        return torch.full((len(scores),), 1.0 / len(scores), dtype=torch.float64, device=scores.device)
    return scores.double() / total


class _Coreset(_Sampler):
    """importance = max over consumers and positions of |w| * phi(beta * ||p||)."""

    paper = PAPER + ", Algorithm 2 and section III-D"
    options: ClassVar[dict[str, Option]] = {
        "beta": Option(None, "largest norm of a layer's input (beta); default: the largest seen in calibration"),
        "draws": Option(32, "coresets drawn per group; the one with the least predicted loss is kept (paper: 1)"),
        "c": Option(1.0, "the constant c >= 1 of the sample complexity, which the paper leaves open"),
        "delta": Option(0.5, "delta, the probability with which the bound on eps may fail"),
    }
    needs = (MaxNorm,)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        beta, draws = self.values["beta"], self.values["draws"]
        if beta is not None and not (isfinite(beta) and beta > 0):
            raise UsageError(f"beta is {beta}", "it is a norm: give a number above 0")
        if draws != int(draws) or draws < 1:
            raise UsageError(f"draws is {draws}", "give a whole number from 1")
        if not self.values["c"] > 0:
            raise UsageError(f"c is {self.values['c']}", "give a number above 0")
        if not 0 < self.values["delta"] < 1:
            raise UsageError(f"delta is {self.values['delta']}", "it is a probability: give a number between 0 and 1")

    @property
    def draws(self) -> int:
        return int(self.values["draws"])

    def wants(self, activation: Activation | None) -> tuple[type[Statistic], ...]:
        """beta bounds what makers see; it cancels out of pr for homogeneous phi, and is not measured where it is given."""
        return () if activation is None or activation.homogeneous or self.values["beta"] is not None else self.needs

    def score(self, view: ChannelView) -> Tensor:
        return importances(view.maker_norms, reader_peaks(view)[None], view.activation, self.beta(view))

    def decide(self, view: ChannelView, scores: Tensor, order: Tensor, keep: int, rng: torch.Generator) -> ChannelPlan:
        plan = super().decide(view, scores, order, keep, rng)
        if plan.draws is None:
            return plan
        return replace(plan, error=epsilon_of(*self._size(view, scores), plan.draws, self.values["delta"], self.values["c"]))

    def within(self, view: ChannelView, scores: Tensor, epsilon: float, rng: torch.Generator) -> ChannelPlan:
        """Algorithm 2 with as many draws as Corollary 9 asks for."""
        draws = draws_needed(*self._size(view, scores), epsilon, self.values["delta"], self.values["c"])
        keep, scale = coreset(scores, draws, rng)
        return ChannelPlan(keep, scale if len(keep) < view.channels else None, draws, epsilon)

    def _size(self, view: ChannelView, scores: Tensor) -> tuple[float, int]:
        """t and d."""
        return float(scores.double().sum()), max(maker.weight.shape[1] for maker in view.makers) + 1

    def errors(self, view: ChannelView, plan: ChannelPlan) -> Mapping[str, Tensor]:
        """sum_p |w_i(p) - u_i(p)| sup phi over ||x|| <= beta, for each consumer i: certain, whatever was drawn.

        Where phi >= 0 the parts with w > u and with w < u cannot add up: the larger counts (Corollary 8's split).
        """
        change = torch.ones(view.channels, dtype=torch.float64, device=plan.keep.device)
        change[plan.keep] = 0.0 if plan.scale is None else 1 - plan.scale.double()
        reach = view.activation.supremum(self.beta(view) * view.maker_norms.double())
        found = {}
        for reader in view.readers:
            terms = reader.columns[reader.positions].double() * (change * reach)[:, None, None]
            up, down = terms.clamp(min=0).sum((0, 1)), (-terms).clamp(min=0).sum((0, 1))
            found[reader.layer] = torch.maximum(up, down) if view.activation.never_negative else up + down
        return found

    def beta(self, view: ChannelView) -> float:
        """The option, else the largest ||(x, 1)|| of the makers' calibration inputs, else 1 (the authors' default)."""
        if self.values["beta"] is not None:
            return float(self.values["beta"])
        seen = [found.value for maker in view.makers if (found := view.statistic(maker.layer, MaxNorm)) is not None]
        return max(seen, default=1.0) or 1.0


@method
class CoresetChannel(_Coreset):
    """Channels and hidden units by importance sampling (section III-D)."""

    name = "coreset-channel"
    target = "channel"


@method
class CoresetNeuron(_Coreset):
    """Units of fully connected layers by importance sampling (section III-C)."""

    name = "coreset-neuron"
    target = "neuron"


@method
class UniformChannel(_Sampler):
    """The paper's baseline: Algorithm 1 with probability 1/n for every channel."""

    name = "uniform-channel"
    target = "channel"
    paper = PAPER + ", section IV-A"

    def score(self, view: ChannelView) -> Tensor:
        return torch.ones(view.channels, device=view.makers[0].weight.device)


@method
class PercentileChannel(ChannelMethod):
    """The paper's baseline: keep the channels with the largest norms ||p||, unweighted."""

    name = "percentile-channel"
    target = "channel"
    paper = PAPER + ", section IV-A"

    def score(self, view: ChannelView) -> Tensor:
        return view.maker_norms
