"""A weight method on synthetic views of a layer, and through the pipeline on a tiny network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper

from onnxprune.contract import LayerPlan, LayerView, Quota, WeightMethod, check_weight_scores
from onnxprune.errors import UsageError
from onnxprune.pipeline import PruneResult
from onnxprune.testing.runs import check_pipeline


def check_weight_method(cls: type[WeightMethod], **options: Any) -> None:
    """See check_method."""
    method = cls(**options)
    for name, view in _views(method):
        _check_view(method, view, name)
    _check_nan(method)
    check_pipeline(cls, options, _check_zeros)


def _views(method: WeightMethod) -> list[tuple[str, LayerView]]:
    """(what is special about it, view): everything that a method may meet."""
    dead = _view(method, 1, 6, 12)
    sparse = _view(method, 1, 6, 12)
    half = sparse.matrix * (torch.arange(12) % 2)
    return [
        ("a fully connected layer", _view(method, 1, 7, 10)),
        ("a convolution", _view(method, 1, 6, 4 * 9, kernel=9)),
        ("a grouped convolution", _view(method, 3, 4, 2 * 9, kernel=9)),
        ("one output", _view(method, 1, 1, 8)),
        ("one input", _view(method, 1, 8, 1)),
        ("all weights alike", replace(dead, matrix=torch.full_like(dead.matrix, 0.5))),
        ("a dead layer", replace(dead, matrix=torch.zeros_like(dead.matrix))),
        ("half of the weights zero before", replace(sparse, matrix=half)),
        ("inputs that are never active", _view(method, 1, 6, 12, active=0.5)),
        ("no input active", _view(method, 1, 6, 12, active=0.0)),
    ]


def _view(method: WeightMethod, groups: int, out: int, inputs: int, *, kernel: int = 1, active: float = 1.0) -> LayerView:
    """Seeded random weights; statistics of 60 rows, of which the first share of the inputs is `active`."""
    rng = torch.Generator().manual_seed(groups * out * inputs)
    matrix = torch.randn((groups, out, inputs), generator=rng)
    counted = {}
    for kind in method.needs:
        counted[kind] = method.counter(kind, matrix if kind.weighs else None)
        for _ in range(2):
            rows = torch.randn((30, groups, inputs), generator=rng).relu() * (torch.arange(inputs) < active * inputs)
            counted[kind].add(rows if kind.rows == "grouped" else rows.flatten(0, 1))
    bias = torch.randn((groups, out), generator=rng)
    return LayerView("layer", matrix, bias, kernel, positions=16, statistics=counted)


def _check_view(method: WeightMethod, view: LayerView, name: str) -> None:
    where = f"{method.name} on {name}"
    before = view.matrix.clone()
    scores = check_weight_scores(method, view, method.score(view))
    assert torch.equal(scores, method.score(view)), f"{where}: the scores change when asked again; draw in decide, not in score"
    unit = view.kernel if method.target == "kernel" else 1
    units = scores.numel()
    for keep in sorted({0, 1, units // 3, units // 2, units - 1, units}):
        quota = Quota(keep, unit)
        plan = method.decide(view, scores, quota, _seeded())
        plan.check(view, quota)
        again = method.decide(view, scores, quota, _seeded())
        assert torch.equal(plan.weights(view), again.weights(view)), f"{where}: one seed gives two plans to keep {keep}"
        _check_count(method, view, plan, quota, where)
        if keep == units:
            assert torch.equal(plan.weights(view), view.matrix), f"{where}: nothing goes, yet weights change"
    assert torch.equal(view.matrix, before), f"{where}: the view was written to"


def _check_count(method: WeightMethod, view: LayerView, plan: LayerPlan, quota: Quota, where: str) -> None:
    """As many non-zero weights as may stay, or all there are; what samples may fall short by what its scores rule out."""
    kept = int((plan.weights(view) != 0).sum())
    there = int((view.matrix != 0).sum())
    assert kept <= quota.keep * quota.unit, f"{where}: {kept} weights stay where {quota.keep * quota.unit} may"
    if not method.may_keep_fewer:
        wanted = min(there, quota.keep * quota.unit)
        assert kept == wanted, f"{where}: {kept} weights stay where {wanted} should"


def _check_nan(method: WeightMethod) -> None:
    """NaN in the weights is an error, or the method does not look at the weights at all."""
    view = _view(method, 1, 4, 9)
    spoilt = replace(view, matrix=view.matrix * torch.nan)
    try:
        scores = check_weight_scores(method, spoilt, method.score(spoilt))
    except UsageError:
        return
    assert torch.equal(scores, method.score(view)), f"{method.name}: NaN weights give finite scores"


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def _check_zeros(result: PruneResult) -> None:
    """At least half of every matrix is zero, and the report says so."""
    zeros = {t.name: int((numpy_helper.to_array(t) == 0).sum()) for t in result.model.graph.initializer}
    name, rows = result.report["method"], [row for row in result.report["weights"] if row["reason"] is None]
    assert rows
    for row in rows:
        assert row["zeros"] == zeros[row["name"]], f"{name}: the report tells of {row['zeros']} zeros in {row['name']}"
        least = np.floor(0.5 * row["weights"])
        assert row["zeros"] >= least, f"{name}: {row['zeros']} of {row['weights']} weights of {row['name']} went at ratio 0.5"
