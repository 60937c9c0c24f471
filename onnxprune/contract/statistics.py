"""SEE: what may be counted over the inputs of a layer, sample by sample, without keeping them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor

S = TypeVar("S", bound="Statistic")
# Rows for the statistics of a layer, per input, and the fewest.
ROWS_PER_INPUT, FEWEST_ROWS = 8, 4096


class Statistic(ABC):
    """Something counted over the rows of a layer's input: n positions of some samples, d inputs per position.

    `rows` says what a row is: 'patches' - what one output position sees, (n, d) with d = channels * kernel positions, as the
    weight matrix orders them; 'grouped' - the same apart for each group of a convolution, (n, groups, d); 'channels' - one input
    position, (n, d) with d = channels. `weighs`: it is made with the layer's weights (see Method.counter).
    `by_sample`: every call of `add` brings the rows of one sample alone.
    `add` may be called any number of times; `merge` adds a count that was made apart, on other samples. Neither may keep more
    rows than a number fixed beforehand.
    """

    rows: ClassVar[Literal["patches", "channels", "grouped"]] = "channels"
    weighs: ClassVar[bool] = False
    by_sample: bool = False

    @abstractmethod
    def add(self, rows: Tensor) -> None: ...

    @abstractmethod
    def merge(self, other: Self) -> None: ...

    def wanted(self, inputs: int) -> int | None:
        """After how many rows, spread over the samples, it has seen enough of a layer with so many inputs; None: never."""
        return max(ROWS_PER_INPUT * inputs, FEWEST_ROWS)

    def bytes(self, groups: int, out: int, inputs: int) -> int:
        """Memory it holds for a layer with a matrix of this shape: what does not fit together is counted in several passes."""
        return 4 * 8 * groups * inputs

    def places(self) -> int | None:
        """The most positions of one sample that it wants to see, chosen at random; None: as many as `wanted` asks for."""
        return None


class MaxNorm(Statistic):
    """The largest ||(x, 1)|| over all patches x: beta, the radius of the ball of queries in the coreset papers, in `value`."""

    rows = "patches"

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, rows: Tensor) -> None:
        if len(rows):
            self.value = max(self.value, math.sqrt(float((rows.float() ** 2).sum(1).max()) + 1.0))

    def merge(self, other: Self) -> None:
        self.value = max(self.value, other.value)


class Moments(Statistic):
    """Count, mean (d) and second moments (d, d) of the channels a layer reads; sums of products are added up in float32."""

    rows = "channels"

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None
        self.products: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        rows = rows.float()
        if self.total is None or self.products is None:
            self.total = rows.new_zeros(rows.shape[1], dtype=torch.float64)
            self.products = rows.new_zeros((rows.shape[1], rows.shape[1]))
        self.count += len(rows)
        self.total += rows.sum(0, dtype=torch.float64)
        self.products.addmm_(rows.T, rows)

    def merge(self, other: Self) -> None:
        if other.total is None or other.products is None:
            return
        self.count += other.count
        self.total = other.total.clone() if self.total is None else self.total + other.total
        self.products = other.products.clone() if self.products is None else self.products + other.products

    @property
    def mean(self) -> Tensor:
        assert self.total is not None, "no rows were added"
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(d, d), centred: what is left for the weights once a bias has taken the mean."""
        assert self.products is not None, "no rows were added"
        return self.products.double() / self.count - torch.outer(self.mean, self.mean)

    def shrunk(self) -> Tensor:
        """The covariance, drawn towards its diagonal as far as the count is small."""
        return shrink(self.covariance, self.count)


def shrink(covariance: Tensor, count: int) -> Tensor:
    """Drawn towards its diagonal by the oracle-approximating share (Chen, Wiesel, Eldar, Hero 2010, with the diagonal as target):
    from few samples the plain covariance promises that almost nothing is lost by removing anything.
    """
    squares = (covariance**2).sum().clamp(min=1e-300)
    rank = covariance.diagonal().sum() ** 2 / squares
    share = ((1 + rank) / ((count + 1) * (1 - rank / len(covariance)).clamp(min=1e-3))).clamp(max=1.0)
    return (1 - share) * covariance + share * torch.diag(covariance.diagonal())


class PatchMoments(Statistic):
    """Count, mean (groups, d) and second moments (groups, d, d) of all that one output position sees, in float64.

    Of a layer with more than WIDEST inputs nothing is kept, and `total` stays None: there the channels alone (Moments) must do.
    """

    rows = "grouped"
    # A square of 42 MB, and about six seconds of one core to fill it: the convolutions 3x3 of 256 channels.
    WIDEST: ClassVar[int] = 2304

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None
        self.products: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        if rows.shape[2] > self.WIDEST:
            return
        x = rows.float().permute(1, 2, 0)
        total, products = x.sum(2, dtype=torch.float64), (x @ x.transpose(1, 2)).double()
        self.count += len(rows)
        self.total = total if self.total is None else self.total + total
        self.products = products if self.products is None else self.products.add_(products)

    def merge(self, other: Self) -> None:
        if other.total is None or other.products is None:
            return
        self.count += other.count
        self.total = other.total if self.total is None else self.total + other.total
        self.products = other.products if self.products is None else self.products + other.products

    def bytes(self, groups: int, out: int, inputs: int) -> int:
        return 8 * groups * inputs**2 if inputs <= self.WIDEST else 0


class Zeros(Statistic):
    """The share of exact zeros of each channel that a layer reads, (d) in float64: APoZ, the average percentage of zeros."""

    rows = "channels"

    def __init__(self) -> None:
        self.count = 0
        self._zeros: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        found = (rows == 0).sum(0).double()
        self.count += len(rows)
        self._zeros = found if self._zeros is None else self._zeros + found

    def merge(self, other: Self) -> None:
        if other._zeros is None:
            return
        self.count += other.count
        self._zeros = other._zeros if self._zeros is None else self._zeros + other._zeros

    @property
    def share(self) -> Tensor:
        assert self._zeros is not None, "no rows were added"
        return self._zeros / self.count


class InputMoments(Statistic):
    """What each input of a layer is by itself: mean, mean square and share of exact zeros, each (groups, in), in float64."""

    rows = "grouped"

    def __init__(self) -> None:
        self.count = 0
        self._sums: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        found = [rows.sum(0, dtype=torch.float64), (rows**2).sum(0, dtype=torch.float64), (rows == 0).sum(0).double()]
        self.count += len(rows)
        self._sums = torch.stack(found) if self._sums is None else self._sums + torch.stack(found)

    def merge(self, other: Self) -> None:
        if other._sums is None:
            return
        self.count += other.count
        self._sums = other._sums if self._sums is None else self._sums + other._sums

    def _mean(self, number: int) -> Tensor:
        assert self._sums is not None, "no rows were added"
        return self._sums[number] / self.count

    @property
    def mean(self) -> Tensor:
        return self._mean(0)

    @property
    def square(self) -> Tensor:
        return self._mean(1)

    @property
    def zeros(self) -> Tensor:
        return self._mean(2)
