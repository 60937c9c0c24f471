"""SEE: what each channel adds to a wide layer's outputs, where the moments of all its inputs would take gigabytes.

A dense layer behind a Flatten reads a channel at many positions. With y_c the part of its output that channel c makes, removing
the set R and scaling what stays by one factor a channel loses at best

    min over a of   E || sum over R of y_c - sum over the rest of a_c y_c ||^2

which is the loss of a layer with one input per channel, all weights one, and G_cd = E[y_c . y_d] as its second moments. It is
never less than what a refit of all weights loses.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from onnxprune.contract.statistics import Statistic

# Inputs above which a layer is looked at in this way.
WIDEST = 4096
# Rows that are looked at, and how many at a time: each takes channels x outputs numbers.
ROWS, TOGETHER = 128, 8


class Contributions(Statistic):
    """Count, mean (channels, out) and second moments (channels, channels) of the contributions, in float64.

    matrix  (groups, out, in) of one group; owner (in,): the number of the channel that each input belongs to
    inputs  (channels, most): those of each channel
    """

    rows = "channels"
    weighs = True

    def __init__(self, matrix: Tensor, owner: Tensor) -> None:
        self.owner = owner.to(matrix.device)
        channels, out = int(owner.max()) + 1, matrix.shape[1]
        # Inputs side by side by channel; a channel with fewer than the others reads a zero.
        counts = torch.bincount(self.owner, minlength=channels)
        self.inputs = matrix.new_full((channels, int(counts.max())), matrix.shape[2], dtype=torch.int64)
        order = torch.argsort(self.owner, stable=True)
        within = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[self.owner[order]]
        self.inputs[self.owner[order], within] = order
        self.weights = torch.nn.functional.pad(matrix[0], (0, 1)).T[self.inputs]
        self.count = 0
        self.total = matrix.new_zeros((channels, out), dtype=torch.float64)
        self.products = matrix.new_zeros((channels, channels), dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        self.count += len(rows)
        padded = torch.nn.functional.pad(rows.float(), (0, 1))
        for low in range(0, len(padded), TOGETHER):
            made = torch.bmm(padded[low : low + TOGETHER][:, self.inputs].transpose(0, 1), self.weights)  # (channels, n, out)
            self.total += made.sum(1, dtype=torch.float64)
            flat = made.flatten(1)
            self.products += flat @ flat.T

    def merge(self, other: Self) -> None:
        self.count += other.count
        self.total += other.total
        self.products += other.products

    def wanted(self, inputs: int) -> int | None:
        return ROWS

    def moments(self) -> tuple[Tensor, Tensor]:
        """(channels, channels): G, and the same centred, where a bias takes up the means."""
        mean = self.total / self.count
        joint = self.products / self.count
        return joint, joint - mean @ mean.T
