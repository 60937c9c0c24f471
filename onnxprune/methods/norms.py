"""Channel pruning by the norm of the filters, and at random.

Li, Kadav, Durdanovic, Samet, Graf: "Pruning Filters for Efficient ConvNets" (ICLR 2017): the sum of absolute weights of a filter;
l2 is its common variant. A channel made by several layers (residual sums) has the sum of their norms; batch norm is folded in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.contract import ChannelMethod, ChannelView, method

LI = "Li et al., Pruning Filters for Efficient ConvNets (ICLR 2017)"


def _norms(view: ChannelView, order: int) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(m.weight, ord=order, dim=1) for m in view.makers]).sum(0)


@method
class L1Channel(ChannelMethod):
    """score = sum over makers of ||p||_1."""

    name = "l1-channel"
    target = "channel"
    paper = LI

    def score(self, view: ChannelView) -> Tensor:
        return _norms(view, 1)


@method
class L2Channel(ChannelMethod):
    """score = sum over makers of ||p||_2."""

    name = "l2-channel"
    target = "channel"
    paper = LI + ", with the Euclidean norm"

    def score(self, view: ChannelView) -> Tensor:
        return _norms(view, 2)


class _Random(ChannelMethod):
    """A seeded permutation, no weights."""

    paper = "baseline"

    def score(self, view: ChannelView) -> Tensor:
        return torch.zeros(view.channels, device=view.makers[0].weight.device)

    def rank(self, view: ChannelView, scores: Tensor, rng: torch.Generator) -> Tensor:
        return torch.randperm(view.channels, generator=rng).to(scores.device)


@method
class RandomChannel(_Random):
    """Channels at random, unweighted: the floor under every other method."""

    name = "random-channel"
    target = "channel"


@method
class RandomNeuron(_Random):
    """Units of fully connected layers at random, unweighted."""

    name = "random-neuron"
    target = "neuron"
