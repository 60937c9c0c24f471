"""Least squares for layers whose inputs are so many that sums of their products would take gigabytes: on the rows themselves.

With n rows of p inputs, n far below p, the ridge solution is found in the n x n products of rows (the dual of the normal
equations, by the Woodbury identity): the same weights, for n^2 p multiplications in place of p^3 / 3.

    W = W0 + (T - X W0^T)^T (X X^T / n + lambda I)^-1 X / n        X (n, in), T (n, out), both centred where the bias is free
"""

from __future__ import annotations

import torch
from torch import Tensor

# Rows that are kept of all that are seen, each with the same chance: X takes as many times the inputs, X X^T their square.
MOST = 2048
# Inputs whose products are added up at a time, in float64.
CHUNK = 4096


class Sampled:
    """Rows of (x', t), as Regression has sums of their products; weights and bias as there, in float32.

    x (n, groups, in), t (n, groups, out); n is at most `most`: a uniform sample of the `count` rows seen, by the smallest of as
    many random numbers.
    """

    kind = torch.float32

    def __init__(self, most: int = MOST) -> None:
        self.most, self.count = most, 0
        self.x, self.t = torch.empty(0), torch.empty(0)
        self.keys = torch.empty(0, dtype=torch.float64)
        self._rng = torch.Generator().manual_seed(0)

    def add(self, rows: Tensor, targets: Tensor) -> None:
        """rows (n, groups, in), targets (n, groups * out)."""
        n, groups, _ = rows.shape
        if n:
            keys = torch.rand(n, generator=self._rng, dtype=torch.float64)
            self._take(rows.float(), targets.float().reshape(n, groups, -1), keys, n)

    def merge(self, other: Sampled) -> None:
        if other.count:
            self._take(other.x, other.t, other.keys, other.count)

    def _take(self, x: Tensor, t: Tensor, keys: Tensor, count: int) -> None:
        if self.count:
            x, t, keys = torch.cat([self.x, x]), torch.cat([self.t, t]), torch.cat([self.keys, keys])
        self.count += count
        chosen = torch.argsort(keys, stable=True)[: self.most].sort().values
        if len(chosen) < len(keys):
            at = chosen.to(x.device)
            x, t, keys = x[at], t[at], keys[chosen]
        self.x, self.t, self.keys = x, t, keys

    def finite(self) -> bool:
        return bool(torch.isfinite(self.x).all()) and bool(torch.isfinite(self.t).all())

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Mean squared error of W x' + b, relative to the variance of t."""
        left = (self._outputs(weight) + bias - self.t).double()
        spread = self.t.double().var(0, correction=0).sum()
        return float((left**2).mean(0).sum() / spread.clamp(min=1e-30))

    def _outputs(self, weight: Tensor) -> Tensor:
        return torch.einsum("ngi,goi->ngo", self.x, weight.to(self.x))

    def ridge(self, w0: Tensor, b0: Tensor, share: float, free_bias: bool) -> tuple[Tensor, Tensor] | None:
        """Weights and bias with lambda = share * mean variance of x'; None if the products cannot be factorised."""
        mean = self.x.mean(0) if free_bias else torch.zeros_like(self.x[0])
        x = (self.x - mean).transpose(0, 1)
        left = self.t - self._outputs(w0)
        taken_up = left.mean(0) if free_bias else b0.to(left)
        n = x.shape[1]
        damping = _damping((x.double() ** 2).mean(1), share)
        kernel = _products(x) / n + damping[:, None, None] * torch.eye(n, dtype=torch.float64, device=x.device)
        factor, info = torch.linalg.cholesky_ex(kernel)
        if bool(info.any()):
            return None
        dual = torch.cholesky_solve((left - taken_up).transpose(0, 1).double() / n, factor).float()
        weight = torch.baddbmm(w0.to(x), dual.transpose(1, 2), x)
        bias = self.t.mean(0) - torch.einsum("gi,goi->go", mean, weight) if free_bias else b0.to(x)
        return (weight, bias) if bool(torch.isfinite(weight).all()) else None

    def matched(self, w0: Tensor, b0: Tensor, widest: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Each row of W0 scaled, within `widest`, and shifted to the mean and spread of t."""
        now, wanted = self._outputs(w0).double(), self.t.double()
        spread, goal = now.var(0, correction=0), wanted.var(0, correction=0)
        still = spread <= 1e-9 * (goal.mean() + spread.mean())
        scale = torch.where(still, 1.0, (goal / spread.clamp(min=1e-20)).sqrt().clamp(*widest))
        shift = wanted.mean(0) - now.mean(0) * scale
        return w0 * scale[..., None].to(w0), shift.to(b0)


def _damping(variance: Tensor, share: float) -> Tensor:
    """(groups,): as for the normal equations (least_squares.normal_equations)."""
    return share * variance.mean(1) + 1e-10 * variance.mean() + 1e-12


def _products(x: Tensor) -> Tensor:
    """x x^T (groups, n, n) in float64: in float32 the ridge would drown in rounding."""
    found = x.new_zeros((x.shape[0], x.shape[1], x.shape[1]), dtype=torch.float64)
    for low in range(0, x.shape[2], CHUNK):
        wide = x[:, :, low : low + CHUNK].double()
        found.baddbmm_(wide, wide.transpose(1, 2))
    return found
