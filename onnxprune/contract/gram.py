"""SEE: the second moments of a layer's inputs, as a matrix, or as a sample of rows where the matrix would take gigabytes."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from onnxprune.contract.statistics import Statistic
from onnxprune.quadratic import Dense, Quadratic, Thin, add_square

# Inputs up to which H is counted; of wider layers so many rows are kept, each of all rows seen with the same chance.
WIDEST, RESERVOIR = 8192, 1024


class Gram(Statistic):
    """H = mean x x^T (groups, in, in): products in float32, sums in float64. The Hessian of half the squared error of a layer.

    Wider layers than `widest` keep `reservoir` rows instead: the rows with the smallest of as many random numbers, which is a
    uniform sample of all rows however they come and however counts are merged.
    """

    rows = "grouped"

    def __init__(self, widest: int = WIDEST, reservoir: int = RESERVOIR) -> None:
        self.widest, self.reservoir = widest, reservoir
        self.count = 0
        self.total: Tensor | None = None
        self.products: Tensor | None = None
        self.kept: Tensor | None = None
        self.keys = torch.empty(0, dtype=torch.float64)
        self._rng = torch.Generator().manual_seed(0)

    def add(self, rows: Tensor) -> None:
        if not len(rows):
            return
        self.count += len(rows)
        total = rows.sum(0, dtype=torch.float64)
        self.total = total if self.total is None else self.total + total
        if rows.shape[2] > self.widest:
            self._sample(rows.float(), torch.rand(len(rows), generator=self._rng, dtype=torch.float64))
            return
        x = rows.float().permute(1, 2, 0)
        if self.products is None:
            self.products = x.new_zeros((x.shape[0], x.shape[1], x.shape[1]), dtype=torch.float64)
        add_square(self.products, x)

    def merge(self, other: Self) -> None:
        if other.total is None:
            return
        self.count += other.count
        self.total = other.total if self.total is None else self.total + other.total
        if other.products is not None:
            self.products = other.products.clone() if self.products is None else self.products + other.products
        if other.kept is not None:
            self._sample(other.kept, other.keys)

    def _sample(self, rows: Tensor, keys: Tensor) -> None:
        rows = rows if self.kept is None else torch.cat([self.kept, rows])
        keys = torch.cat([self.keys, keys])
        chosen = torch.argsort(keys, stable=True)[: self.reservoir].sort().values
        self.kept, self.keys = rows[chosen.to(rows.device)], keys[chosen]

    def wanted(self, inputs: int) -> int | None:
        return self.reservoir if inputs > self.widest else super().wanted(inputs)

    def bytes(self, groups: int, out: int, inputs: int) -> int:
        return 4 * groups * inputs * self.reservoir if inputs > self.widest else 8 * groups * inputs**2

    @property
    def mean(self) -> Tensor:
        """(groups, in): the mean input."""
        assert self.total is not None, "no rows were added"
        return self.total / self.count

    def damped(self, share: float) -> Quadratic:
        """H + share * (mean of its diagonal) I, per group; I alone where no input was ever active.

        An input that is never active costs nothing to lose and takes over nothing: to a refit towards the old weights the ridge
        is all there is, and leaves its weights as they were.
        """
        if self.kept is not None:
            samples = self.kept.permute(1, 0, 2) / len(self.kept) ** 0.5
            return Thin(samples, _ridge((samples.double() ** 2).sum(1), share))
        assert self.products is not None, "no rows were added"
        matrix = self.products / self.count
        matrix.diagonal(dim1=1, dim2=2).add_(_ridge(matrix.diagonal(dim1=1, dim2=2), share))
        return Dense(matrix)


def _ridge(diagonal: Tensor, share: float) -> Tensor:
    mean = diagonal.mean(1, keepdim=True)
    return torch.where(mean > 0, share * mean, 1.0).expand_as(diagonal)
