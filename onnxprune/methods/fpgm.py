"""prototype"""
from __future__ import annotations
import torch
from torch import Tensor
from onnxprune.contract import ChannelMethod, ChannelView, method

@method
class FpgmChannel(ChannelMethod):
    name = "fpgm-channel"
    target = "channel"
    paper = "x"
    def score(self, view: ChannelView) -> Tensor:
        return torch.stack([torch.cdist(m.weight.double(), m.weight.double()).sum(1) for m in view.makers]).sum(0)
