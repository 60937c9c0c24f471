"""Liebenwein, Baykal, Lang, Feldman, Rus: "Provable Filter Pruning for Efficient Neural Networks" (ICLR 2020), SiPP for channels.

A channel is as important as the most sensitive weight that reads it:

    s_c  = max over readers, their outputs i, kernel positions o of s_i(c,o)     empirical sensitivities, see sensitivity.py
    p_c  = s_c / sum s                                                          probability of a draw (Algorithm 1)

variant `det` keeps the channels with the largest s; `rand` draws them and divides what the readers take from each by the
probability that it stays.

Departures from the paper: the sizes of the layers come from --budget, not from one eps for the network; exactly as many channels
are kept as asked for, by exponential clocks (see sipp.py); readers that cannot be looked at count as if all their inputs were
equally active.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from onnxprune.contract import Activation, ChannelMethod, ChannelPlan, ChannelView, Option, Reader, Statistic, method
from onnxprune.errors import UsageError
from onnxprune.methods.coreset import clocks
from onnxprune.methods.sensitivity import PATCHES, Sensitivity


@method
class PfpChannel(ChannelMethod):
    """Channels and hidden units by the largest empirical sensitivity of the weights that read them."""

    name = "pfp-channel"
    target = "channel"
    paper = "Liebenwein et al., Provable Filter Pruning (ICLR 2020)"
    needs = (Sensitivity,)
    options: ClassVar[dict[str, Option]] = {
        "variant": Option("det", "det: the largest sensitivities stay; rand: drawn by sensitivity and reweighed"),
        "patches": Option(PATCHES, "output positions per sample that sensitivities are measured at; 0: all, as in the paper"),
    }

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.values["variant"] not in ("det", "rand"):
            raise UsageError(f"variant is {self.values['variant']!r}", "choose det or rand")
        Sensitivity(torch.ones(1, 1, 1), self.values["patches"])  # refuses what it cannot do

    def wants(self, activation: Activation | None) -> tuple[type[Statistic], ...]:
        """Of readers alone."""
        return self.needs if activation is None else ()

    def counter(self, kind: type[Statistic], matrix: Tensor | None) -> Statistic:
        if kind is Sensitivity and matrix is not None:
            return Sensitivity(matrix, self.values["patches"])
        return super().counter(kind, matrix)

    def score(self, view: ChannelView) -> Tensor:
        if not view.readers:
            return view.maker_norms
        return torch.stack([_sensitivity(view, reader) for reader in view.readers]).amax(0)

    def rank(self, view: ChannelView, scores: Tensor, rng: torch.Generator) -> Tensor:
        """Drawn ones in the order of their clocks; those that are never drawn come last, by position."""
        if self.values["variant"] == "det":
            return super().rank(view, scores, rng)
        return torch.argsort(clocks(_probabilities(scores), rng), stable=True)

    def decide(self, view: ChannelView, scores: Tensor, order: Tensor, keep: int, rng: torch.Generator) -> ChannelPlan:
        chosen = torch.sort(order[:keep]).values
        if self.values["variant"] == "det" or keep == view.channels:
            return ChannelPlan(chosen)
        probabilities = _probabilities(scores)
        times = clocks(probabilities, rng)  # the same seed as in rank, hence the same clocks
        border = times[order[keep]]
        if not bool(torch.isfinite(border)):
            return ChannelPlan(chosen)  # all that can be drawn stays
        return ChannelPlan(chosen, 1 / -torch.expm1(-probabilities[chosen] * border))


def _sensitivity(view: ChannelView, reader: Reader) -> Tensor:
    """(channels,): the largest sensitivity of the weights with which this reader reads each channel."""
    found = view.statistic(reader.layer, Sensitivity)
    if found is None or not found.count:
        found = Sensitivity(reader.columns.T[None])
        found.add(torch.ones(1, 1, len(reader.columns), device=reader.columns.device))
    per_input = found.value.amax(1).reshape(len(reader.columns), -1).amax(1).to(reader.columns)
    return per_input[reader.positions].amax(1)


def _probabilities(scores: Tensor) -> Tensor:
    total = float(scores.double().sum())
    return scores.double() / total if total > 0 else torch.full_like(scores, 1 / len(scores), dtype=torch.float64)
