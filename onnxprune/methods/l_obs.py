"""Dong, Chen, Pan: "Learning to Prune Deep Neural Networks via Layer-wise Optimal Brain Surgeon" (NIPS 2017).

The error of a layer's outputs Z for its original inputs, E = mean ||Z^ - Z||^2, has the same Hessian for every row (neuron):

    Psi = mean x x^T                                 (groups, in, in)      Gram, damped
    L_q = w_q^2 / (2 [Psi^-1]_qq)                    sensitivity of weight q: half of what E grows by     score, (groups, out, in)
    dw  = -(w_q / [Psi^-1]_qq) Psi^-1 e_q            what the rest of the row does about it                update

The smallest L_q go first. Theorem 3.2: the error of the pruned network's outputs, eps~ = ||Y~ - Y||_F / sqrt(n), is at most

    eps~^L <= sum_{h<L} ( prod_{k=h+1..L} ||W^_k|| ) sqrt(dE^h) + sqrt(dE^L)              accumulated_errors

Departures from the paper:
* the appendix prints ||Theta^_{k+1}|| under the product; the norms are those of the layers behind h, as above;
* Psi^-1 is not built up by rank-one updates from alpha^-1 I; the ridge is a share of Psi's mean diagonal. damping=0 gives the
  paper's generalised inverse;
* the authors compute L and Psi^-1 once, and move weights that are gone already again with every step (update=stale); here each
  row is refitted on what it keeps (update=optimal), to which exact updates would come; update=none leaves weights as they were;
* rounds > 1: prune a part, refit, score what is left anew (the exact inverse of each row's own inputs where that is affordable).
  The paper retrains between its two rounds; no network is trained here;
* the bias is not pruned;
* the tolerance is on sqrt(dE) of the whole layer as it is after the update, relative to the outputs, not on single sqrt(L_q).

The baselines of its appendix: LWC is `magnitude`; ApoZ is the share of zeros of an input (all its weights go together, Hu et al.,
"Network Trimming"), on channels as that paper has it; ApoZW is tau_ij = |mean(x_j) w_ij|.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from onnxprune.contract import (
    ChannelMethod,
    ChannelView,
    Gram,
    InputMoments,
    LayerPlan,
    LayerView,
    Option,
    Quota,
    WeightMethod,
    Zeros,
    method,
)
from onnxprune.errors import UsageError
from onnxprune.methods.obs import DAMPING, SecondOrder, damping_of, saliencies
from onnxprune.methods.sipp_bounds import operator_norm
from onnxprune.quadratic import Dense, Quadratic, fit_on_mask

PAPER = "Dong et al., Layer-wise Optimal Brain Surgeon (NIPS 2017)"
UPDATES = ("optimal", "stale", "none")
# Multiplications up to which every row is scored with the inverse of its own inputs.
AFFORDABLE = 2 * 10**11
# The ridge of a refit under the generalised inverse, which refits nothing that it cannot tell apart.
LEAST_RIDGE = 1e-6
# The tolerance is met to one part in so many of the layer's weights.
FINENESS = 256


@method
class LObs(SecondOrder):
    """Sensitivities from the inverse of the inputs' second moments; what stays makes up for what goes."""

    name = "l-obs"
    paper = PAPER + ", section 3"
    least_damping = 0.0
    options: ClassVar[dict[str, Option]] = {
        "damping": DAMPING,
        "rounds": Option(1, "prune in so many parts, refit and score anew after each (paper: 1 or 2)"),
        "update": Option("optimal", "what stays makes up for what goes: optimal, stale (the authors' code) or none"),
        "tolerance": Option(None, "prune beyond the ratio while a layer's relative error stays below this (epsilon)"),
    }

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        rounds, update, tolerance = (self.values[key] for key in ("rounds", "update", "tolerance"))
        if rounds != int(rounds) or rounds < 1:
            raise UsageError(f"rounds is {rounds}", "give a whole number from 1")
        if update not in UPDATES:
            raise UsageError(f"no update called {update!r}", f"it is one of {', '.join(UPDATES)}")
        if tolerance is not None and not (isfinite(tolerance) and tolerance > 0):
            raise UsageError(
                f"tolerance is {tolerance}", "it is a share of the layer's outputs: give a number above 0, such as 0.1"
            )

    def decide(self, view: LayerView, scores: Tensor, quota: Quota, rng: torch.Generator) -> LayerPlan:
        quadratic = self._updating(view)
        plan = self._by_quota(view, scores, quota, quadratic)
        tolerance = self.values["tolerance"]
        return plan if tolerance is None else self._tolerated(view, scores, quota, quadratic, plan)

    def facts(self, view: LayerView, plan: LayerPlan) -> Mapping[str, Any]:
        """sqrt(dE) of the whole output map of a layer and ||W^|| as a map of its whole input, for `bounds`.

        A convolution reads each input position at most `kernel` times: its norm is at most sqrt(kernel) times its matrix's.
        """
        if plan.error is None:
            return {}
        kept = plan.weights(view)
        slopes = view.activation.bounds if view.activation.name in ("LeakyRelu", "PRelu") else ()
        return {
            "error": plan.error * view.positions**0.5,
            "frobenius": view.kernel**0.5 * float(torch.linalg.vector_norm(kept.double())),
            "spectral": operator_norm(replace(view, matrix=kept)),
            "steady": view.activation.name in STEADY or (bool(slopes) and max(abs(slope) for slope in slopes) <= 1),
        }

    def bounds(self, layers: Mapping[str, Mapping[str, Any]], samples: int) -> Mapping[str, Any]:
        """Theorem 3.2 for these layers, taken as a chain in the order of the model, from what `facts` told of each."""
        told = {"layers": [{"name": name, **facts} for name, facts in layers.items()]}
        if not all(facts["steady"] for facts in layers.values()):
            return told | {"summary": "Theorem 3.2 says nothing here: an activation may stretch distances"}
        errors = [facts["error"] for facts in layers.values()]
        last = {kind: accumulated_errors(errors, [f[kind] for f in layers.values()])[-1] for kind in ("frobenius", "spectral")}
        summary = (
            f"if these {len(layers)} layers are a chain, the root mean squared error of its outputs before any repair is at most "
            f"{last['spectral']:.3g} on the {samples} samples ({last['frobenius']:.3g} with Frobenius norms; Theorem 3.2)"
        )
        return told | {"accumulated": last, "summary": summary}

    def _updating(self, view: LayerView) -> Quadratic:
        """What the update and the errors are taken from: never singular."""
        return self.quadratic(view) if damping_of(self) >= LEAST_RIDGE else view.statistic(Gram).damped(LEAST_RIDGE)

    def _by_quota(self, view: LayerView, scores: Tensor, quota: Quota, quadratic: Quadratic) -> LayerPlan:
        alive = view.matrix != 0
        if bool((quota.choose(scores, view) | ~alive).all()):
            return LayerPlan(quota.choose(scores, view), error=0.0)
        weights = view.matrix
        for part in _parts(quota, alive, int(self.values["rounds"])):
            keep = part.choose(scores, view) & alive
            weights = self._updated(view, quadratic, scores, weights, keep)
            if part is not quota:
                scores = _rescored(quadratic, weights, keep).masked_fill(~keep, -torch.inf)
            alive = keep
        return self.plan(view, quadratic, alive, weights)

    def _updated(self, view: LayerView, quadratic: Quadratic, scores: Tensor, weights: Tensor, keep: Tensor) -> Tensor:
        match self.values["update"]:
            case "none":
                return view.matrix * keep
            case "stale":
                if not isinstance(quadratic, Dense):
                    raise UsageError(f"{view.name!r} is too wide for update=stale", "use update=optimal, or skip it")
                return stale_update(weights, quadratic.inverse(), scores, keep).to(view.matrix)
        right = quadratic.times(view.matrix)
        return fit_on_mask(quadratic, right, weights, keep, float((right * view.matrix).sum())).to(view.matrix)

    def _tolerated(
        self, view: LayerView, scores: Tensor, quota: Quota, quadratic: Quadratic, plan: LayerPlan
    ) -> LayerPlan:  # fmt: skip
        """The fewest weights within the tolerance, found by halving; the plan by quota where that is beyond it already."""
        limit = float(self.values["tolerance"]) * quadratic.error(view.matrix) ** 0.5
        enough, few = int(plan.keep.sum()), 0
        while enough - few > max(view.matrix.numel() // FINENESS, 1):
            middle = (enough + few) // 2
            tried = self._by_quota(view, scores, Quota(middle), quadratic)
            if tried.error is not None and tried.error <= limit:
                enough, plan = middle, tried
            else:
                few = middle
        return plan


def _parts(quota: Quota, alive: Tensor, rounds: int) -> list[Quota]:
    """Quotas on the way to the last one: each round keeps the same share of what the one before kept."""
    parts = []
    for number in range(1, rounds):
        done = number / rounds
        if quota.pattern is not None:
            n, m = quota.pattern
            kept = round(m * (n / m) ** done)
            parts.append(Quota(alive.numel() * kept // m, pattern=(kept, m)))
        elif quota.rows is not None:
            there = alive.sum(2).double()
            rows = (there * (quota.rows / there.clamp(min=1)) ** done).ceil().long()
            parts.append(Quota(int(rows.sum()), rows=rows))
        else:
            there_in_all = int(alive.sum())
            parts.append(Quota(round(there_in_all * (min(quota.keep / max(there_in_all, 1), 1.0)) ** done)))
    return [*parts, quota]


def _rescored(quadratic: Quadratic, weights: Tensor, alive: Tensor) -> Tensor:
    """(groups, out, in): sensitivities of what is left, by the inverse of each row's own inputs, of all where rows are wide."""
    supports = [torch.unique(a, dim=0, return_inverse=True) for a in alive]
    if sum(float((support.sum(1).double() ** 3).sum()) for support, _ in supports) > AFFORDABLE:
        return saliencies(weights, quadratic)
    scores = torch.zeros_like(weights)
    for group, (support, owner) in enumerate(supports):
        for number, keep in enumerate(support):
            where, rows = keep.nonzero()[:, 0], (owner == number).nonzero()[:, 0]
            if len(where):
                own = Dense(quadratic.block(group, where)[None])
                scores[group, rows[:, None], where] = saliencies(weights[group][rows[:, None], where][None], own)[0]
    return scores


def stale_update(weights: Tensor, inverse: Tensor, scores: Tensor, keep: Tensor) -> Tensor:
    """As the authors' code has it: row by row in the order of L, each removal moves the whole row by the inverse of all inputs.

    What went is zero after every step. inverse (groups, in, in); all rows take their t-th step at once.
    """
    found = weights.to(inverse.dtype, copy=True)
    steps = (~keep).sum(2)
    order = torch.argsort(scores.masked_fill(keep, torch.inf), dim=2, stable=True)
    for group, (row, precision) in enumerate(zip(found, inverse, strict=True)):
        gone = torch.zeros_like(keep[group])
        variance = precision.diagonal()
        for t in range(int(steps[group].max())):
            going = (t < steps[group]).nonzero()[:, 0]
            q = order[group, going, t]
            length = row[going, q] / variance[q]
            row[going] -= length[:, None] * precision[q]
            gone[going, q] = True
            row[gone] = 0.0
    return found


def accumulated_errors(errors: Sequence[float], norms: Sequence[float]) -> list[float]:
    """Theorem 3.2: a bound on the error of the outputs of each layer of a chain, whatever the layers before it lost.

    errors   sqrt(dE^h) of each layer: root of the mean squared error of its outputs on the original inputs
    norms    ||W^_h|| of each pruned layer as a map on its whole input, in any operator norm; the paper takes Frobenius norms

    Activations between the layers may not stretch distances (ReLU and its kind).
    """
    found: list[float] = []
    for error, norm in zip(errors, norms, strict=True):
        found.append(error + (norm * found[-1] if found else 0.0))
    return found


# Activations that never stretch a distance; of the others the theorem says nothing.
STEADY = frozenset({"identity", "Relu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "Softplus"})


@method
class Apoz(WeightMethod):
    """score = 1 - the share of zeros of the input that the weight reads."""

    name = "apoz"
    target = "weight"
    paper = "Hu et al., Network Trimming; baseline of L-OBS, Fig. 2"
    needs = (InputMoments,)

    def score(self, view: LayerView) -> Tensor:
        # NaN weights are told from others, as everywhere.
        return (1 - view.statistic(InputMoments).zeros.to(view.matrix))[:, None] + 0 * view.matrix


@method
class ApozW(WeightMethod):
    """score = |mean(x_j) w_ij|."""

    name = "apozw"
    target = "weight"
    paper = PAPER + ", appendix, after Hu et al., Network Trimming"
    needs = (InputMoments,)

    def score(self, view: LayerView) -> Tensor:
        return (view.matrix * view.statistic(InputMoments).mean.to(view.matrix)[:, None]).abs()


@method
class ApozChannel(ChannelMethod):
    """score = 1 - the share of zeros of the channel, where it is read; without an activation that gives zeros all are alike."""

    name = "apoz-channel"
    target = "channel"
    paper = "Hu, Peng, Tai, Tang: Network Trimming (2016)"
    needs = (Zeros,)

    def score(self, view: ChannelView) -> Tensor:
        found = []
        for reader in view.readers:
            zeros = view.statistic(reader.layer, Zeros)
            if zeros is not None:
                found.append(1 - zeros.share[reader.positions].mean(1))
        return torch.stack(found).mean(0) if found else torch.ones(view.channels, device=view.makers[0].weight.device)
