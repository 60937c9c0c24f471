"""Sun, Liu, Bair, Kolter: "A Simple and Effective Pruning Approach for Large Language Models" (ICLR 2024)."""

from __future__ import annotations

from torch import Tensor

from onnxprune.contract import InputMoments, LayerView, WeightMethod, method


@method
class Wanda(WeightMethod):
    """score = |w_ij| * sqrt(mean x_j^2), compared within each row; no weight is changed.

    h_j = mean x_j^2 over all positions of the calibration samples. The paper prunes linear layers only; convolutions are taken as
    matrices here (its authors report no such test).
    """

    name = "wanda"
    target = "weight"
    paper = "Sun et al., Wanda (ICLR 2024)"
    needs = (InputMoments,)
    scope = "row"

    def score(self, view: LayerView) -> Tensor:
        energy = view.statistic(InputMoments).square.to(view.matrix)
        return view.matrix.abs() * energy.sqrt()[:, None]
