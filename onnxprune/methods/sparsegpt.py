"""Frantar, Alistarh: "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (ICML 2023).

Optimal brain surgeon in one order for all rows: columns are settled from the first to the last, and what a removed weight did is
taken over by the columns behind it (Algorithm 1). With H = mean x x^T + lambda I, and U upper triangular with H^-1 = U^T U:

    in each block of B columns, the weights with the smallest w^2 / U_jj^2 go (N:M: among each M columns, as they are reached)
    column by column   e = (w_j - q_j) / U_jj,   W_k <- W_k - e U_jk for the columns k behind j

Symbols: the paper's [H^-1]_jj of the remaining columns is U_jj^2; lambda is the option damping (percdamp), as a share of the mean
of H's diagonal. Shapes: weights (groups, out, in), H and U (groups, in, in).

Departures from the paper: each block of columns keeps its exact share of the quota (the authors' threshold removes one weight too
many, and more where scores are equal); N:M blocks run along the input channels of a convolution; layers too wide for H are swept
in the space of sampled rows (algorithms.md 5.5). The bias is not pruned. Without a repair behind it this is the paper's result.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from onnxprune.contract import LayerPlan, LayerView, Option, Quota, method
from onnxprune.errors import UsageError
from onnxprune.methods.obs import DAMPING, SecondOrder
from onnxprune.quadratic import Quadratic


@method
class SparseGpt(SecondOrder):
    """Weights go column block by column block, and those behind make up for them."""

    name = "sparsegpt"
    paper = "Frantar and Alistarh, SparseGPT (ICML 2023), Algorithm 1"
    options: ClassVar[dict[str, Option]] = {
        "damping": DAMPING,
        "block": Option(128, "columns that are compared with each other (B_s)"),
    }

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.values["block"] != int(self.values["block"]) or self.values["block"] < 1:
            raise UsageError(f"block is {self.values['block']}", "give a whole number from 1")

    def decide(self, view: LayerView, scores: Tensor, quota: Quota, rng: torch.Generator) -> LayerPlan:
        wanted = quota.choose(scores, view)
        if bool((wanted | (view.matrix == 0)).all()):
            return LayerPlan(wanted, error=0.0)
        quadratic = self.quadratic(view)
        order = _channels_within_positions(view) if quota.pattern else torch.arange(view.matrix.shape[2])
        order = order.to(view.matrix.device)
        keep, matrix = self._sweep(quadratic.ordered(order), view.matrix[:, :, order], quota)
        back = torch.argsort(order)
        return self.plan(view, quadratic, keep[:, :, back], matrix[:, :, back])

    def _sweep(self, quadratic: Quadratic, weights: Tensor, quota: Quota) -> tuple[Tensor, Tensor]:
        """(keep, matrix), columns in the order of the sweep."""
        sweep = quadratic.sweep(weights)
        there = weights != 0
        size = weights.shape[2]
        width = int(self.values["block"])
        step = width if quota.pattern is None else max(width // quota.pattern[1], 1) * quota.pattern[1]
        shares = _shares(there, quota, step)
        keep, matrix = torch.zeros_like(there), torch.zeros_like(weights)
        for number, low in enumerate(range(0, size, step)):
            high = min(low + step, size)
            block, upper = sweep.block(low, high)
            share = None if shares is None else shares[..., number]
            stays, values, errors = _settle(block.clone(), upper, there[:, :, low:high], share, quota.pattern)
            keep[:, :, low:high], matrix[:, :, low:high] = stays, values.to(matrix.dtype)
            sweep.push(errors)
        return keep, matrix


def _settle(
    block: Tensor, upper: Tensor, there: Tensor, share: Tensor | None, pattern: tuple[int, int] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one block of columns (groups, out, B): which weights stay, their values, and the errors that are left to those behind.

    share: how many stay in the block, or in each of its rows (groups, out); None where a pattern says so.
    """
    root = upper.diagonal(dim1=1, dim2=2)
    stays = torch.zeros_like(there)
    if share is not None:
        stays = _best((block / root[:, None]) ** 2, there, share)
    errors = torch.zeros_like(block)
    for j in range(block.shape[2]):
        if pattern is not None and j % pattern[1] == 0:
            among = slice(j, j + pattern[1])
            n = torch.full(block.shape[:2], pattern[0], device=block.device)
            stays[:, :, among] = _best((block[:, :, among] / root[:, None, among]) ** 2, there[:, :, among], n)
        gone = torch.where(stays[:, :, j], 0.0, block[:, :, j]) / root[:, None, j]
        errors[:, :, j] = gone
        block[:, :, j:] -= gone[:, :, None] * upper[:, None, j, j:]
    return stays, block * stays, errors


def _best(scores: Tensor, there: Tensor, count: Tensor) -> Tensor:
    """The best of each row (count (groups, out)) or of the whole (a single count): weights that are zero already come last."""
    ranked = scores.masked_fill(~there, -torch.inf)
    if count.ndim == 0:
        ranked = ranked.reshape(1, 1, -1)
    place = torch.argsort(torch.argsort(ranked, dim=2, descending=True, stable=True), dim=2, stable=True)
    return (place < count[..., None]).reshape(there.shape) & there


def _shares(there: Tensor, quota: Quota, step: int) -> Tensor | None:
    """How many weights stay in each block: in proportion to those that are not zero, adding up to the quota.

    (blocks,), or (groups, out, blocks) where every row has a quota of its own; None with a pattern.
    """
    if quota.pattern is not None:
        return None
    count = there.sum(2) if quota.rows is not None else there.sum().reshape(1, 1)
    wanted = torch.minimum(count, quota.rows.to(count) if quota.rows is not None else torch.full_like(count, quota.keep))
    ends = torch.stack([there[:, :, : low + step].sum(2) for low in range(0, there.shape[2], step)], 2)
    ends = ends if quota.rows is not None else ends.sum((0, 1), keepdim=True)
    kept = wanted[..., None] * ends // count.clamp(min=1)[..., None]
    shares = torch.diff(kept, dim=2, prepend=torch.zeros_like(kept[..., :1]))
    return shares if quota.rows is not None else shares[0, 0]


def _channels_within_positions(view: LayerView) -> Tensor:
    """Columns by kernel position, the channels of one position side by side, as patterns run."""
    return torch.arange(view.matrix.shape[2]).reshape(-1, view.kernel).T.flatten()
