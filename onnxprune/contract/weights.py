"""SEE and DECIDE for single weights: what a method may look at, and what it may answer. Tensors only; a method never sees ONNX.

LayerView      one layer as a matrix, with statistics of its inputs
Quota          how many weights of a layer stay, and in which pattern
LayerPlan      which weights stay, and with which values
WeightMethod   score -> (budget) -> decide
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from onnxprune.contract.activation import Activation
from onnxprune.contract.method import Method, check_tensor
from onnxprune.contract.statistics import S, Statistic
from onnxprune.errors import OnnxpruneError, UsageError

IDENTITY = Activation()
Scope = Literal["layer", "row", "network", "gain", "bound"]


@dataclass(frozen=True)
class LayerView:
    """y = matrix @ x + bias at every position of every sample.

    matrix       (groups, out, in), in = input channels per group * kernel positions, channels first
    bias         (groups, out), zeros where there is none
    kernel       kernel positions: neighbours along `in` that belong to one input channel
    positions    output positions per sample at the trial sizes
    place        (i, n): the i-th of the n layers that may be pruned, in the order of the model
    statistics   what the method asked for, counted on the layer's inputs
    """

    name: str
    matrix: Tensor
    bias: Tensor
    kernel: int = 1
    positions: int = 1
    place: tuple[int, int] = (0, 1)
    activation: Activation = IDENTITY
    statistics: Mapping[type[Statistic], Statistic] = field(default_factory=dict)

    def statistic(self, kind: type[S]) -> S:
        """Raises UsageError where it was not counted: the method needs data that this layer has none of."""
        found = self.statistics.get(kind)
        if not isinstance(found, kind):
            raise UsageError(f"layer {self.name!r} has no {kind.__name__} of its inputs", "list it in the method's `needs`")
        return found

    @cached_property
    def kernel_norms(self) -> Tensor:
        """(groups, out, channels): sum of |w| over the kernel positions of each 2-D filter."""
        return self.kernels(self.matrix.abs())

    def kernels(self, values: Tensor) -> Tensor:
        """(groups, out, in) -> (groups, out, channels), added up over the kernel positions."""
        return values.reshape(*values.shape[:2], -1, self.kernel).sum(3)

    def spread(self, values: Tensor) -> Tensor:
        """(groups, out, channels) -> (groups, out, in): the same for all kernel positions."""
        return values.repeat_interleave(self.kernel, 2)


@dataclass(frozen=True)
class Quota:
    """How much of a layer stays, in units: weights, or 2-D filters where a method takes these.

    keep      units that stay in all
    unit      weights per unit
    rows      (groups, out) int64: how many stay in each row, where that is prescribed; they add up to `keep`
    pattern   (n, m): of every m neighbouring inputs of a row n stay (channels neighbour at the same kernel position)
    """

    keep: int
    unit: int = 1
    rows: Tensor | None = None
    pattern: tuple[int, int] | None = None

    def choose(self, scores: Tensor, view: LayerView) -> Tensor:
        """(groups, out, units) bool: the best by score, exactly as many as are to stay, ties by position.

        Units that are zero already go first: they count as removed.
        """
        weights = view.matrix.abs() if scores.shape == view.matrix.shape else view.kernel_norms
        ranked = scores.masked_fill(weights == 0, -torch.inf)
        if self.pattern is not None:
            return self._by_pattern(ranked, view)
        if self.rows is not None:
            # In each row the place of every unit in the order of its scores.
            place = torch.argsort(torch.argsort(ranked, dim=2, descending=True, stable=True), dim=2, stable=True)
            return place < self.rows[..., None].to(place.device)
        return _largest(ranked.flatten(), self.keep).reshape(ranked.shape)

    def _by_pattern(self, ranked: Tensor, view: LayerView) -> Tensor:
        """Neighbours along the channels, one kernel position at a time, as sparse tensor cores read them."""
        assert self.pattern is not None
        n, m = self.pattern
        # 2-D filters are neighbours already, whatever lies inside them.
        kernel = view.kernel if ranked.shape == view.matrix.shape else 1
        blocks = ranked.reshape(*ranked.shape[:2], -1, m, kernel).transpose(3, 4)
        place = torch.argsort(torch.argsort(blocks, dim=4, descending=True, stable=True), dim=4, stable=True)
        return (place < n).transpose(3, 4).flatten(2)


def _largest(values: Tensor, count: int) -> Tensor:
    """Which values are the `count` largest, ties by position: as a stable sort has it, without sorting a hundred million."""
    if not 0 < count < len(values):
        return torch.full_like(values, count > 0, dtype=torch.bool)
    bar = values.kthvalue(len(values) - count + 1).values
    keep = values > bar
    keep[(values == bar).nonzero()[: count - int(keep.sum()), 0]] = True
    return keep


@dataclass(frozen=True)
class LayerPlan:
    """The decision for one layer.

    keep     (groups, out, in) bool
    matrix   (groups, out, in) new values of the weights, zero where not kept; None: those that stay are as they were
    error    what the paper's bound says of this plan, of its worst row, where it has one
    draws    draws with replacement behind it, where it was drawn
    """

    keep: Tensor
    matrix: Tensor | None = None
    error: float | None = None
    draws: int | None = None

    def check(self, view: LayerView, quota: Quota) -> None:
        """Raise where the plan is not what was asked for: our own methods and those of third parties are held to it alike."""
        if self.keep.dtype != torch.bool or self.keep.shape != view.matrix.shape:
            raise OnnxpruneError(f"a plan for {view.name!r} marks {tuple(self.keep.shape)} {self.keep.dtype}, not its weights")
        if self.matrix is not None and (self.matrix.shape != self.keep.shape or not bool(torch.isfinite(self.matrix).all())):
            raise OnnxpruneError(f"a plan for {view.name!r} has new values that are not finite or not of the layer's shape")
        if self.matrix is not None and bool((self.matrix[~self.keep] != 0).any()):
            raise OnnxpruneError(f"a plan for {view.name!r} gives new values to weights that do not stay")
        kept = int(self.keep.sum())
        if kept > quota.keep * quota.unit:
            raise OnnxpruneError(f"a plan for {view.name!r} keeps {kept} weights where {quota.keep * quota.unit} may stay")

    def weights(self, view: LayerView) -> Tensor:
        """(groups, out, in): the layer's weights once the plan is carried out."""
        return view.matrix * self.keep if self.matrix is None else self.matrix


class WeightMethod(Method):
    """Sets single weights or 2-D filters to zero. Set the class variables, write `score`; override `decide` to do more.

    needs           statistics wanted on the inputs of the layers, for the scores and the decision alike
    may_keep_fewer  weights that its scores rule out go even where the quota has room for them
    scope           what competes with `--budget auto`: weights of each layer, of each row, of the network, or as `errors` says;
                    gain: layers, by the `error` of plans that are tried, times what an error there does to the model's outputs
    """

    scope: ClassVar[Scope] = "layer"
    may_keep_fewer: ClassVar[bool] = False

    @abstractmethod
    def score(self, view: LayerView) -> Tensor:
        """(groups, out, in), for 2-D filters (groups, out, channels): finite importance, larger is more important."""

    def decide(self, view: LayerView, scores: Tensor, quota: Quota, rng: torch.Generator) -> LayerPlan:
        """Keep what the quota chooses by score: exact counts, never a threshold."""
        chosen = quota.choose(scores, view)
        return LayerPlan(chosen if chosen.shape == view.matrix.shape else view.spread(chosen))

    def errors(self, view: LayerView, scores: Tensor) -> Tensor | None:
        """(groups * out, in + 1): the paper's bound on the error of each row if its m best weights stay, m = 0 ... in.

        Serves the budget `bound` (OptAlloc), error-first pruning (epsilon) and the report. None: the paper has no bound.
        """
        return None

    def losses(self, view: LayerView, counts: Sequence[int], rng: torch.Generator) -> list[float]:
        """What the layer loses with each of these numbers of weights: the squared `error` of plans that are tried.

        Serves the scope `gain`, which needs no plan for that: a method that can tell for less than a plan takes overrides it.
        """
        scores = check_weight_scores(self, view, self.score(view))
        return [(self.decide(view, scores, Quota(count), rng).error or 0.0) ** 2 for count in counts]

    @property
    def bounded(self) -> bool:
        """Whether the method has a bound, so that an error may be asked for instead of a share."""
        return type(self).errors is not WeightMethod.errors

    def within(self, view: LayerView, scores: Tensor, epsilon: float, rng: torch.Generator) -> LayerPlan:
        """Error-first: each row keeps as few weights as its bound lets it with an error of at most epsilon."""
        curves = self.errors(view, scores)
        assert curves is not None, "callers ask `bounded` first"
        places = torch.arange(curves.shape[1], device=curves.device)
        most = curves.shape[1] - 1
        counts = torch.where(curves <= epsilon, places, most).amin(1)
        unit = view.kernel if self.target == "kernel" else 1
        quota = Quota(int(counts.sum()), unit, rows=counts.reshape(view.matrix.shape[:2]))
        plan = self.decide(view, scores, quota, rng)
        return replace(plan, error=float(curves.gather(1, counts[:, None]).max()))

    def facts(self, view: LayerView, plan: LayerPlan) -> Mapping[str, Any]:
        """What the report tells of one layer's bound, as plain data. Empty: nothing."""
        return {} if plan.error is None else {"error": plan.error}

    def bounds(self, layers: Mapping[str, Mapping[str, Any]], samples: int) -> Mapping[str, Any]:
        """The report's `bounds`, from the facts of the layers in the order of the model and the number of calibration samples.

        `summary` is a sentence for people; `warnings` (a list) join those of the run.
        """
        return {"layers": [{"name": name, **facts} for name, facts in layers.items()]}


def check_weight_scores(method: WeightMethod, view: LayerView, scores: Tensor) -> Tensor:
    """The scores, or an error there and then: a silent NaN would make top-k keep the first weights by position."""
    check_tensor(method, "scores", view.name, scores)
    units = view.kernel_norms.shape if method.target == "kernel" else view.matrix.shape
    if scores.shape != units:
        got = f"{method.name} gave scores of shape {tuple(scores.shape)}"
        raise OnnxpruneError(f"{got} for {tuple(units)} units of {view.name!r}")
    if not bool(torch.isfinite(scores).all()):
        raise UsageError(f"{method.name} gives non-finite scores for {view.name!r}", "its weights or inputs hold NaN or infinity")
    return scores
