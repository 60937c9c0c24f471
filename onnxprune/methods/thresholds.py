"""Single weights by their size: the baselines of every paper.

Han, Pool, Tran, Dally: "Learning both Weights and Connections for Efficient Neural Networks" (NIPS 2015): small weights go, layer
by layer (LWC in the L-OBS paper) or over the whole network (WT in the SiPP paper). What is lost by that is bounded in Qian and
Klabjan, Theorem 1 (`onnxprune bounds`).
"""

from __future__ import annotations

from torch import Tensor

from onnxprune.contract import LayerView, WeightMethod, method

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
