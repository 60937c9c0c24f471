"""SEE: a reader of channels as a linear problem, y = weights^T x + b, with what was seen of x.

Where PatchMoments were counted x is all that one output position sees, and neighbouring pixels may stand in for each other.
Otherwise it is one pixel (Moments), and every kernel position counts as an output of its own. Of wide dense layers it is one
number a channel (Contributions).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from onnxprune.contract.channels import ChannelView, Reader
from onnxprune.contract.contributions import Contributions
from onnxprune.contract.statistics import Moments, PatchMoments, shrink


@dataclass(frozen=True)
class Reading:
    """A reader and its inputs, in float64.

    weights     (inputs, outputs): those of other groups' channels included
    positions   (channels, count): the inputs that each channel of the group gives
    products    (inputs, inputs): mean of x x^T; between blocks of a grouped convolution, which no output sees together, zeros
    covariance  (inputs, inputs): centred, what is left for the weights once a bias has taken the mean; shrunk (see `shrink`)
    gain        what a squared error in y does to the model's output; 1 where it was not measured
    """

    weights: Tensor
    positions: Tensor
    products: Tensor
    covariance: Tensor
    gain: float = 1.0

    @cached_property
    def precision(self) -> Tensor:
        """(channels * count, channels * count): of the group's inputs, channel by channel, all others staying."""
        ours = self.positions.flatten()
        return damped_inverse(self.covariance)[ours][:, ours]


def readings(view: ChannelView) -> list[Reading]:
    """Of every reader whose inputs were looked at; of all readers, as if their inputs were independent, where none was."""
    found = [reading for reader in view.readers if (reading := _reading(view, reader)) is not None]
    return found or [_unseen(reader) for reader in view.readers]


def _reading(view: ChannelView, reader: Reader) -> Reading | None:
    gain = view.gains.get(reader.layer, 1.0)
    parts = view.statistic(reader.layer, Contributions)
    if parts is not None:
        joint, apart = parts.moments()
        return Reading(
            joint.new_ones((len(joint), 1)), parts.owner[reader.positions[:, :1]], joint, shrink(apart, parts.count), gain
        )
    columns, device = reader.columns.double(), reader.columns.device
    patches, channels = view.statistic(reader.layer, PatchMoments), view.statistic(reader.layer, Moments)
    if patches is not None and patches.total is not None and patches.products is not None:
        mean, products = patches.total / patches.count, patches.products / patches.count
        kernel = mean.numel() // len(columns)
        spread = torch.stack([shrink(p - torch.outer(m, m), patches.count) for p, m in zip(products, mean, strict=True)])
        weights = columns.reshape(len(columns), -1, kernel).transpose(1, 2).flatten(0, 1)
        positions = (reader.positions[..., None] * kernel + torch.arange(kernel, device=device)).flatten(1)
        joint, apart = _along_diagonal(products), _along_diagonal(spread)
        return Reading(weights, positions, joint.to(device), apart.to(device), gain)
    if channels is None or channels.products is None:
        return None
    joint = channels.products / channels.count
    return Reading(columns, reader.positions, joint.to(device), channels.shrunk().to(device), gain)


def _along_diagonal(blocks: Tensor) -> Tensor:
    """(groups, d, d) -> (groups * d, groups * d)."""
    joint: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return joint


def _unseen(reader: Reader) -> Reading:
    columns = reader.columns.double()
    unit = torch.eye(len(columns), dtype=columns.dtype, device=columns.device)
    return Reading(columns, reader.positions, unit, unit)


def damped_inverse(covariance: Tensor, damping: float = 0.01) -> Tensor:
    """(covariance + ridge)^-1, the ridge a share of the mean variance."""
    ridge = damping * covariance.diagonal().mean().clamp(min=1e-12)
    unit = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    factor, info = torch.linalg.cholesky_ex(covariance + ridge * unit)
    # Samples that are all alike leave nothing but rounding errors, of either sign.
    while int(info) and bool(torch.isfinite(ridge)):
        ridge = ridge * 10
        factor, info = torch.linalg.cholesky_ex(covariance + ridge * unit)
    return torch.cholesky_inverse(factor)
