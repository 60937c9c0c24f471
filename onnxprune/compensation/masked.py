"""Least-squares refit of a layer on the weights that stayed, for any mask: what is zero stays zero.

    minimise over W with the support of W0, b:   mean ||W x' + b - t||^2 + lambda ||W - W0||^2

Row by row this is a linear system of its own, on the inputs that the row still reads. Small layers are solved exactly; for wide
ones conjugate gradients on all rows at once, projected on the mask, cost one product with the Gram matrix per step (the finish of
ALPS, Meng et al. 2024, and algorithms.md 5.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.compensation.least_squares import Regression, Repaired, Solution, normal_equations, refit

# Multiplications up to which the rows are solved exactly, one factorisation each.
EXACT = 2 * 10**10
# Steps of conjugate gradients, and the share of the first residual at which they stop.
STEPS, ENOUGH = 60, 1e-5


def masked_least_squares(fit: Regression, held: Regression, weight: Tensor, bias: Tensor, *, free_bias: bool) -> Repaired:
    """As least_squares, on the support of `weight` (groups, out, in)."""
    return refit(_solve, fit, held, weight, bias, free_bias=free_bias)


def _solve(data: Regression, w0: Tensor, b0: Tensor, ridge: float, free_bias: bool) -> Solution | None:
    """Normal equations restricted to the mask; None if they cannot be solved."""
    system, right, bias = normal_equations(data, w0, b0, ridge, free_bias)
    parts = zip(system, right.transpose(1, 2), w0, w0 != 0, strict=True)
    weight = torch.stack([_rows(*part) for part in parts])
    return (weight, bias(weight)) if bool(torch.isfinite(weight).all()) else None


def _rows(system: Tensor, right: Tensor, start: Tensor, mask: Tensor) -> Tensor:
    """(out, in): every row of `right` (out, in) solved on its own inputs."""
    kept = mask.sum(1)
    if float((kept.double() ** 3).sum()) / 3 <= EXACT:
        return _exact(system, right, mask)
    return conjugate_gradients(system, right, start, mask)


def _exact(system: Tensor, right: Tensor, mask: Tensor) -> Tensor:
    found = torch.zeros_like(right)
    for row, keep in enumerate(mask):
        where = keep.nonzero()[:, 0]
        if len(where):
            factor, info = torch.linalg.cholesky_ex(system[where][:, where])
            found[row, where] = torch.cholesky_solve(right[row, where, None], factor)[:, 0] if not int(info) else torch.nan
    return found


def conjugate_gradients(system: Tensor, right: Tensor, start: Tensor, mask: Tensor, steps: int = STEPS) -> Tensor:
    """Approximate solution V of (V system = right) on the mask, all rows at once, from `start`; Jacobi preconditioned."""
    scale = system.diagonal().clamp(min=1e-300)
    value = start * mask
    residual = (right - value @ system) * mask
    towards = residual / scale
    direction, power = towards, (residual * towards).sum(1, keepdim=True)
    first = power.clone()
    for _ in range(steps):
        if bool((power <= ENOUGH**2 * first).all()):
            break
        pushed = (direction @ system) * mask
        curvature = (direction * pushed).sum(1, keepdim=True)
        length = torch.where(curvature > 0, power / curvature.clamp(min=1e-300), 0.0)
        value = value + length * direction
        residual = residual - length * pushed
        towards = residual / scale
        after = (residual * towards).sum(1, keepdim=True)
        direction = towards + torch.where(power > 0, after / power.clamp(min=1e-300), 0.0) * direction
        power = after
    return value
