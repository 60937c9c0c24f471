"""The repair's formulas against torch.linalg.lstsq and brute force, and at the edges where Gram matrices are singular."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from onnxprune.compensation.least_squares import RIDGES, RefitLosses, Regression, least_squares, match_moments


def errors_by_count(covariance, weights, order, damping=0.01):
    """The losses of a single order of all inputs; weights: one (inputs, n) per kernel position and output."""
    return RefitLosses(covariance, torch.cat(weights, 1), damping).in_order(order)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def counted(x, t, groups=1, batch=500):
    """A Regression over rows x (n, groups * in) and targets t (n, groups * out), in batches."""
    found = Regression()
    for i in range(0, len(x), batch):
        found.add(x[i : i + batch].unflatten(1, (groups, -1)), t[i : i + batch])
    return found


def mean_error(x, t, weight, bias):
    """(groups, out, in), (groups, out) on rows: squared error relative to the spread of t."""
    groups = len(weight)
    y = torch.einsum("ngi,goi->ngo", x.unflatten(1, (groups, -1)), weight.double()) + bias.double()
    return float(((y.flatten(1) - t) ** 2).mean(0).sum() / t.var(0, correction=0).sum())


@pytest.fixture
def problem():
    """Correlated inputs of which the last four went: (x left, t, weight left, bias)."""
    x = draw(4000, 12) @ draw(12, 12, seed=1) + draw(12, seed=2)
    weight, bias = draw(1, 5, 12, seed=3), draw(1, 5, seed=4)
    t = x @ weight[0].T + bias[0]
    return x[:, :8], t, weight[:, :, :8], bias


# --- moments


@pytest.mark.parametrize("inputs", [3, 150])
def test_means_are_those_of_the_products(inputs):
    """Narrow, and so wide that only one side of x x^T is added up."""
    x, t = draw(700, 2 * inputs) + 1, draw(700, 4, seed=1)
    found = counted(x, t, groups=2, batch=320).means()
    assert {value.dtype for value in found} == {torch.float64}
    for g in range(2):
        a, own = x[:, inputs * g : inputs * (g + 1)], t[:, 2 * g : 2 * g + 2]
        expected = (a.T @ a / 700, a.mean(0), a.T @ own / 700, own.mean(0), (own**2).mean(0))
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got[g], want, atol=1e-5, rtol=1e-5)


def test_shards_add_up_and_stay_as_they_are():
    x, t = draw(90, 3), draw(90, 2, seed=1)
    whole, first, second = counted(x, t), counted(x[:40], t[:40]), counted(x[40:], t[40:])
    before = second.xx.clone()
    first.merge(second)
    first.add(x[:0].unsqueeze(1), t[:0])
    for a, b in zip(first.means(), whole.means(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    empty = Regression()
    empty.merge(second)
    empty.merge(Regression())
    empty.add(x[:40].unsqueeze(1), t[:40])
    assert torch.equal(second.xx, before)
    assert empty.count == 90


def test_the_error_is_that_of_the_rows(problem):
    x, t, weight, bias = problem
    assert counted(x, t).error(weight, bias) == pytest.approx(mean_error(x, t, weight, bias), rel=1e-4)


# --- least squares


def test_it_is_lstsq_where_data_are_plenty(problem):
    x, t, weight, bias = problem
    found = least_squares(counted(x[:3200], t[:3200]), counted(x[3200:], t[3200:]), weight, bias, free_bias=True)
    a = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(a, t).solution
    best_error = mean_error(x, t, best[:-1].T[None], best[-1][None])
    assert found.before > 3 * found.after
    assert mean_error(x, t, found.weight, found.bias) <= best_error * 1.02 + 1e-6
    assert found.ridge == RIDGES[0]


def test_a_vanishing_ridge_gives_the_very_solution(problem, monkeypatch):
    x, t, weight, bias = problem
    monkeypatch.setattr("onnxprune.compensation.least_squares.RIDGES", (1e-9,))
    found = least_squares(counted(x, t), Regression(), weight, bias, free_bias=True)
    best = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1), t).solution
    torch.testing.assert_close(found.weight[0], best[:-1].T, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found.bias[0], best[-1], atol=2e-3, rtol=2e-3)


def test_what_is_reported_is_what_was_held_out(problem):
    x, t, weight, bias = problem
    fit, held = (x[:3200], t[:3200]), (x[3200:], t[3200:])
    found = least_squares(counted(*fit), counted(*held), weight, bias, free_bias=True)
    assert found.before == pytest.approx(mean_error(*held, weight, bias), rel=1e-3)
    # The weights are refitted to all rows at last, which cannot change the error by much.
    assert found.after == pytest.approx(mean_error(*held, found.weight, found.bias), rel=0.05)


def test_groups_are_fitted_apart():
    x = draw(3000, 9) @ draw(9, 9, seed=1)
    weight, bias = draw(3, 2, 3, seed=2), draw(3, 2, seed=3)
    t = torch.einsum("ngi,goi->ngo", x.unflatten(1, (3, 3)), weight) + bias + x[:, :1, None] * 0.5
    t = t.flatten(1)
    found = least_squares(counted(x, t, groups=3), Regression(), weight, bias, free_bias=True)
    for g in range(3):
        one = counted(x[:, 3 * g : 3 * g + 3], t[:, 2 * g : 2 * g + 2])
        alone = least_squares(one, Regression(), weight[g : g + 1], bias[g : g + 1], free_bias=True)
        torch.testing.assert_close(found.weight[g], alone.weight[0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found.bias[g], alone.bias[0], atol=1e-6, rtol=1e-6)


def test_a_duplicate_of_a_removed_channel_makes_the_repair_exact():
    """algorithms.md 12, oracle 1."""
    x = draw(4000, 6)
    x[:, 5] = x[:, 0]
    weight, bias = draw(1, 4, 6, seed=1), draw(1, 4, seed=2)
    t = x @ weight[0].T + bias[0]
    found = least_squares(counted(x[:, :5], t), Regression(), weight[:, :, :5], bias, free_bias=True)
    assert found.before > 0.05
    assert found.after < 1e-5
    torch.testing.assert_close(found.weight[0, :, 0], weight[0, :, 0] + weight[0, :, 5], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("free_bias", [True, False])
@pytest.mark.parametrize("dead", [[2], [0, 1, 2, 3, 4]])
def test_dead_inputs_keep_their_weights_and_give_no_nan(dead, free_bias):
    """Oracle 2; also where every input is dead."""
    x = draw(2000, 6)
    x[:, dead] = 0
    weight, bias = draw(1, 3, 6, seed=1), draw(1, 3, seed=2)
    t = x @ weight[0].T + bias[0] + draw(2000, 3, seed=5) * 0.1
    left = weight[:, :, :5]
    found = least_squares(counted(x[:, :5], t), counted(x[:400, :5], t[:400]), left, bias, free_bias=free_bias)
    assert bool(torch.isfinite(found.weight).all())
    assert bool(torch.isfinite(found.bias).all())
    torch.testing.assert_close(found.weight[:, :, dead], left[:, :, dead].double(), atol=1e-3, rtol=1e-3)


def test_a_constant_channel_goes_into_the_bias_exactly():
    """Oracle 3: by least squares and by the means alone."""
    x = draw(4000, 6)
    x[:, 5] = 3.0
    weight, bias = draw(1, 4, 6, seed=1), draw(1, 4, seed=2)
    t = x @ weight[0].T + bias[0]
    for solver in (least_squares, match_moments):
        found = solver(counted(x[:, :5], t), Regression(), weight[:, :, :5], bias, free_bias=True)
        assert found.after < 1e-6
        torch.testing.assert_close(found.bias, bias + 3 * weight[:, :, 5], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("solver", [least_squares, match_moments])
def test_without_a_place_for_a_bias_none_is_changed(problem, solver):
    x, t, weight, bias = problem
    found = solver(counted(x, t), Regression(), weight, bias, free_bias=False)
    assert torch.equal(found.bias, bias)
    assert found.after <= found.before


def test_least_squares_without_a_bias_is_lstsq_without_a_column_of_ones(problem, monkeypatch):
    x, t, weight, bias = problem
    monkeypatch.setattr("onnxprune.compensation.least_squares.RIDGES", (1e-9,))
    found = least_squares(counted(x, t), Regression(), weight, bias, free_bias=False)
    best = torch.linalg.lstsq(x, t - bias[0]).solution
    torch.testing.assert_close(found.weight[0], best.T, atol=2e-3, rtol=2e-3)


def few(rows, seed):
    """Fewer rows than inputs, noisy targets: where a weak ridge fits noise."""
    x = draw(rows, 40, seed=seed)
    weight = draw(1, 3, 40, seed=99)
    return x, x @ weight[0].T + 8 * draw(rows, 3, seed=seed + 1), weight


def test_the_ridge_is_the_best_on_rows_that_were_not_fitted():
    (x, t, weight), (x2, t2, _) = few(60, 0), few(400, 50)
    fit, held, bias = counted(x, t), counted(x2, t2), torch.zeros(1, 3, dtype=torch.float64)
    start = weight + draw(1, 3, 40, seed=7)
    found = least_squares(fit, held, start, bias, free_bias=True)
    tried = {}
    for ridge in RIDGES:
        centred, goal = x - x.mean(0), t - t.mean(0)
        damping = ridge * float((centred**2).mean())
        system = centred.T @ centred / len(x) + damping * torch.eye(40, dtype=torch.float64)
        w = torch.linalg.solve(system, centred.T @ goal / len(x) + damping * start[0].T).T[None]
        tried[ridge] = mean_error(x2, t2, w, (t.mean(0) - w[0] @ x.mean(0))[None])
    assert found.ridge == min(tried, key=lambda ridge: tried[ridge])
    assert found.ridge > RIDGES[0]
    assert found.after == pytest.approx(min(tried.values()), rel=1e-3)


def test_it_falls_back_where_every_fit_is_worse_on_held_rows():
    (x, t, weight), (x2, _, _) = few(45, 0), few(400, 50)
    clean = x2 @ weight[0].T  # the weights that are left are perfect already
    bias = torch.zeros(1, 3, dtype=torch.float64)
    found = least_squares(counted(x, t), counted(x2, clean), weight, bias, free_bias=True)
    assert found.weight is weight
    assert found.bias is bias
    assert found.ridge is None
    assert found.after == found.before


@pytest.mark.parametrize("solver", [least_squares, match_moments])
def test_without_rows_nothing_changes(solver):
    weight, bias = draw(1, 3, 4), draw(1, 3)
    found = solver(Regression(), Regression(), weight, bias, free_bias=True)
    assert found.weight is weight
    assert math.isnan(found.before)


def test_single_precision_weights_are_solved_in_double(problem):
    x, t, weight, bias = problem
    found = least_squares(counted(x.float(), t.float()), Regression(), weight.float(), bias.float(), free_bias=True)
    assert found.weight.dtype == found.bias.dtype == torch.float64


@pytest.mark.parametrize("shift", [0.0, 10.0, 100.0])
def test_means_far_from_zero_cost_no_precision(problem, shift):
    x, t, weight, bias = problem
    found = least_squares(counted(x + shift, t), Regression(), weight, bias, free_bias=True)
    centred = least_squares(counted(x, t), Regression(), weight, bias, free_bias=True)
    assert mean_error(x + shift, t, found.weight, found.bias) == pytest.approx(centred.after, rel=0.05)


def test_the_error_of_one_row_is_relative_to_its_size(problem):
    """Its variance is nothing, by which errors of 1e31 came about."""
    x, t, weight, bias = problem
    wrong = (x[:1] @ weight[0].T + bias[0] - t[:1]).square().sum() / t[:1].square().sum()
    assert counted(x[:1], t[:1]).error(weight, bias) == pytest.approx(float(wrong), rel=1e-4)
    many = counted(x[:1].expand(50, -1), t[:1].expand(50, -1))
    assert many.error(weight, bias) == pytest.approx(float(wrong), rel=1e-4)
    zero = torch.zeros_like(t[:1])
    assert counted(x[:1], zero).error(0 * weight, 0 * bias) == 0


# --- mean and variance


def test_mean_and_spread_are_those_of_the_targets(problem):
    x, t, weight, bias = problem
    found = match_moments(counted(x, t), Regression(), weight, bias, free_bias=True)
    y = x @ found.weight[0].T + found.bias[0]
    torch.testing.assert_close(y.mean(0), t.mean(0), atol=1e-2, rtol=1e-2)
    ratio = found.weight[0] / weight[0]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    inside = (ratio[:, 0] > 0.26) & (ratio[:, 0] < 3.9)
    assert bool(inside.any())
    torch.testing.assert_close(y.var(0)[inside], t.var(0)[inside], atol=1e-2, rtol=1e-2)


def test_the_error_that_is_told_is_that_of_rows_it_was_not_matched_to(problem):
    """And it may grow: here the spread of what is left is made up for what went, which has nothing to do with it."""
    x, t, weight, bias = problem
    noise = 20 * draw(4000, 5, seed=9)
    fit, held = counted(x[:300], (t + noise)[:300]), counted(x[300:], (t + noise)[300:])
    alone = match_moments(counted(x[:300], (t + noise)[:300]), Regression(), weight, bias, free_bias=True)
    found = match_moments(fit, held, weight, bias, free_bias=True)
    assert found.after == pytest.approx(mean_error(x[300:], (t + noise)[300:], alone.weight, alone.bias), rel=1e-3)
    assert found.before == pytest.approx(mean_error(x[300:], (t + noise)[300:], weight, bias), rel=1e-3)
    assert found.after > found.before
    y = x @ found.weight[0].T + found.bias[0]
    torch.testing.assert_close(y.mean(0), (t + noise).mean(0), atol=1e-2, rtol=1e-2)


def test_the_scale_stays_between_a_quarter_and_four():
    x = draw(1000, 2)
    weight, bias = torch.eye(2, dtype=torch.float64)[None], torch.zeros(1, 2, dtype=torch.float64)
    t = x * torch.tensor([100.0, 0.001])
    found = match_moments(counted(x, t), Regression(), weight, bias, free_bias=True)
    torch.testing.assert_close(found.weight[0].diagonal(), torch.tensor([4.0, 0.25], dtype=torch.float64))


def test_an_output_that_does_not_move_is_not_stretched():
    x = draw(1000, 3)
    x[:, 2] = 0
    weight = torch.tensor([[[1.0, 1, 0], [0, 0, 1]]], dtype=torch.float64)  # the second output reads a dead input alone
    t = torch.stack([x[:, 0] + x[:, 1], torch.full((1000,), 2.0, dtype=torch.float64)], 1)
    found = match_moments(counted(x, t), Regression(), weight, torch.zeros(1, 2, dtype=torch.float64), free_bias=True)
    torch.testing.assert_close(found.weight[0, 1], weight[0, 1])
    assert float(found.bias[0, 1]) == pytest.approx(2.0, abs=1e-5)


# --- losses for every count


def loss_by_brute_force(covariance, weights, gone, damping):
    """min over the refit of tr(D S D^T), S the damped covariance: kept inputs explain the removed ones as they can."""
    size = len(covariance)
    s = covariance + damping * covariance.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    kept = [i for i in range(size) if i not in gone]
    if not gone:
        return 0.0
    schur = s[gone][:, gone]
    if kept:
        schur = schur - s[gone][:, kept] @ torch.linalg.solve(s[kept][:, kept], s[kept][:, gone])
    return sum(float(torch.trace(w[gone].T @ schur @ w[gone])) for w in weights)


@pytest.mark.parametrize("damping", [0.01, 1e-6])
@pytest.mark.parametrize("seed", range(4))
def test_losses_are_those_of_brute_force_for_every_count(seed, damping):
    x = draw(200, 7, seed=seed) @ draw(7, 7, seed=seed + 10)
    covariance = torch.cov(x.T, correction=0)
    weights = [draw(7, 3, seed=seed + 20), draw(7, 5, seed=seed + 30)]
    order = torch.randperm(7, generator=rng(seed))
    found = errors_by_count(covariance, weights, order, damping)
    expected = [loss_by_brute_force(covariance, weights, order[m:].tolist(), damping) for m in range(8)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-8, rtol=1e-6)
    assert float(found[7]) == 0.0
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(found.tolist()))


def test_losses_are_the_residuals_of_a_real_refit():
    x = draw(5000, 6) @ draw(6, 6, seed=1)
    weight = draw(1, 4, 6, seed=2)
    t = x @ weight[0].T
    found = errors_by_count(torch.cov(x.T, correction=0), [weight[0].T], torch.arange(6), 1e-9)
    for m in range(1, 6):
        a = torch.cat([x[:, :m], torch.ones(5000, 1, dtype=torch.float64)], 1)
        residual = t - a @ torch.linalg.lstsq(a, t).solution
        assert float(found[m]) == pytest.approx(float((residual**2).mean(0).sum()), rel=1e-4)


def test_losses_of_dead_and_duplicate_inputs():
    x = draw(2000, 5)
    x[:, 4], x[:, 3] = 0, x[:, 0]
    order = torch.tensor([0, 1, 2, 3, 4])
    found = errors_by_count(torch.cov(x.T, correction=0), [draw(5, 3, seed=1)], order)
    assert bool(torch.isfinite(found).all())
    whole = float(found[0])
    assert float(found[4]) < 0.02 * whole  # the dead one
    assert float(found[3]) < 0.04 * whole  # and the duplicate


def test_losses_where_nothing_moves_at_all():
    found = errors_by_count(torch.zeros(4, 4, dtype=torch.float64), [draw(4, 3)], torch.arange(4))
    assert bool(torch.isfinite(found).all())
    assert float(found.max()) < 1e-9


def test_losses_of_wide_layers_need_only_the_products_of_their_weights():
    """More outputs than inputs: the weights are replaced by a triangular factor of the same products."""
    covariance = torch.cov(draw(50, 4).T)
    wide = draw(4, 300, seed=1)
    expected = [loss_by_brute_force(covariance, [wide], list(range(m, 4)), 0.01) for m in range(5)]
    found = errors_by_count(covariance, [wide], torch.arange(4))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
