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
from onnxprune.quadratic import Dense, fit_on_mask


def masked_least_squares(fit: Regression, held: Regression, weight: Tensor, bias: Tensor, *, free_bias: bool) -> Repaired:
    """As least_squares, on the support of `weight` (groups, out, in)."""
    return refit(_solve, fit, held, weight, bias, free_bias=free_bias)


def _solve(data: Regression, w0: Tensor, b0: Tensor, ridge: float, free_bias: bool) -> Solution | None:
    """Normal equations restricted to the mask; None if they cannot be solved."""
    system, right, whole, bias = normal_equations(data, w0, b0, ridge, free_bias)
    weight = fit_on_mask(Dense(system), right.transpose(1, 2), w0, w0 != 0, whole).double()
    return (weight, bias(weight)) if bool(torch.isfinite(weight).all()) else None
