"""Single weights by their size, and at random: the baselines of every paper.

Han, Pool, Tran, Dally: "Learning both Weights and Connections for Efficient Neural Networks" (NIPS 2015): small weights go, layer
by layer (LWC in the L-OBS paper) or over the whole network (WT in the SiPP paper).
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.contract import LayerPlan, LayerView, Quota, WeightMethod, method

HAN = "Han et al., Learning both Weights and Connections (NIPS 2015)"


@method
class Magnitude(WeightMethod):
    """score = |w|, compared within each layer."""

    name = "magnitude"
    target = "weight"
    paper = HAN + "; LWC in L-OBS"

    def score(self, view: LayerView) -> Tensor:
        return view.matrix.abs()


@method
class MagnitudeGlobal(Magnitude):
    """score = |w|, compared over the whole network."""

    name = "magnitude-global"
    target = "weight"
    paper = HAN + "; WT in SiPP"
    scope = "network"


@method
class Random(WeightMethod):
    """A seeded choice, every weight alike: the floor under every other method."""

    name = "random"
    target = "weight"
    paper = "baseline of every paper"

    def score(self, view: LayerView) -> Tensor:
        return torch.zeros_like(view.matrix)

    def decide(self, view: LayerView, scores: Tensor, quota: Quota, rng: torch.Generator) -> LayerPlan:
        drawn = torch.rand(scores.shape, generator=rng).to(scores.device)
        return LayerPlan(quota.choose(drawn, view))
