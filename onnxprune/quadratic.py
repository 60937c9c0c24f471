"""The squared error of a layer as a function of its weights, H = mean x x^T, held as a matrix or as samples that stand for it.

    error of V instead of W:   mean ||(V - W) x||^2 = tr((V - W) H (V - W)^T)

All tensors have the groups of a convolution in front: weights (groups, out, in), diagonals (groups, in). Dense keeps H itself,
(groups, in, in); Thin keeps few samples X (groups, n, in) and a ridge, H = X^T X + diag(ridge), for layers whose H would take
gigabytes: nothing it does needs more memory than n x n or than the weights (Woodbury; algorithms.md 5.5).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

# Inputs up to which products are taken in float64; above that float32, with the ridge well above its rounding.
PRECISE = 1024
# Multiplications up to which rows are solved exactly, one factorisation for each different support.
EXACT = 2 * 10**9
# Smallest to largest pivot of a Cholesky factor below which a matrix counts as singular.
SINGULAR = 1e-5
# Pivots of a wide matrix of unit diagonal above which float32 is enough for its inverse.
STEADY = 0.01
# Steps of conjugate gradients, and the share of the error that is left below which what a step gains makes it the last.
STEPS, LITTLE = 60, 1e-4
# Share of the whole below which an error is rounding.
ROUNDING = 1e-9
# x x^T is symmetric: from this width on it is computed in strips up to the diagonal, five eighths of the multiplications.
WIDE, BLOCKS = 128, 4


def strips(size: int) -> list[tuple[int, int]]:
    """Rows of a symmetric matrix that are computed together, each up to its diagonal block."""
    edges = [size * i // BLOCKS for i in range(BLOCKS + 1)] if size >= WIDE else [0, size]
    return list(pairwise(edges))


def add_square(total: Tensor, x: Tensor) -> None:
    """Add x x^T to `total` (groups, in, in), for x (groups, in, n); of a wide layer only the blocks on one side are computed."""
    for low, high in strips(x.shape[1]):
        strip = x[:, low:high] @ x[:, :high].transpose(1, 2)
        total[:, low:high, :high] += strip
        total[:, :low, low:high] += strip[:, :, :low].transpose(1, 2)


class Quadratic(ABC):
    """H (groups, in, in), symmetric and, unless it was left without a ridge, positive definite. dtype: that of all products."""

    diagonal: Tensor
    dtype: torch.dtype

    @abstractmethod
    def times(self, values: Tensor) -> Tensor:
        """values H."""

    @abstractmethod
    def solver(self, shift: float) -> Callable[[Tensor], Tensor]:
        """The function that takes values to values (H + shift I)^-1."""

    @abstractmethod
    def normal(self) -> Quadratic:
        """D^-1 H D^-1 of unit diagonal, D = diag(H)^1/2; products in float32, for what a shift makes well conditioned."""

    @abstractmethod
    def ordered(self, order: Tensor) -> Quadratic:
        """H with its inputs in another order (in,)."""

    @abstractmethod
    def inverse_diagonal(self) -> Tensor:
        """(groups, in) float64: the diagonal of H^-1, of the pseudo-inverse where H is singular."""

    @abstractmethod
    def block(self, group: int, where: Tensor) -> Tensor:
        """(m, m) float64: rows and columns `where` of one group's H."""

    @abstractmethod
    def sweep(self, weights: Tensor) -> Sweep:
        """Column after column is settled, those behind it take over its error. See Sweep."""

    def error(self, change: Tensor) -> float:
        """tr(change H change^T): the mean squared error over a layer's outputs, added up."""
        change = change.to(self.dtype)
        return max(float((self.times(change) * change).sum(dtype=torch.float64)), 0.0)


class Sweep(ABC):
    """What is left of the weights while columns are settled block by block, from the first to the last.

    With H_U the part of H that belongs to columns not yet settled, (H_U^-1) = U^T U with U upper triangular: settling column j
    at q_j moves those behind it by -(w_j - q_j)/U_jj * U_j,: (optimal brain surgeon in a fixed order, SparseGPT).
    """

    @abstractmethod
    def block(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Columns low:high of the weights as they stand, (groups, out, high - low), and U there (groups, B, B)."""

    @abstractmethod
    def push(self, errors: Tensor) -> None:
        """Hand the errors (w_j - q_j)/U_jj of the last block, (groups, out, B), on to the columns behind it."""


class Dense(Quadratic):
    """H itself."""

    def __init__(self, matrix: Tensor, *, precise: bool = True) -> None:
        self.dtype = torch.float64 if precise and matrix.shape[-1] <= PRECISE else torch.float32
        self.matrix = matrix.to(self.dtype)
        self.diagonal = self.matrix.diagonal(dim1=1, dim2=2)

    def times(self, values: Tensor) -> Tensor:
        return values.to(self.dtype) @ self.matrix

    def solver(self, shift: float) -> Callable[[Tensor], Tensor]:
        shifted = self.matrix.clone()
        shifted.diagonal(dim1=1, dim2=2).add_(shift)
        factor = cholesky(shifted)
        return lambda values: torch.cholesky_solve(values.transpose(1, 2), factor).transpose(1, 2)

    def normal(self) -> Dense:
        scale = 1 / self.diagonal.sqrt()
        return Dense(self.matrix * scale[:, :, None] * scale[:, None, :], precise=False)

    def ordered(self, order: Tensor) -> Dense:
        return Dense(self.matrix[:, order[:, None], order])

    def inverse(self) -> Tensor:
        """(groups, in, in) float64: H^-1, the pseudo-inverse where there is none."""
        factor, info = torch.linalg.cholesky_ex(self.matrix.double())
        # Rounding may let a singular matrix pass: then its last pivots are rounding errors.
        pivots = factor.diagonal(dim1=1, dim2=2)
        if not bool(info.any()) and bool((pivots.amin(1) > SINGULAR * pivots.amax(1)).all()):
            return torch.cholesky_inverse(factor)
        found: Tensor = torch.linalg.pinv(self.matrix.double(), rtol=SINGULAR**2, hermitian=True)
        return found

    def inverse_diagonal(self) -> Tensor:
        if self.dtype == torch.float32:
            factor, info = torch.linalg.cholesky_ex(self.normal().matrix)
            if not bool(info.any()) and bool((factor.diagonal(dim1=1, dim2=2) > STEADY).all()):
                return torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2).double() / self.diagonal
        return torch.diagonal(self.inverse(), dim1=1, dim2=2)

    def block(self, group: int, where: Tensor) -> Tensor:
        return self.matrix[group][where[:, None], where].double()

    def sweep(self, weights: Tensor) -> Sweep:
        return _DenseSweep(self.matrix, weights)


class _DenseSweep(Sweep):
    """U without the inverse: the Cholesky factor of the mirrored matrix, mirrored back and inverted (better conditioned)."""

    def __init__(self, matrix: Tensor, weights: Tensor) -> None:
        mirrored = cholesky(matrix.double().flip(1, 2)).flip(1, 2)
        unit = torch.eye(matrix.shape[-1], dtype=torch.float64, device=matrix.device).expand_as(mirrored)
        self.upper = torch.linalg.solve_triangular(mirrored, unit, upper=True).to(matrix.dtype)
        self.weights = weights.to(matrix.dtype, copy=True)
        self.at = (0, 0)

    def block(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        self.at = (low, high)
        return self.weights[:, :, low:high], self.upper[:, low:high, low:high]

    def push(self, errors: Tensor) -> None:
        low, high = self.at
        self.weights[:, :, high:] -= errors @ self.upper[:, low:high, high:]


class Thin(Quadratic):
    """X^T X + diag(ridge), X (groups, n, in) the samples divided by the root of their number."""

    def __init__(self, samples: Tensor, ridge: Tensor) -> None:
        self.dtype = torch.float32
        self.samples, self.ridge = samples.float(), ridge.float()
        self.diagonal = (self.samples**2).sum(1) + self.ridge

    def times(self, values: Tensor) -> Tensor:
        values = values.to(self.dtype)
        return torch.baddbmm(values * self.ridge[:, None], values @ self.samples.transpose(1, 2), self.samples)

    def solver(self, shift: float) -> Callable[[Tensor], Tensor]:
        whitening = 1 / (self.ridge + shift)
        factor = cholesky(self._kernel(whitening)).float()

        def solve(values: Tensor) -> Tensor:
            light = values * whitening[:, None]
            seen = torch.cholesky_solve(self.samples @ light.transpose(1, 2), factor).transpose(1, 2)
            return light.sub_((seen @ self.samples).mul_(whitening[:, None]))

        return solve

    def _kernel(self, whitening: Tensor) -> Tensor:
        """(groups, n, n) float64: I + X diag(whitening) X^T."""
        kernel = ((self.samples * whitening[:, None]) @ self.samples.transpose(1, 2)).double()
        kernel.diagonal(dim1=1, dim2=2).add_(1.0)
        return kernel

    def normal(self) -> Thin:
        scale = 1 / self.diagonal.sqrt()
        return Thin(self.samples * scale[:, None], self.ridge * scale**2)

    def ordered(self, order: Tensor) -> Thin:
        return Thin(self.samples[:, :, order], self.ridge[:, order])

    def inverse_diagonal(self) -> Tensor:
        x = self.samples.double()
        if bool((self.ridge <= 0).any()):
            values, vectors = torch.linalg.eigh(x @ x.transpose(1, 2))
            weighed = torch.where(values > 1e-10 * values.amax(1, keepdim=True), 1 / values.clamp(min=1e-300), 0.0)
            return torch.sum(((vectors * weighed[:, None]).transpose(1, 2) @ x) ** 2, 1)
        whitening = 1 / self.ridge.double()
        half = torch.linalg.solve_triangular(cholesky(self._kernel(1 / self.ridge)), x, upper=False)
        return torch.sub(whitening, whitening**2 * (half**2).sum(1))

    def block(self, group: int, where: Tensor) -> Tensor:
        x = self.samples[group][:, where].double()
        return x.T @ x + torch.diag(self.ridge[group, where].double())

    def sweep(self, weights: Tensor) -> Sweep:
        return _ThinSweep(self, weights)


class _ThinSweep(Sweep):
    """The updates of all columns lie in the span of the samples: C (groups, out, n) tells them all, w_j + C x_j / ridge_j."""

    def __init__(self, of: Thin, weights: Tensor) -> None:
        self.samples, self.whitening = of.samples, 1 / of.ridge.clamp(min=1e-30)
        self.kernel = of._kernel(self.whitening)
        self.weights = weights.float()
        self.moved = self.weights.new_zeros(*weights.shape[:2], self.samples.shape[1])
        self.at, self.carry = (0, 0), self.moved

    def block(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        x, light = self.samples[:, :, low:high], self.whitening[:, low:high]
        lit = (x * light[:, None]).double()
        solved = torch.cholesky_solve(lit, cholesky(self.kernel))
        inverse = torch.diag_embed(light.double()) - lit.transpose(1, 2) @ solved
        upper = cholesky(inverse).transpose(1, 2)
        self.carry = torch.linalg.solve_triangular(upper.transpose(1, 2), solved.transpose(1, 2), upper=False).float()
        self.kernel -= lit @ x.double().transpose(1, 2)
        return self.weights[:, :, low:high] + (self.moved @ x) * light[:, None], upper.float()

    def push(self, errors: Tensor) -> None:
        self.moved += errors @ self.carry


def cholesky(matrix: Tensor) -> Tensor:
    """The lower factor; where rounding took definiteness away, that of the matrix with a ridge just large enough."""
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    ridge = 1e-7 * matrix.diagonal(dim1=1, dim2=2).mean().clamp(min=1e-30)
    while bool(info.any()) and bool(torch.isfinite(ridge)):
        raised = matrix.clone()
        raised.diagonal(dim1=1, dim2=2).add_(ridge)
        factor, info = torch.linalg.cholesky_ex(raised)
        ridge = ridge * 10
    return factor


def fit_on_mask(quadratic: Quadratic, right: Tensor, start: Tensor, mask: Tensor, whole: float, steps: int = STEPS) -> Tensor:
    """V (groups, out, in), zero outside `mask`, with V H = right on it: each row the best on its own inputs.

    Exact where the factorisations are cheap enough, else conjugate gradients from `start`. whole: the squared error of V = 0.
    """
    supports = [torch.unique(m, dim=0, return_inverse=True) for m in mask]
    cost = sum(float((support.sum(1).double() ** 3).sum()) / 3 for support, _ in supports)
    if cost > EXACT:
        return conjugate_gradients(quadratic, right, start, mask, whole, steps)
    found = torch.zeros_like(right, dtype=torch.float64)
    for group, (support, owner) in enumerate(supports):
        for number, keep in enumerate(support):
            where, rows = keep.nonzero()[:, 0], (owner == number).nonzero()[:, 0]
            if len(where):
                factor, info = torch.linalg.cholesky_ex(quadratic.block(group, where))
                solved = torch.cholesky_solve(right[group][rows[:, None], where].double().T, factor).T
                found[group, rows[:, None], where] = solved if not int(info) else torch.nan
    return found


def conjugate_gradients(
    quadratic: Quadratic, right: Tensor, start: Tensor, mask: Tensor, whole: float, steps: int = STEPS
) -> Tensor:
    """Approximate solution on the mask, all rows at once, from `start`; Jacobi preconditioned, one product with H per step.

    The error is known throughout (`whole` at V = 0, and every step tells what it gains): it ends where a step gains little of it.
    """
    kind = quadratic.dtype
    scale = 1 / quadratic.diagonal.clamp(min=1e-30)[:, None]
    value, right = (start * mask).to(kind), right.to(kind)
    residual = right - quadratic.times(value)
    error = whole - float((value * (right + residual)).sum(dtype=torch.float64))
    residual = residual.mul_(mask)
    direction = residual * scale
    power = (residual * direction).sum(2, keepdim=True)
    for _ in range(steps):
        pushed = quadratic.times(direction).mul_(mask)
        curvature = (direction * pushed).sum(2, keepdim=True)
        length = torch.where(curvature > 0, power / curvature.clamp(min=1e-30), 0.0)
        value.addcmul_(length.expand_as(value), direction)
        residual.addcmul_(length.expand_as(value), pushed, value=-1)
        gain = float((length * power).sum(dtype=torch.float64))
        error -= gain
        if not gain > LITTLE * max(error, ROUNDING * whole):
            break
        towards = residual * scale
        after = (residual * towards).sum(2, keepdim=True)
        direction = direction.mul_(torch.where(power > 0, after / power.clamp(min=1e-30), 0.0)).add_(towards)
        power = after
    return value
