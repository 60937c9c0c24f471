"""Least-squares reconstruction of a layer from what is left of its input.

    minimise over W, b:   mean ||W x' + b - t||^2 + lambda ||W - W0||^2

    x'   what the layer reads now (patches of the pruned stream)      (in,)
    t    what it should give: the original pre-activation, corrected  (out,)
    W0   the weights that are left; the ridge pulls towards them, so that scarce data change little

He, Zhang, Sun: "Channel Pruning for Accelerating Very Deep Neural Networks" (ICCV 2017), second stage, with three departures:
inputs are those of the pruned prefix and targets those of the original (asymmetric reconstruction), the bias is fitted too, and
the ridge shrinks towards W0 instead of zero. lambda = f * mean variance of x'; f is chosen on samples that the fit did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from onnxprune.compensation.sampled import Sampled
from onnxprune.contract.reading import damped_inverse
from onnxprune.quadratic import strips

# Shares of the mean input variance that are tried as ridge, weakest first.
RIDGES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0)
# With this many rows per input the weakest ridge is as good as any, and the search is left out.
PLENTY = 30
# A variance below this share of the mean square is rounding.
CONSTANT = 1e-9
# Factors between which a row is scaled to the spread of what it should give.
STRETCH = 0.25, 4.0


class Regression:
    """Moments of (x', t) per convolution group; enough for every formula in this file.

    count   rows seen
    xx      (groups, in, in) sums of products of x', in float32: of a wide layer the largest thing in memory; of its blocks above
            the diagonal (see `_strips`) nothing is kept, because the ones below say the same
    x       (groups, in) sums of x', in float64, as all that follow
    xt      (groups, in, out) sums of products of x' with t, in float32
    t, tt   (groups, out) sums of t and of its squares
    kind    dtype in which weights are solved for
    """

    kind = torch.float64

    def __init__(self) -> None:
        self.count = 0
        self.xx: Tensor | None = None
        self.xt: Tensor | None = None
        self.x, self.t, self.tt = torch.empty(0), torch.empty(0), torch.empty(0)

    def add(self, rows: Tensor, targets: Tensor) -> None:
        """rows (n, groups, in), targets (n, groups * out)."""
        n, groups, inputs = rows.shape
        if n == 0:
            return
        x = rows.float().permute(1, 2, 0)
        t = targets.float().reshape(n, groups, -1).transpose(0, 1)
        if self.xx is None or self.xt is None:
            self.xx, self.xt = x.new_zeros((groups, inputs, inputs)), x.new_zeros((groups, inputs, t.shape[2]))
            self.x = x.new_zeros((groups, inputs), dtype=torch.float64)
            self.t, self.tt = (x.new_zeros((groups, t.shape[2]), dtype=torch.float64) for _ in range(2))
        self.count += n
        for low, high in strips(inputs):
            self.xx[:, low:high, :high].baddbmm_(x[:, low:high], x[:, :high].transpose(1, 2))
        self.xt.baddbmm_(x, t)
        self.x += x.sum(2, dtype=torch.float64)
        self.t += t.sum(1, dtype=torch.float64)
        self.tt += (t**2).sum(1, dtype=torch.float64)

    def merge(self, other: Regression) -> None:
        if other.xx is None or other.xt is None:
            return
        self.count += other.count
        if self.xx is None or self.xt is None:
            self.xx, self.xt = other.xx.clone(), other.xt.clone()
            self.x, self.t, self.tt = other.x.clone(), other.t.clone(), other.tt.clone()
            return
        for mine, others in ((self.xx, other.xx), (self.xt, other.xt), (self.x, other.x), (self.t, other.t), (self.tt, other.tt)):
            mine += others

    def finite(self) -> bool:
        """Whether every row was: one NaN or infinity shows in the sums."""
        return all(bool(torch.isfinite(t).all()) for t in (self.x, self.t, self.tt))

    def means(self) -> Means:
        assert self.xx is not None, "no rows were added"
        assert self.xt is not None
        xx = self.xx.double()
        for low, high in strips(xx.shape[1]):
            xx[:, :low, low:high] = xx[:, low:high, :low].transpose(1, 2)
        n = self.count
        return Means(xx.div_(n), self.x / n, self.xt.double().div_(n), self.t / n, self.tt / n)

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Mean squared error of W x' + b, relative to the variance of t, or to its square where it does not vary (one row).

        weight (groups, out, in), bias (groups, out)
        """
        m = self.means()
        squared = ((weight @ m.xx - 2 * m.xt.transpose(1, 2)) * weight).sum() + m.tt.sum()
        squared += (bias * (bias + 2 * torch.einsum("goi,gi->go", weight, m.x) - 2 * m.t)).sum()
        spread, size = (m.tt - m.t**2).sum(), m.tt.sum()
        return float(squared.clamp(min=0) / torch.where(spread > CONSTANT * size, spread, size).clamp(min=1e-30))


class Means(NamedTuple):
    """A Regression's sums over its count, whole and in float64."""

    xx: Tensor
    x: Tensor
    xt: Tensor
    t: Tensor
    tt: Tensor


@dataclass(frozen=True)
class Repaired:
    """New weight (groups, out, in), bias (groups, out), and the relative squared error on samples not fitted, before and after.

    ridge   the chosen share of the mean input variance, None where nothing was solved
    """

    weight: Tensor
    bias: Tensor
    before: float
    after: float
    ridge: float | None


# What a layer is refitted on: sums of products, or rows where there are too many inputs for that.
Data = TypeVar("Data", Regression, Sampled)
Solution = tuple[Tensor, Tensor]
Solve = Callable[[Data, Tensor, Tensor, float, bool], Solution | None]


def least_squares(fit: Data, held: Data, weight: Tensor, bias: Tensor, *, free_bias: bool) -> Repaired:
    """The best weights in the sense above. fit, held: disjoint samples, `fit` is used up; weight, bias: what is left (W0).

    free_bias   False where the layer has no place for a bias: then b stays as it is
    """
    return refit(_solve, fit, held, weight, bias, free_bias=free_bias)


def refit(solve: Solve[Data], fit: Data, held: Data, weight: Tensor, bias: Tensor, *, free_bias: bool) -> Repaired:
    """What `solve` finds, with the ridge that is best on `held`.

    Falls back on the weights that are left if nothing better can be found (no rows, singular beyond the ridge, worse on `held`).
    """
    judge = held if held.count else fit
    w0, b0 = weight.to(fit.kind), bias.to(fit.kind)
    if not fit.count:
        return Repaired(weight, bias, float("nan"), float("nan"), None)
    before = judge.error(w0, b0)
    plenty = not held.count or fit.count > PLENTY * weight.shape[2]
    after, ridge, found = _best_ridge(solve, fit, judge, w0, b0, free_bias, RIDGES[:1] if plenty else RIDGES)
    if found is None or not after < before:
        return Repaired(weight, bias, before, before, None)
    # Once the ridge is judged nothing needs the two apart: added up in place, for these sums are the largest thing in memory.
    fit.merge(held)
    found = solve(fit, w0, b0, ridge, free_bias) or found
    return Repaired(found[0], found[1], before, after, ridge)


def _best_ridge(
    solve: Solve[Data], fit: Data, judge: Data, w0: Tensor, b0: Tensor, free_bias: bool, ridges: Sequence[float]
) -> tuple[float, float, Solution | None]:
    """(error, ridge, solution) at the bottom of the valley: from the second ridge downhill, each step one factorisation."""

    def tried(index: int) -> tuple[float, float, Solution | None]:
        found = solve(fit, w0, b0, ridges[index], free_bias) if 0 <= index < len(ridges) else None
        return (judge.error(*found), ridges[index], found) if found else (float("inf"), 0.0, None)

    start = min(1, len(ridges) - 1)
    best, weaker = tried(start), tried(start - 1)
    if weaker[0] < best[0]:
        return weaker
    for index in range(start + 1, len(ridges)):
        stronger = tried(index)
        if not stronger[0] < best[0]:
            break
        best = stronger
    return best


def normal_equations(
    data: Regression, w0: Tensor, b0: Tensor, ridge: float, free_bias: bool
) -> tuple[Tensor, Tensor, float, Callable[[Tensor], Tensor]]:
    """System (groups, in, in) and right-hand side (groups, in, out) of the weights, the objective where all weights are zero, and
    the bias that goes with weights once found.

    Centred where the bias is free to take up the means. Both tensors are the caller's own.
    """
    # Changed in place, for a wide layer's are hundreds of megabytes.
    system, mean, right, target, squares = data.means()
    if free_bias:
        system.baddbmm_(mean[:, :, None], mean[:, None, :], alpha=-1)
    right.baddbmm_(mean[:, :, None], (target if free_bias else b0)[:, None, :], alpha=-1)
    variance = system.diagonal(dim1=1, dim2=2)
    # The floor keeps dead inputs (all zero on every sample) at their old weights instead of at a division by zero.
    damping = ridge * variance.mean(1) + 1e-10 * variance.mean() + 1e-12
    variance += damping[:, None]
    right += damping[:, None, None] * w0.transpose(1, 2)
    taken_up = target if free_bias else b0
    whole = (squares - taken_up * (2 * target - taken_up)).sum() + (damping[:, None, None] * w0**2).sum()
    return system, right, float(whole), lambda weight: target - torch.einsum("goi,gi->go", weight, mean) if free_bias else b0


def _solve(data: Regression | Sampled, w0: Tensor, b0: Tensor, ridge: float, free_bias: bool) -> Solution | None:
    """The weights that solve the normal equations; None if they cannot be factorised."""
    if isinstance(data, Sampled):
        return data.ridge(w0, b0, ridge, free_bias)
    system, right, _, bias = normal_equations(data, w0, b0, ridge, free_bias)
    info = torch.empty(len(system), dtype=torch.int32, device=system.device)
    torch.linalg.cholesky_ex(system, out=(system, info))
    if bool(info.any()):
        return None
    weight = torch.cholesky_solve(right, system).transpose(1, 2)
    return (weight, bias(weight)) if bool(torch.isfinite(weight).all()) else None


def match_moments(fit: Data, held: Data, weight: Tensor, bias: Tensor, *, free_bias: bool) -> Repaired:
    """Mean and variance correction: scale each row and shift it so that W x' + b has the mean and spread of t.

    This is what re-estimating batch-norm statistics does where batch norm was folded away. The squared error may grow by it, for
    a spread made up by what is wrong is no nearer to t; it is kept all the same, because labels mostly gain (the caller says so).
    """
    w0, b0 = weight.to(fit.kind), bias.to(fit.kind)
    if not fit.count:
        return Repaired(weight, bias, float("nan"), float("nan"), None)
    judge = held if held.count else fit
    before = judge.error(w0, b0)
    if not free_bias:
        return Repaired(weight, bias, before, before, None)
    after = judge.error(*_matched(fit, w0, b0))
    # Judged on samples that it has not seen, then fitted to all.
    fit.merge(held)
    return Repaired(*_matched(fit, w0, b0), before, after, None)


def _matched(data: Regression | Sampled, w0: Tensor, b0: Tensor) -> Solution:
    """The scale is kept within STRETCH: an output that hardly moves any more tells nothing about how far to stretch it."""
    if isinstance(data, Sampled):
        return data.matched(w0, b0, STRETCH)
    covariance, mean, _, target, tt = data.means()
    covariance.baddbmm_(mean[:, :, None], mean[:, None, :], alpha=-1)
    now = torch.einsum("goi,gij,goj->go", w0, covariance, w0).clamp(min=1e-20)
    wanted = (tt - target**2).clamp(min=0)
    still = now <= 1e-9 * (wanted.mean() + now.mean())  # rounding alone: nothing to scale
    scale = torch.where(still, 1.0, (wanted / now).sqrt().clamp(*STRETCH))
    new = w0 * scale[..., None]
    return new, target - torch.einsum("goi,gi->go", new, mean)


class RefitLosses:
    """What a reader loses when inputs leave and it is refitted, for any number of orders in which they leave.

    The least-squares loss of removing the set R is tr(W_R (P_RR)^-1 W_R^T) with P = covariance^-1 (damped). One Cholesky
    factorisation of P in the order of removal gives it for every R at once: the leading blocks of a Cholesky factor are nested.

    covariance (inputs, inputs); weights (inputs, n), n over outputs and kernel positions.
    """

    def __init__(self, covariance: Tensor, weights: Tensor, damping: float = 0.01) -> None:
        self.variance = covariance.diagonal()
        self.precision = damped_inverse(covariance, damping)
        wide = weights.to(covariance.dtype)
        # Only W W^T matters: a triangular factor of it is never wider than the number of inputs.
        self.weights = torch.linalg.qr(wide.T, mode="r").R.T if wide.shape[1] > wide.shape[0] else wide

    def in_order(self, order: Tensor) -> Tensor:
        """(len(order) + 1,): entry m is the loss when the first m of `order` stay. Inputs not in `order` stay anyway."""
        removal = order.flip(0)
        factor, info = torch.linalg.cholesky_ex(self.precision[removal][:, removal])
        if int(info):
            steps = (self.weights[removal] ** 2).sum(1) * self.variance[removal]
        else:
            steps = (torch.linalg.solve_triangular(factor, self.weights[removal], upper=False) ** 2).sum(1)
        return torch.cat([steps.new_zeros(1), steps.cumsum(0)]).flip(0)
