"""Meng, Behdin, Wang, Mazumder: "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning" (NeurIPS 2024).

One layer, all its weights at once (the problem of optimal brain surgeon, with the joint choice instead of one weight at a time):

    minimise tr((V - W) H (V - W)^T)  over V with `keep` weights that are not zero       H = mean x x^T + lambda I

by ADMM on the copy Z of V that is sparse, with every input scaled to unit curvature (D = diag(H)^1/2, B = V D, Hn = D^-1 H D^-1):

    B <- (W D Hn - U + rho Z) (Hn + rho I)^-1;    Z <- the largest of B + U/rho;    U <- U + rho (B - Z)

rho grows as the support settles (section 3.2); then the weights are refitted on the support by conjugate gradients. Symbols:
the paper's W^ is W here, D is B, W is Z, V is U; its X^T X is H. Shapes: weights (groups, out, in), H (groups, in, in).

Departures from the paper: lambda is 0.01 of the mean of H's diagonal, as in the authors' code; the updates of Z and U take
a B + (1 - a) Z for B (over-relaxation, a = 1.7), with which rho may grow faster: the same error with three quarters of the
iterations and half of the factorisations; the refit is exact where that is cheap; any quota is projected on (layer, rows, N:M),
and weights that are zero stay so; wide layers work on sampled rows of X.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from onnxprune.contract import Gram, LayerPlan, LayerView, Option, Quota, WeightMethod, method
from onnxprune.errors import UsageError
from onnxprune.quadratic import Quadratic, conjugate_gradients, fit_on_mask

DAMPING = Option(0.01, "ridge on the second moments of a layer's inputs, as a share of their mean (lambda)")
# First, least and largest penalty; iterations between two looks at the support (odd: over-relaxed, it may swing to and fro), and
# at most; over-relaxation.
RHO, RHO_LEAST, RHO_MOST, EVERY, MOST, RELAXED = 0.1, 1e-6, 1e6, 5, 300, 1.7
# Share of the support that changed: the penalty is too strong at first if it is below MOVED.
MOVED = 0.005
# Where a share is only tried: at least so many rows of each group, and weights in them, stand for a layer; steps of the refit.
TRIED_ROWS, TRIED_WEIGHTS, TRIED_STEPS = 64, 1 << 14, 10


@dataclass(frozen=True)
class Pace:
    """growth: share of the support that changed, and by what rho grows then; below `settled` after `soon` it is good enough."""

    growth: tuple[tuple[float, float], ...]
    settled: float
    soon: int


THOROUGH = Pace(((0.1, 1.8), (0.005, 1.5), (0.0, 1.3)), settled=5e-3, soon=10)
QUICK = Pace(((0.1, 3.0), (0.005, 2.5), (0.0, 2.0)), settled=2e-2, soon=5)


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

    def losses(self, view: LayerView, counts: Sequence[int], rng: torch.Generator) -> list[float]:
        """Of a layer with many rows some stand for all."""
        quadratic = self.quadratic(view)
        some, times = typical_rows(view, quadratic)
        share = int((some.matrix != 0).sum()) / max(int((view.matrix != 0).sum()), 1)
        found = dict.fromkeys(counts, quadratic.error(view.matrix))
        tried = [count for count in counts if count]
        if tried:
            losses = self.tried(some, [round(share * count) for count in tried], rng)
            found |= {count: times * loss for count, loss in zip(tried, losses, strict=True)}
        return [found[count] for count in counts]

    def tried(self, view: LayerView, counts: Sequence[int], rng: torch.Generator) -> list[float]:
        """The squared error of the rows of `view` with each of these numbers of weights."""
        return super().losses(view, counts, rng)

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


def typical_rows(view: LayerView, quadratic: Quadratic) -> tuple[LayerView, float]:
    """Some rows of each group, evenly spread over all by their part in tr(W H W^T), and how many times theirs the whole is."""
    _, out, inputs = view.matrix.shape
    count = max(TRIED_ROWS, TRIED_WEIGHTS // inputs)
    if out <= count:
        return view, 1.0
    parts = (quadratic.times(view.matrix) * view.matrix).sum(2)
    middles = (torch.arange(count, device=parts.device) + 0.5) * out / count
    rows = torch.argsort(parts, dim=1, stable=True)[:, middles.long()]
    some = view.matrix.gather(1, rows[..., None].expand(-1, -1, inputs))
    times = float(parts.sum() / parts.gather(1, rows).sum().clamp(min=1e-30))
    return replace(view, matrix=some, bias=view.bias.gather(1, rows)), times


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
        scaled = Scaled(quadratic, view.matrix)
        dense = admm(scaled, lambda values: quota.choose(values, view), THOROUGH)
        keep = quota.choose(dense.abs(), view)
        right = quadratic.times(view.matrix)
        return self.plan(view, quadratic, keep, fit_on_mask(quadratic, right, dense / scaled.size, keep, scaled.error))

    def tried(self, view: LayerView, counts: Sequence[int], rng: torch.Generator) -> list[float]:
        """All counts at once: the rows once for each, so that they share the factorisations; fewer iterations."""

        def apart(values: Tensor) -> Sequence[Tensor]:
            return values.reshape(len(values), len(counts), *view.matrix.shape[1:]).unbind(1)

        def choose(values: Tensor) -> Tensor:
            return torch.cat([Quota(count).choose(part, view) for part, count in zip(apart(values), counts, strict=True)], 1)

        scaled = Scaled(self.quadratic(view), view.matrix.repeat(1, len(counts), 1))
        dense = admm(scaled, choose, QUICK)
        fitted = conjugate_gradients(scaled.quadratic, scaled.right, dense, choose(dense.abs()), scaled.error, TRIED_STEPS)
        return [scaled.quadratic.error(change) for change in apart(fitted - scaled.weights)]


Choose = Callable[[Tensor], Tensor]


class Scaled:
    """The problem with inputs of unit curvature: Hn, W D, W D Hn and the squared error of no weights at all."""

    def __init__(self, quadratic: Quadratic, matrix: Tensor) -> None:
        self.size = quadratic.diagonal.sqrt()[:, None]
        self.quadratic = quadratic.normal()
        self.weights = (matrix * self.size).to(self.quadratic.dtype)
        self.right = self.quadratic.times(self.weights)
        self.error = float((self.right * self.weights).sum(dtype=torch.float64))


@dataclass
class _State:
    """B, Z and U of the iteration."""

    dense: Tensor
    sparse: Tensor
    dual: Tensor
    support: Tensor


def admm(scaled: Scaled, choose: Choose, pace: Pace) -> Tensor:
    """B (groups, out, in) at the end. choose: magnitudes -> which are the largest."""
    rho, started = RHO, False
    solve = scaled.quadratic.solver(rho)
    state = _start(scaled.weights, choose)
    before = state.support
    for iteration in range(1, MOST + 1):
        _step(state, solve, scaled.right, rho, choose)
        if iteration % EVERY:
            continue
        changed = int((state.support & ~before).sum()) / max(int(before.sum()), 1)
        before = state.support
        if (started and not changed) or (iteration >= pace.soon and changed < pace.settled) or rho < RHO_LEAST:
            break
        started = started or changed > MOVED
        if started:
            rho = min(rho * next(factor for least, factor in pace.growth if changed > least), RHO_MOST)
        else:
            # The penalty was so strong that nothing moved: begin again with a weaker one.
            rho /= 5
            state = _start(scaled.weights, choose)
            before = state.support
        solve = scaled.quadratic.solver(rho)
    return state.dense


def _start(weights: Tensor, choose: Choose) -> _State:
    support = choose(weights.abs())
    return _State(weights.clone(), weights * support, torch.zeros_like(weights), support)


def _step(state: _State, solve: Any, right: Tensor, rho: float, choose: Choose) -> None:
    """One round of the three updates; in place where it can be, for a wide layer's weights are gigabytes."""
    state.dense = solve(torch.sub(right, state.dual).add_(state.sparse, alpha=rho))
    # a B + (1 - a) Z, which both other updates take for B.
    relaxed = torch.lerp(state.sparse, state.dense, RELAXED)
    towards = torch.add(relaxed, state.dual, alpha=1 / rho)
    state.support = choose(towards.abs())
    state.sparse = towards.mul_(state.support)
    state.dual.add_(relaxed, alpha=rho).sub_(state.sparse, alpha=rho)
