"""Sampling of matrix entries: unbiased, exact counts, probabilities by the papers' formulas, the race against the plain loop."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from onnxprune.contract import LayerView, Quota
from onnxprune.errors import UsageError
from onnxprune.methods import create
from onnxprune.methods.sparsification import sample

NAMES = ("sparsify-l1", "sparsify-l2", "sparsify-l1l2")


def view(groups=1, out=5, inputs=8, kernel=1, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return LayerView("layer", torch.randn((groups, out, inputs), generator=rng), torch.zeros(groups, out), kernel)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def draw(name, found, quota, seed, **options):
    method = create(name, **options)
    return method.decide(found, method.score(found), quota, seeded(seed))


QUOTAS = {
    "layer": Quota(13),
    "rows": Quota(13, rows=torch.tensor([[1, 4, 3, 0, 5]])),
    "pattern": Quota(20, pattern=(2, 4)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quota", QUOTAS)
def test_the_mean_of_many_draws_is_the_matrix(name, quota):
    found = view()
    # None near zero: those are drawn so seldom that no mean of a thousand draws knows them.
    found = replace(found, matrix=found.matrix.sign() * (0.4 + found.matrix.abs()))
    draws = torch.stack([draw(name, found, QUOTAS[quota], seed).weights(found) for seed in range(1000)]).double()
    spread = draws.std(0) / math.sqrt(len(draws))
    away = (draws.mean(0) - found.matrix).abs()
    # A row of which nothing may stay cannot be right on average.
    sampled = torch.ones(5, dtype=torch.bool) if QUOTAS[quota].rows is None else QUOTAS[quota].rows[0] > 0
    assert bool((away <= 5 * spread + 1e-6)[:, sampled].all())
    assert float(spread.max()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_exact_in_rows_and_patterns(name):
    found = view(groups=2, out=3, inputs=4 * 6, kernel=3)
    rows = torch.tensor([[4, 0, 24], [7, 1, 2]])
    plan = draw(name, found, Quota(38, rows=rows), 1)
    assert torch.equal(plan.keep.sum(2), rows)
    plan = draw(name, found, Quota(72, pattern=(2, 4)), 1)
    # Neighbours along the channels, at the same kernel position.
    assert bool((plan.keep.reshape(2, 3, 2, 4, 3).sum(3) == 2).all())


def literal(probabilities, keep, rng):
    """The paper's draws, one at a time, until entry keep + 1 comes up: hits up to there, and the draws made."""
    hits = np.zeros(len(probabilities))
    for count in range(1, 10**6):
        entry = np.searchsorted(probabilities.cumsum(), rng.random())
        if hits[entry] == 0 and (hits > 0).sum() == keep:
            return hits, count
        hits[entry] += 1
    raise AssertionError


def test_the_race_draws_like_the_plain_loop():
    p = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    rng, runs = np.random.default_rng(0), 1500
    plain = np.zeros((2, 6))
    for _ in range(runs):
        hits, draws = literal(p, 3, rng)
        # The draw that was left out is counted as time, half of it on average: (draws - 1) + 1.
        plain += hits > 0, hits / (draws * p)
    chances = torch.tensor(p)[None]
    factors = torch.cat([sample(chances, torch.tensor([3]), seeded(seed)) for seed in range(runs)]).numpy()
    assert np.abs((factors > 0).mean(0) - plain[0] / runs).max() < 0.06
    # Both means are near 1; the loop's only nearly.
    assert np.abs(factors.mean(0) - 1).max() < 6 * factors.std(0).max() / math.sqrt(runs)
    assert np.abs(plain[1] / runs - 1).max() < 0.3


def test_a_cell_of_which_all_may_stay_is_left_as_it_is():
    chances = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    assert sample(chances, torch.tensor([2, 0]), seeded(0)).tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_l2_and_the_mixture_by_their_formulas():
    a = view().matrix[0].double()
    squares, size = float((a**2).sum()), float(a.abs().sum())
    l2 = create("sparsify-l2").probabilities(a, 5)
    mixed = create("sparsify-l1l2", alpha=0.3).probabilities(a, 5)
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            w = float(a[i, j])
            assert float(l2[i, j] / l2.sum()) == pytest.approx(w * w / squares)
            assert float(mixed[i, j]) == pytest.approx(0.3 * w * w / squares + 0.7 * abs(w) / size)


def test_l2_rules_out_what_is_below_epsilon_over_2n():
    found = view()
    norm = float(torch.linalg.vector_norm(found.matrix))
    plan = draw("sparsify-l2", found, Quota(39), 0, epsilon=8.0)
    bar = 8.0 * norm / 16
    assert int(plan.keep.sum()) == int((found.matrix.abs() >= bar).sum()) < 39
    assert torch.equal(plan.weights(found)[plan.keep], found.matrix[plan.keep])


@pytest.mark.parametrize("draws", [3, 40, 10**6])
def test_l1_shares_satisfy_the_bernstein_rule(draws):
    """One zeta for all rows: solved row by row from rho, sqrt(rho) zeta = alpha n sqrt(rho)/sqrt(rho) ... (the rule squared)."""
    method = create("sparsify-l1", delta=0.05)
    norms = torch.tensor([3.0, 1.0, 0.2, 2.0], dtype=torch.float64)
    rho = method.row_shares(norms, 9, draws)
    assert float(rho.sum()) == pytest.approx(1)
    log = math.log((4 + 9) / 0.05)
    alpha, beta = math.sqrt(log / draws), log / (3 * draws)
    # rho = (a/2z + sqrt((a/2z)^2 + b/z))^2  <=>  rho z - a sqrt(rho) - b = 0
    zetas = [(alpha * n * math.sqrt(r) + beta * n) / r for n, r in zip((norms / 3).tolist(), rho.tolist(), strict=True)]
    assert zetas == pytest.approx([zetas[0]] * 4, rel=1e-6)


def test_l1_is_plain_for_few_draws_and_squared_for_many():
    norms = torch.tensor([4.0, 1.0], dtype=torch.float64)
    method = create("sparsify-l1")
    # With very few draws b dominates: rho ~ b/z ~ the norm; with many a does: rho ~ (a/z)^2 ~ its square.
    assert float(method.row_shares(norms, 10, 1)[0]) == pytest.approx(0.84, abs=0.05)
    assert float(method.row_shares(norms, 10, 10**9)[0]) == pytest.approx(16 / 17, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [("sparsify-l1", {"delta": 0}), ("sparsify-l2", {"epsilon": -1}), ("sparsify-l1l2", {"alpha": 1.5})],
)
def test_options_out_of_range_are_refused(name, options):
    with pytest.raises(UsageError, match="give a number"):
        create(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_entries_next_to_nothing_make_nothing_infinite(name):
    found = view(1, 3, 4)
    found.matrix[0, 0, 0] = 1e-25
    plan = draw(name, found, Quota(11), 0)
    assert bool(torch.isfinite(plan.weights(found)).all())
    assert int(plan.keep.sum()) == 11
