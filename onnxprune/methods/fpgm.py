"""He, Liu, Wang, Hu, Yang: "Filter Pruning via Geometric Median for Deep Neural Networks Acceleration" (CVPR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.contract import ChannelMethod, ChannelView, method


@method
class FpgmChannel(ChannelMethod):
    """score(c) = sum over the other filters j of ||F_c - F_j||_2 (equation 7); several makers' sums are added up.

        F_c   row that makes channel c     maker weight (channels, fan-in)

    The filters nearest to the geometric median go: others can stand in for them. A reader without a refit is not told so.
    Departures: batch norm behind the layer is folded into F (filters that differ in scale alone were alike otherwise), and the
    authors' option to remove small norms first is left out: it is l2-channel.
    """

    name = "fpgm-channel"
    target = "channel"
    paper = "He et al., Filter Pruning via Geometric Median (CVPR 2019)"

    def score(self, view: ChannelView) -> Tensor:
        rows = [maker.weight.double() for maker in view.makers]
        return torch.stack([torch.cdist(r, r).sum(1) for r in rows]).sum(0)
