"""OptAlloc by hulls against brute force and the global best; rounding at random that keeps sums and means."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from onnxprune.allocation import RESOLUTION, allocate, systematic, unit_gains
from onnxprune.budget.weights import Share, by_scope
from onnxprune.errors import UsageError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def falling(rows, units, seed, *, convex):
    steps = torch.rand(rows, units, generator=seeded(seed), dtype=torch.float64)
    steps = steps.sort(dim=1, descending=True).values if convex else steps
    return torch.nn.functional.pad(steps.flip(1).cumsum(1).flip(1), (0, 1))


def hull(curve):
    """Lower convex hull of (m, e_m) by looking at every chord over every point."""
    n = len(curve)
    found = curve.clone()
    for m in range(n):
        for i in range(m + 1):
            for j in range(m, n):
                if i < m < j:
                    found[m] = min(found[m], curve[i] + (curve[j] - curve[i]) * (m - i) / (j - i))
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1, 7, 15, 29])
@pytest.mark.parametrize("convex", [True, False])
def test_three_groups_of_ten_against_every_allocation(seed, budget, convex):
    curves = falling(3, 10, seed, convex=convex)
    hulls = torch.stack([hull(c) for c in curves])
    sums = {
        counts: float(sum(hulls[g, m] for g, m in enumerate(counts)))
        for counts in product(range(11), repeat=3)
        if sum(counts) == budget
    }
    (counts,) = allocate([unit_gains(curves, torch.full((3,), 10))], budget, seeded())
    assert int(counts.sum()) == budget
    assert sums[tuple(counts.tolist())] == pytest.approx(min(sums.values()), abs=1e-9)
    if convex:
        assert torch.allclose(hulls, curves)


def test_the_slopes_are_those_of_the_hull():
    curves = falling(20, 13, 3, convex=False)
    expected = -torch.stack([hull(c) for c in curves]).diff(dim=1)
    assert torch.allclose(unit_gains(curves, torch.full((20,), 13)), expected)


def test_no_row_is_given_more_than_it_has_while_others_have_room():
    curves, room = falling(4, 9, 1, convex=False), torch.tensor([0, 3, 9, 5])
    gains = unit_gains(curves, room)
    assert torch.equal(torch.isfinite(gains).sum(1), room)
    (counts,) = allocate([gains], 16, seeded())
    assert bool((counts <= room).all())
    assert int(counts.sum()) == 16


def test_wide_rows_go_by_blocks_and_stay_near_the_optimum():
    curves = falling(6, 3 * RESOLUTION + 7, 2, convex=False)
    gains = unit_gains(curves, torch.full((6,), curves.shape[1] - 1))
    assert bool((gains[:, 1:] <= gains[:, :-1] + 1e-12).all())
    assert torch.allclose(gains.sum(1), curves[:, 0])
    (counts,) = allocate([gains], 4000, seeded())
    assert int(counts.sum()) == 4000


def test_ties_are_shared_in_proportion():
    gains = [torch.ones(4, 10, dtype=torch.float64), torch.ones(2, 30, dtype=torch.float64)]
    counts = allocate(gains, 50, seeded())
    assert [c.tolist() for c in counts] == [[5, 5, 5, 5], [15, 15]]


def test_rounding_at_random_keeps_the_sum_and_is_right_on_average():
    values = torch.tensor([0.5, 0.25, 1.25, 2.0, 0.0, 0.9, 0.1], dtype=torch.float64)
    found = torch.stack([systematic(values, seeded(s)) for s in range(3000)]).double()
    assert bool((found.sum(1) == 5).all())
    assert bool(((found - values).abs() < 1).all())
    assert torch.allclose(found.mean(0), values, atol=5 * 0.5 / 3000**0.5)


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 0.9])
def test_for_sums_of_what_goes_it_is_the_best_of_the_whole_network(ratio):
    shares = {}
    for i, shape in enumerate([(1, 20, 30), (2, 10, 45)]):
        scores = torch.rand(shape, generator=seeded(i)) * (1 + 0.05 * i)
        gone = scores.flatten(0, 1).double().sort(dim=1).values.cumsum(1).flip(1)
        shares[str(i)] = Share(scores, 1, scores < 0, torch.nn.functional.pad(gone, (0, 1)))
    by_bound, by_score = by_scope("bound", shares, ratio), by_scope("network", shares, ratio)
    assert {n: q.keep for n, q in by_bound.items()} == {n: q.keep for n, q in by_score.items()}
    bar = torch.cat([s.scores.flatten() for s in shares.values()]).sort(descending=True).values[round(1500 * (1 - ratio)) - 1]
    for name, quota in by_bound.items():
        assert torch.equal(quota.rows, (shares[name].scores >= bar).sum(2))


def test_layers_keep_their_floor_zeros_go_first_and_the_sum_is_exact():
    scores = [torch.rand(1, 10, 100, generator=seeded(i)) * 1000.0 ** (-i) for i in range(3)]
    zero = torch.rand(1, 10, 100, generator=seeded(9)) < 0.6
    shares = {}
    for i, s in enumerate(scores):
        s = s * ~zero if i == 0 else s
        gone = s.flatten(0, 1).double().sort(dim=1).values.cumsum(1).flip(1)
        shares[str(i)] = Share(s, 1, s == 0, torch.nn.functional.pad(gone, (0, 1)))
    found = by_scope("bound", shares, 0.8)
    assert sum(q.keep for q in found.values()) == 600
    assert min(q.keep for q in found.values()) == 10
    assert bool((found["0"].rows <= (~zero).sum(2)).all())


def test_it_needs_a_bound():
    with pytest.raises(UsageError, match="not possible"):
        by_scope("bound", {"a": Share(torch.rand(1, 2, 3), 1, torch.zeros(1, 2, 3, dtype=torch.bool))}, 0.5)


def test_pooling_agrees_with_a_plain_loop():
    gains = torch.rand(50, 40, generator=seeded(5), dtype=torch.float64)
    curves = torch.nn.functional.pad(gains.flip(1).cumsum(1).flip(1), (0, 1))
    for row, found in zip(gains.tolist(), unit_gains(curves, torch.full((50,), 40)), strict=True):
        pools = []
        for g in row:
            pools.append([g, 1])
            while len(pools) > 1 and pools[-1][0] / pools[-1][1] > pools[-2][0] / pools[-2][1]:
                total, size = pools.pop()
                pools[-1] = [pools[-1][0] + total, pools[-1][1] + size]
        assert np.allclose(found.numpy(), np.concatenate([[t / s] * s for t, s in pools]))
