"""Least-squares refit of a layer on the weights that stayed, for any mask: what is zero stays zero.

    minimise over W with the support of W0, b:   mean ||W x' + b - t||^2 + lambda ||W - W0||^2

Row by row this is a linear system of its own, on the inputs that the row still reads. Small layers are solved exactly; for wide
ones conjugate gradients on all rows at once, projected on the mask, cost one product with the Gram matrix per step (the finish of
ALPS, Meng et al. 2024, and algorithms.md 5.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.compensation.least_squares import Regression, Repaired, Solution, refit
from onnxprune.quadratic import Dense, fit_on_mask


def masked_least_squares(fit: Regression, held: Regression, weight: Tensor, bias: Tensor, *, free_bias: bool) -> Repaired:
    """As least_squares, on the support of `weight` (groups, out, in)."""
    return refit(_solve, fit, held, weight, bias, free_bias=free_bias)


def _solve(data: Regression, w0: Tensor, b0: Tensor, ridge: float, free_bias: bool) -> Solution | None:
    """Normal equations restricted to the mask; None if they cannot be solved."""
    xx, xt, _ = data.moments()
    mean, target = xx[:, :-1, -1].clone(), xt[:, -1].clone()
    system, right = xx[:, :-1, :-1], xt[:, :-1]
    if free_bias:
        system.baddbmm_(mean[:, :, None], mean[:, None, :], alpha=-1)
    right.baddbmm_(mean[:, :, None], (target if free_bias else b0)[:, None, :], alpha=-1)
    variance = system.diagonal(dim1=1, dim2=2)
    damping = ridge * variance.mean(1) + 1e-10 * variance.mean() + 1e-12
    variance += damping[:, None]
    right += damping[:, None, None] * w0.transpose(1, 2)
    weight = fit_on_mask(Dense(system), right.transpose(1, 2), w0, w0 != 0).double()
    if not bool(torch.isfinite(weight).all()):
        return None
    bias = target - torch.einsum("goi,gi->go", weight, mean) if free_bias else b0
    return weight, bias
