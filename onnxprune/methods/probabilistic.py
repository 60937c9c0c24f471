"""Qian, Klabjan: "A Probabilistic Approach to Neural Network Pruning" (ICML 2021): weights and 2-D filters, at random or by size.

    D, N     weights (or 2-D filters) of a layer, and how many draws set some of them to zero
    F[s, t]  the 2-D filter that leads from input channel t to output channel s: all kernel positions of it go, or none

The paper prunes N = floor(D^(1-alpha)) units of each layer but the first and the last (`keep_ends`). Here a ratio r is given
instead, so that alpha = -log r / log D; what the paper's theorems say at that alpha is told by `onnxprune bounds`.

Single weights by magnitude (Theorem 1) are the methods `magnitude` and `magnitude-global` (appendix E.3) of thresholds.py.
"""

from __future__ import annotations

from math import inf, log, log1p
from typing import Any, ClassVar

import torch
from torch import Tensor

from onnxprune.contract import LayerPlan, LayerView, Option, Quota, WeightMethod, method
from onnxprune.errors import UsageError

PAPER = "Qian, Klabjan, A Probabilistic Approach to Neural Network Pruning (ICML 2021)"


def draws_for(distinct: float, units: int) -> float:
    """How many draws with replacement hit so many of the units in expectation: N with D (1 - (1 - 1/D)^N) = m."""
    if distinct >= units:
        return inf
    if distinct <= 0:
        return 0.0
    return log1p(-distinct / units) / log(1 - 1 / units)


class _Uniform(WeightMethod):
    """Every unit alike. Scores are all zero, for what is random is drawn in `decide`.

    A budget that compares layers then takes the same share of each, as a draw over the whole network does in expectation.

    replace   the paper's draws, with replacement (section 4.2; appendix E.2): as many as hit the wanted number of units in
              expectation, so that how many go varies from seed to seed. Never fewer than asked for: if the draws hit too few they
              go on. Given how many were hit, which ones is as in draws without replacement. Units that are zero are not drawn.
    """

    options: ClassVar[dict[str, Option]] = {
        "replace": Option(
            False, "true: draw with replacement as in the theorems; then the ratio holds on average only, or more go"
        )
    }

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        # Draws with replacement may hit more than have to go.
        self.may_keep_fewer = self.values["replace"]  # type: ignore[misc]

    def decide(self, view: LayerView, scores: Tensor, quota: Quota, rng: torch.Generator) -> LayerPlan:
        drawn = torch.rand(scores.shape, generator=rng).to(scores.device)
        if not self.values["replace"]:
            return _plan(quota.choose(drawn, view), view)
        if quota.rows is not None or quota.pattern is not None:
            raise UsageError(
                "draws with replacement meet no number per row", "use --budget uniform or global, or leave out replace"
            )
        weights = view.matrix if scores.shape == view.matrix.shape else view.kernel_norms
        hit = _hits(weights != 0, quota.keep, rng)
        return _plan(quota.choose(drawn - hit.to(drawn), view) & ~hit, view)


def _hits(there: Tensor, keep: int, rng: torch.Generator) -> Tensor:
    """Which of the units that are `there` were hit at least once by draws with replacement among them."""
    places = there.flatten().nonzero()[:, 0]
    draws = draws_for(len(places) - keep, len(places))
    hit = torch.zeros(there.numel(), dtype=torch.bool, device=there.device)
    if draws == inf:
        hit[places] = True
    elif draws:
        hit[places[torch.randint(len(places), (round(draws),), generator=rng).to(places.device)]] = True
    return hit.reshape(there.shape)


def _plan(chosen: Tensor, view: LayerView) -> LayerPlan:
    return LayerPlan(chosen if chosen.shape == view.matrix.shape else view.spread(chosen))


@method
class Random(_Uniform):
    """A seeded choice of single weights, every one alike (Theorem 2): the floor under every other method."""

    name = "random"
    target = "weight"
    paper = PAPER + ", Theorem 2; baseline of every paper"

    def score(self, view: LayerView) -> Tensor:
        return torch.zeros_like(view.matrix)


@method
class RandomKernel(_Uniform):
    """A seeded choice of 2-D filters, every one alike (Theorem 3)."""

    name = "random-kernel"
    target = "kernel"
    paper = PAPER + ", Theorem 3"

    def score(self, view: LayerView) -> Tensor:
        return torch.zeros_like(view.kernel_norms)


@method
class MagnitudeKernel(WeightMethod):
    """score = ||F[s, t]||_1 / kernel positions: the 2-D filters with the smallest L1 norms go (appendix C.2).

    Departure: the division, which changes nothing within a layer; it makes layers with kernels of different sizes comparable for
    `--budget global` (appendix E.3), where a 2-D filter counts as many weights as it has.
    """

    name = "magnitude-kernel"
    target = "kernel"
    paper = PAPER + ", appendix C.2"

    def score(self, view: LayerView) -> Tensor:
        return view.kernel_norms / view.kernel
