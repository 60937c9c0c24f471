"""Empirical sensitivity: how much of a neuron's sum one weight can make up, by the samples that were seen (SiPP, CoreNet, PFP).

    s_ij = max over samples, patches p, signs of the activations of  w_ij a_jp / z_ip,   z_ip = sum_k w_ik a_kp

where the sum runs over the weights with the sign of w_ij and the activations with the sign of a_jp only: four quadrants, of which
each weight lives in two (Baykal, Liebenwein, Gilitschenski, Feldman, Rus: "SiPPing Neural Networks", Definition 1 and section 3).
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor

from onnxprune.contract import Statistic
from onnxprune.errors import UsageError

# Sums below this count as zero: their neuron has nothing that a weight could be a share of.
SMALLEST = 1.2e-7
# Products that are looked at together: what fits into the cache of a core, and what fills a GPU.
TILE, DEVICE_TILE = 1 << 17, 1 << 24
WIDEST = 512
# Output positions per sample; with all of them early convolutions would cost more than the whole model's arithmetic.
PATCHES = 32

Reduce = Literal["max", "mean"]


class Sensitivity(Statistic):
    """`value` (groups, out, in) float32 in [0, 1]: s_ij; 0 for weights that are zero and for inputs that are never active.

    patches   output positions per sample that are looked at, chosen at random; 0: all. Fewer weaken the maximum: s can only be
              too small
    reduce    over the patches of one sample: 'max' as in the paper, or 'mean' as in the authors' code for the deterministic
              variant. Over samples it is always the maximum
    """

    rows = "grouped"
    weighs = True

    def __init__(self, matrix: Tensor, patches: int = PATCHES, reduce: Reduce = "max") -> None:
        if reduce not in ("max", "mean"):
            raise UsageError(f"patch_reduce is {reduce!r}", "choose max or mean")
        if patches != int(patches) or patches < 0:
            raise UsageError(f"patches is {patches}", "give a whole number of output positions per sample, or 0 for all")
        self.patches, self.reduce = int(patches), reduce
        self.by_sample = reduce == "mean"
        self.count = 0
        self.value = torch.zeros_like(matrix, dtype=torch.float32)
        self._matrix = matrix

    def add(self, rows: Tensor) -> None:
        """rows (n, groups, in); of one sample where `reduce` is 'mean'."""
        if not len(rows):
            return
        self.count += len(rows)
        inputs = rows.float().transpose(0, 1).contiguous()
        sides = [inputs] if bool((inputs >= 0).all()) else [inputs.clamp(min=0), (-inputs).clamp(min=0)]
        for sign in (1, -1):
            weights = (sign * self._matrix.float()).clamp(min=0)
            shares = [weights * self._ratios(side, weights) for side in sides]
            # No input is active on both sides at one patch, so that the mean of the larger ratio is the sum of the means.
            found = torch.stack(shares).sum(0) if self.reduce == "mean" else torch.stack(shares).amax(0)
            torch.maximum(self.value, found.clamp(max=1.0), out=self.value)

    def _ratios(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """(groups, out, in): a_jp / z_ip, its maximum or mean over the patches of inputs (groups, patches, in)."""
        sums = inputs @ weights.transpose(1, 2)
        inverse = torch.where(sums > SMALLEST, 1 / sums.clamp(min=SMALLEST), 0.0)
        if self.reduce == "mean":
            return inverse.transpose(1, 2) @ inputs / inputs.shape[1]
        return max_product(inverse.transpose(0, 1).contiguous(), inputs.transpose(0, 1).contiguous())

    def merge(self, other: Self) -> None:
        self.count += other.count
        torch.maximum(self.value, other.value, out=self.value)

    def wanted(self, inputs: int) -> int | None:
        return None

    def places(self) -> int | None:
        return self.patches or None

    def bytes(self, groups: int, out: int, inputs: int) -> int:
        return 4 * groups * out * inputs


def max_product(left: Tensor, right: Tensor) -> Tensor:
    """(groups, out, in): max over p of left[p, g, i] * right[p, g, j] >= 0; left is (p, groups, out), right (p, groups, in).

    Tile by tile, so that the products never leave the cache: three times as fast as over the whole, and no more memory.
    """
    groups, out, inputs = left.shape[1], left.shape[2], right.shape[2]
    tile = TILE if left.device.type == "cpu" else DEVICE_TILE
    columns = -(-inputs // -(-inputs // WIDEST))
    rows = min(out, max(1, tile // columns))
    blocks = min(groups, max(1, tile // (rows * columns)))
    patches = max(1, tile // (blocks * rows * columns))
    found = left.new_zeros(groups, out, inputs)
    for g in range(0, groups, blocks):
        for j in range(0, inputs, columns):
            b = right[:, g : g + blocks, None, j : j + columns].contiguous()
            for i in range(0, out, rows):
                a = left[:, g : g + blocks, i : i + rows, None]
                best = found[g : g + blocks, i : i + rows, j : j + columns].clone()
                for p in range(0, len(left), patches):
                    product = a[p : p + patches] * b[p : p + patches]
                    torch.maximum(best, product[0] if patches == 1 else product.amax(0), out=best)
                found[g : g + blocks, i : i + rows, j : j + columns] = best
    return found
