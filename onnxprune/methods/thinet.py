"""Luo, Wu, Lin: "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression" (ICCV 2017).

The set T of channels goes whose contributions to the next layer cancel out best (equation 6), chosen greedily (Algorithm 1):

    minimise over T:  sum_t (sum_{c in T} x^_tc)^2,    x^_tc = <W_c, x_tc>

    t       an output of the reader at one position of one sample
    x_tc    what it sees of channel c, all kernel positions
    W_c     the weights with which it reads them
    G       = mean over t of x^ x^^T, (channels, channels): the whole sum is the sum of G over T x T, and adding c to T adds
            G_cc + 2 sum_{c' in T} G_cc'

then a factor for every channel that stays (equation 7): w = argmin sum_t (y_t - w^T x^_t)^2 = 1 + G_SS^-1 G_ST 1.

Departures from the paper: it samples some t; here G comes from the second moments of x, hence from all outputs and all positions
that were looked at. Several readers' G are added up, each times its gain. torchprune's baseline of this name keeps the channels
that the paper removes (its ranks are upside down), looks at 100 positions, and takes sqrt(C) channels at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.contract import (
    Activation,
    ChannelMethod,
    ChannelPlan,
    ChannelView,
    Moments,
    PatchMoments,
    Reading,
    Statistic,
    method,
    readings,
)

# Share of the mean energy that is added to G's diagonal where factors are solved for; it draws them towards one.
DAMPING = 0.01


def contributions(reading: Reading) -> Tensor:
    """G (channels, channels): sum over outputs of the mean product of two channels' contributions."""
    ours = reading.positions.flatten()
    weights = reading.weights[ours]
    products = (weights @ weights.T) * reading.products[ours][:, ours]
    channels, size = reading.positions.shape
    return reading.gain * products.reshape(channels, size, channels, size).sum((1, 3))


@method
class ThinetChannel(ChannelMethod):
    """score(c) = its place in the order of removal: 0 goes first.

    Channels that nothing but another activation reads (the width of attention heads) go by the norm of what makes them.
    """

    name = "thinet-channel"
    target = "channel"
    paper = "Luo et al., ThiNet (ICCV 2017), Algorithm 1"
    needs = (Moments, PatchMoments)

    def wants(self, activation: Activation | None) -> tuple[type[Statistic], ...]:
        """What readers read; of the makers' inputs nothing."""
        return self.needs if activation is None else ()

    def score(self, view: ChannelView) -> Tensor:
        if not view.readers:
            return view.maker_norms
        gram = _gram(view)
        added, place = gram.diagonal().clone(), torch.zeros(view.channels, dtype=gram.dtype, device=gram.device)
        if not bool(torch.isfinite(gram).all()):
            return added
        for number in range(view.channels):
            least = int(added.argmin())
            place[least] = number
            added += 2 * gram[least]
            added[least] = torch.inf
        return place

    def decide(self, view: ChannelView, scores: Tensor, order: Tensor, keep: int, rng: torch.Generator) -> ChannelPlan:
        """The first of `order`, with the factors of equation 7, damped: for --repair none, a refit does without them."""
        stay, gone = order[:keep].sort().values, order[keep:]
        if not view.readers or not len(gone):
            return ChannelPlan(stay)
        gram = _gram(view)
        system = gram[stay][:, stay]
        system += (DAMPING * system.diagonal().mean() + 1e-12) * torch.eye(keep, dtype=gram.dtype, device=gram.device)
        return ChannelPlan(stay, 1 + torch.linalg.solve(system, gram[stay][:, gone].sum(1)))


def _gram(view: ChannelView) -> Tensor:
    return torch.stack([contributions(reading) for reading in readings(view)]).sum(0)
