"""Meng, Behdin, Wang, Mazumder: "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning" (NeurIPS 2024).

One layer, all its weights at once (the problem of optimal brain surgeon, with the joint choice instead of one weight at a time):

    minimise tr((V - W) H (V - W)^T)  over V with `keep` weights that are not zero       H = mean x x^T + lambda I

by ADMM on the copy Z of V that is sparse, with every input scaled to unit curvature (D = diag(H)^1/2, B = V D, Hn = D^-1 H D^-1):

    B <- (W D Hn - U + rho Z) (Hn + rho I)^-1;    Z <- the largest of B + U/rho;    U <- U + rho (B - Z)

rho grows as the support settles (section 3.2); then the weights are refitted on the support by conjugate gradients. Symbols:
the paper's W^ is W here, D is B, W is Z, V is U; its X^T X is H. Shapes: weights (groups, out, in), H (groups, in, in).

Departures from the paper: lambda is 0.01 of the mean of H's diagonal, as in the authors' code; the refit is exact where that is
cheap; any quota is projected on (layer, rows, N:M), and weights that are zero stay so; wide layers work on sampled rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from onnxprune.contract import Gram, LayerPlan, LayerView, Option, Quota, WeightMethod, method
from onnxprune.errors import UsageError
from onnxprune.quadratic import Quadratic, fit_on_mask

DAMPING = Option(0.01, "ridge on the second moments of a layer's inputs, as a share of their mean (lambda)")
# First and largest penalty; iterations between two looks at the support, and at most.
RHO, RHO_MOST, EVERY, MOST = 0.1, 1e6, 3, 300
# Share of the support that changed: (more than, factor on rho). Below SETTLED after SOON iterations it is good enough.
GROWTH, SETTLED, SOON = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1)), 3e-4, 30


def damping_of(method: WeightMethod, least: float = 0.0) -> float:
    """The option `damping`, a number above `least`, or at it. Raises UsageError."""
    share = method.values["damping"]
    if not (isfinite(share) and share >= least):
        raise UsageError(f"damping is {share}", f"it is a share: give a number from {least:g}, such as 0.01")
    return float(share)


def saliencies(weights: Tensor, quadratic: Quadratic) -> Tensor:
    """L_q = w_q^2 / (2 [H^-1]_qq): what the error grows by when q goes and the rest of its row makes up for it."""
    inverse = quadratic.inverse_diagonal()
    # Where the pseudo-inverse is zero the input was never active: to lose it costs nothing.
    worth = torch.where(inverse > 1e-12 * inverse.amax(1, keepdim=True), 0.5 / inverse.clamp(min=1e-300), 0.0)
    return weights**2 * worth[:, None].to(weights.dtype)


class SecondOrder(WeightMethod):
    """A method that looks at H: scores are saliencies, whatever it decides by."""

    target = "weight"
    needs = (Gram,)
    scope = "gain"
    least_damping: ClassVar[float] = 1e-6

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        damping_of(self, self.least_damping)

    def quadratic(self, view: LayerView) -> Quadratic:
        return view.statistic(Gram).damped(damping_of(self))

    def score(self, view: LayerView) -> Tensor:
        return saliencies(view.matrix, self.quadratic(view))

    def plan(self, view: LayerView, quadratic: Quadratic, keep: Tensor, matrix: Tensor) -> LayerPlan:
        """The plan with its error sqrt(dE): the root of the squared error of the layer's outputs, mean over its inputs."""
        if not bool(torch.isfinite(matrix).all()):
            raise UsageError(f"the second moments of {view.name!r} cannot be inverted", "use a larger --option damping")
        keep = keep & (view.matrix != 0)
        matrix = torch.where(keep, matrix.to(view.matrix.dtype), 0.0)
        # A weight that stays is told from one that goes by its value.
        matrix = torch.where(keep & (matrix == 0), view.matrix, matrix)
        return LayerPlan(keep, matrix, error=quadratic.error(matrix - view.matrix) ** 0.5)


@method
class Obs(SecondOrder):
    """The weights to keep, and their values, chosen together by ADMM and conjugate gradients."""

    name = "obs"
    paper = "Meng et al., ALPS (NeurIPS 2024)"
    options: ClassVar[dict[str, Option]] = {"damping": DAMPING}

    def decide(self, view: LayerView, scores: Tensor, quota: Quota, rng: torch.Generator) -> LayerPlan:
        wanted = quota.choose(scores, view)
        if bool((wanted | (view.matrix == 0)).all()):
            return LayerPlan(wanted, error=0.0)
        quadratic = self.quadratic(view)
        if not bool(wanted.any()):
            return self.plan(view, quadratic, wanted, torch.zeros_like(view.matrix))
        weights = view.matrix.to(quadratic.dtype)
        size = quadratic.diagonal.sqrt()
        dense = admm(quadratic.scaled(1 / size), weights * size[:, None], view, quota)
        keep = quota.choose(dense.abs(), view)
        start = dense.div_(size[:, None])
        fitted = fit_on_mask(quadratic, quadratic.times(weights), start, keep)
        return self.plan(view, quadratic, keep, fitted)


@dataclass
class _State:
    """B, Z and U of the iteration."""

    dense: Tensor
    sparse: Tensor
    dual: Tensor
    support: Tensor


def admm(quadratic: Quadratic, weights: Tensor, view: LayerView, quota: Quota) -> Tensor:
    """B (groups, out, in) at the end, for a quadratic of unit diagonal and weights scaled alike."""
    right = quadratic.times(weights)
    rho, started = RHO, False
    solve = quadratic.solver(rho)
    state = _start(weights, view, quota)
    before = state.support
    for iteration in range(1, MOST + 1):
        _step(state, solve, right, rho, view, quota)
        if iteration % EVERY:
            continue
        changed = int((state.support & ~before).sum()) / max(int(before.sum()), 1)
        before = state.support
        if (started and not changed) or (iteration >= SOON and changed < SETTLED):
            break
        started = started or changed > GROWTH[1][0]
        if started:
            rho = min(rho * next(factor for least, factor in GROWTH if changed > least), RHO_MOST)
        else:
            # The penalty was so strong that nothing moved: begin again with a weaker one.
            rho /= 5
            state = _start(weights, view, quota)
            before = state.support
        solve = quadratic.solver(rho)
    return state.dense


def _start(weights: Tensor, view: LayerView, quota: Quota) -> _State:
    support = quota.choose(weights.abs(), view)
    return _State(weights.clone(), weights * support, torch.zeros_like(weights), support)


def _step(state: _State, solve: Any, right: Tensor, rho: float, view: LayerView, quota: Quota) -> None:
    """One round of the three updates; in place where it can be, for a wide layer's weights are gigabytes."""
    state.dense = solve(torch.sub(right, state.dual).add_(state.sparse, alpha=rho))
    towards = torch.add(state.dense, state.dual, alpha=1 / rho)
    state.support = quota.choose(towards.abs(), view)
    state.sparse = towards.mul_(state.support)
    state.dual.add_(state.dense, alpha=rho).sub_(state.sparse, alpha=rho)
