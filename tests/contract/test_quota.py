"""Quotas: exact counts whatever the ties, rows and patterns as prescribed, zeros first; plans that break them are refused."""

from __future__ import annotations

import pytest
import torch

from onnxprune.contract import InputMoments, LayerPlan, LayerView, Quota
from onnxprune.errors import OnnxpruneError, UsageError


def view(*shape, kernel=1, seed=0):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return LayerView("layer", matrix, torch.zeros(shape[:2]), kernel)


@pytest.mark.parametrize("keep", [0, 1, 17, 59, 60])
@pytest.mark.parametrize("ties", [True, False])
def test_the_best_stay_and_exactly_as_many_as_asked(keep, ties):
    layer = view(2, 5, 6)
    scores = torch.ones_like(layer.matrix) if ties else layer.matrix.abs()
    chosen = Quota(keep).choose(scores, layer)
    assert int(chosen.sum()) == keep
    if 0 < keep < 60 and not ties:
        assert scores[chosen].min() >= scores[~chosen].max()
    if ties:
        assert bool(chosen.flatten()[:keep].all())


def test_rows_keep_what_is_prescribed():
    layer = view(1, 4, 9)
    rows = torch.tensor([[0, 3, 9, 1]])
    chosen = Quota(13, rows=rows).choose(layer.matrix.abs(), layer)
    assert torch.equal(chosen.sum(2), rows)
    for row in range(4):
        keep = int(rows[0, row])
        best = layer.matrix[0, row].abs().argsort(descending=True)[:keep].sort().values
        assert torch.equal(chosen[0, row].nonzero()[:, 0], best)


def test_zeros_go_before_anything_else():
    layer = view(1, 3, 4)
    layer.matrix[0, 0] = 0.0
    scores = 10.0 - layer.matrix.abs()
    assert not bool(Quota(8).choose(scores, layer)[0, 0].any())
    assert int(Quota(9).choose(scores, layer)[0, 0].sum()) == 1


def test_a_pattern_runs_along_the_channels_at_each_kernel_position():
    layer = view(1, 3, 8 * 4, kernel=4)
    chosen = Quota(3 * 16, pattern=(2, 4)).choose(layer.matrix.abs(), layer)
    by_channel = chosen.reshape(3, 2, 4, 4)  # out, block, channel in block, kernel position
    assert bool((by_channel.sum(2) == 2).all())
    weights = layer.matrix.abs().reshape(3, 2, 4, 4)
    kept, gone = weights.masked_fill(~by_channel, torch.inf).amin(2), weights.masked_fill(by_channel, 0).amax(2)
    assert bool((kept >= gone).all())


def test_kernels_are_units_of_their_own():
    layer = view(2, 3, 5 * 9, kernel=9)
    assert torch.allclose(layer.kernel_norms, layer.matrix.abs().reshape(2, 3, 5, 9).sum(3))
    chosen = Quota(11, unit=9).choose(layer.kernel_norms, layer)
    assert chosen.shape == (2, 3, 5)
    plan = LayerPlan(layer.spread(chosen))
    plan.check(layer, Quota(11, unit=9))
    assert int((plan.weights(layer) != 0).sum()) == 99


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (lambda m: LayerPlan(torch.ones(1, 2, 2, dtype=torch.bool)), "not its weights"),
        (lambda m: LayerPlan(torch.ones_like(m)), "not its weights"),
        (lambda m: LayerPlan(torch.ones_like(m, dtype=torch.bool)), "keeps 12 weights where 5 may"),
        (lambda m: LayerPlan(torch.zeros_like(m, dtype=torch.bool), m), "do not stay"),
        (lambda m: LayerPlan(torch.zeros_like(m, dtype=torch.bool), m * torch.nan), "not finite"),
        (lambda m: LayerPlan(torch.zeros_like(m, dtype=torch.bool), m[:, :1]), "not of the layer's shape"),
    ],
)
def test_a_plan_that_is_not_what_was_asked_for_is_refused(plan, words):
    layer = view(1, 3, 4)
    with pytest.raises(OnnxpruneError, match=words):
        plan(layer.matrix).check(layer, Quota(5))


def test_a_statistic_that_nobody_counted_is_named():
    with pytest.raises(UsageError, match="no InputMoments"):
        view(1, 2, 2).statistic(InputMoments)


def test_input_moments_are_those_of_all_rows_however_they_come():
    rows = torch.randn(50, 2, 3).relu()
    whole, first, second = InputMoments(), InputMoments(), InputMoments()
    whole.add(rows)
    first.add(rows[:20])
    second.add(rows[20:])
    first.merge(second)
    first.merge(InputMoments())
    for found in (whole, first):
        assert torch.allclose(found.mean, rows.double().mean(0))
        assert torch.allclose(found.square, (rows.double() ** 2).mean(0))
        assert torch.allclose(found.zeros, (rows == 0).double().mean(0))


def test_a_pattern_of_2d_filters_counts_filters():
    matrix = torch.arange(1.0, 1 + 2 * 4 * 9).reshape(1, 2, 36)
    view = LayerView("l", matrix, torch.zeros(1, 2), kernel=9)
    keep = Quota(4, 9, pattern=(2, 4)).choose(view.kernel_norms, view)
    assert keep.tolist() == [[[False, False, True, True]] * 2]
