"""A rank method on synthetic views of a layer, and through the pipeline on a tiny network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from onnxprune.contract import RankMethod, RankView, check_energies
from onnxprune.errors import UsageError
from onnxprune.pipeline import PruneResult
from onnxprune.testing.runs import check_pipeline

# Relative to the largest weight: what single precision and a decomposition leave over.
TOLERANCE = 1e-4


def check_rank_method(cls: type[RankMethod], **options: Any) -> None:
    """See check_method."""
    method = cls(**options)
    for name, view in _views(method):
        _check_view(method, view, name)
    _check_nan(method)
    check_pipeline(cls, options, _check_sizes)


def _views(method: RankMethod) -> list[tuple[str, RankView]]:
    """(what is special about it, view): everything that a method may meet."""
    plain = _view(method, 6, 12)
    return [
        ("a wide layer", plain),
        ("a tall layer", _view(method, 12, 6)),
        ("a layer without a bias", _view(method, 6, 12, free=False)),
        ("a square layer of one weight", _view(method, 1, 1)),
        ("a dead layer", _view(method, 6, 12, scale=0.0)),
        ("inputs that are never active", _view(method, 6, 12, active=0.5)),
        ("inputs that are never active, tall", _view(method, 12, 6, active=0.5)),
        ("no input active", _view(method, 6, 12, active=0.0)),
        ("a layer of rank 1", _view(method, 6, 12, rank=1)),
    ]


def _view(
    method: RankMethod, out: int, inputs: int, *, free: bool = True, active: float = 1.0, scale: float = 1.0, rank: int = 99
) -> RankView:
    """Seeded random weights; statistics of 60 rows, of which the first share of the inputs is `active`."""
    rng = torch.Generator().manual_seed(out * inputs)
    rank = min(rank, out, inputs)
    matrix = scale * torch.randn((1, out, rank), generator=rng) @ torch.randn((1, rank, inputs), generator=rng)
    counted = {}
    for kind in method.needs:
        counted[kind] = method.counter(kind, matrix if kind.weighs else None)
        for _ in range(2):
            rows = torch.randn((30, 1, inputs), generator=rng).relu() * (torch.arange(inputs) < active * inputs)
            counted[kind].add(rows if kind.rows == "grouped" else rows.flatten(0, 1))
    bias = torch.randn((1, out), generator=rng)
    return RankView("layer", matrix, bias, positions=16, statistics=counted, free_bias=free)


def _check_view(method: RankMethod, view: RankView, name: str) -> None:
    where = f"{method.name} on {name}"
    before = view.matrix.clone()
    energies = check_energies(method, view, method.energies(view))
    assert torch.equal(energies, method.energies(view)), f"{where}: the energies change when asked again"
    for rank in sorted({1, view.full // 2 or 1, view.full}):
        found, again = method.factor(view, rank), method.factor(view, rank)
        found.check(view, rank)
        assert torch.equal(found.matrix, again.matrix), f"{where}: two answers for rank {rank}"
    whole = method.factor(view, view.full)
    away = (whole.matrix - view.matrix).abs().max()
    assert float(away) <= TOLERANCE * float(view.matrix.abs().max()), f"{where}: at full rank its weights change by {away:.1e}"
    if whole.shift is not None:
        # Inputs of this size were seen: a shift that moves outputs by less than rounding does is none.
        limit = TOLERANCE * (1 + float(view.matrix.abs().sum(2).max()))
        assert float(whole.shift.abs().max()) <= limit, f"{where}: at full rank its bias changes"
    assert torch.equal(view.matrix, before), f"{where}: the view was written to"


def _check_nan(method: RankMethod) -> None:
    view = _view(method, 4, 9)
    spoilt = replace(view, name="spoilt", matrix=view.matrix * torch.nan)
    try:
        check_energies(method, spoilt, method.energies(spoilt))
    except UsageError:
        return
    raise AssertionError(f"{method.name}: NaN weights give finite energies")


def _check_sizes(result: PruneResult) -> None:
    """Layers are at most half as large, down to rank 1, and the report says by how much."""
    name, rows = result.report["method"], [row for row in result.report["ranks"] if row["rank"] is not None]
    assert rows, f"{name}: no layer of the tiny network becomes two at ratio 0.5"
    for row in rows:
        most = max(0.5 * row["parameters_before"], row["parameters"] / (row["rank"] or 1))
        assert row["parameters"] <= most, f"{name}: {row['name']} keeps {row['parameters']} parameters at ratio 0.5"
    sizes = [figures["parameters"] for figures in (result.report["original"], result.report["pruned"])]
    saved = sum(row["parameters_before"] - row["parameters"] for row in rows)
    assert sizes[0] - sizes[1] <= saved < sizes[0], f"{name}: {saved} weights went, {sizes[0] - sizes[1]} parameters did"
