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

Departures from the paper's text:
* it prints w, not |w|; Corollary 8 splits the signs, and the authors' code takes absolute values, as here;
* it draws m times and keeps what was hit; here draws go on until the wanted number of distinct channels is reached, as in the
  authors' code, but by exponential clocks, which give the same distribution in one step and always end (algorithms.md 1.3);
* several coresets are drawn and the one is kept whose least-squares loss on calibration data is smallest (amplification, as
  CoreNet++ does; --option draws=1 switches it off; with --budget uniform or global there is no such loss, and one draw is made);
* the paper never says how beta is chosen. For positively homogeneous phi (ReLU) it cancels out of pr.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from onnxprune.contract import Activation, ChannelMethod, ChannelPlan, ChannelView, MaxNorm, Option, Statistic, method
from onnxprune.errors import UsageError

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


def reweigh(probabilities: Tensor, times: Tensor, keep: Tensor, rng: torch.Generator) -> Tensor:
    """(kept,) factors n(p) / (N pr(p)): further hits of a kept channel up to the last first hit are Poisson, N is their sum."""
    last = times[keep].max()
    if not bool(torch.isfinite(last)):
        return torch.ones(len(keep), dtype=probabilities.dtype, device=probabilities.device)
    expected = (probabilities[keep] * (last - times[keep])).cpu()
    hits = 1 + torch.poisson(expected, generator=rng).to(probabilities.device)
    return hits / (hits.sum() * probabilities[keep])


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
        return ChannelPlan(chosen, reweigh(probabilities, times, chosen, rng) if keep < view.channels else None)


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
    }
    needs = (MaxNorm,)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        beta, draws = self.values["beta"], self.values["draws"]
        if beta is not None and not (isfinite(beta) and beta > 0):
            raise UsageError(f"beta is {beta}", "it is a norm: give a number above 0")
        if draws != int(draws) or draws < 1:
            raise UsageError(f"draws is {draws}", "give a whole number from 1")

    @property
    def draws(self) -> int:
        return int(self.values["draws"])

    def wants(self, activation: Activation | None) -> tuple[type[Statistic], ...]:
        """beta bounds what makers see; it cancels out of pr for homogeneous phi, and is not measured where it is given."""
        return () if activation is None or activation.homogeneous or self.values["beta"] is not None else self.needs

    def score(self, view: ChannelView) -> Tensor:
        return reader_peaks(view) * view.activation.supremum(self.beta(view) * view.maker_norms)

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
