"""Quotas of weights over a network: shares, counts that add up, floors, units of different size."""

from __future__ import annotations

import math

import pytest
import torch

from onnxprune.budget.weights import Share, Trials, by_scope, keep_by_trials, keep_pattern
from onnxprune.errors import UsageError


def share(*shape, unit=1, scale=1.0, zeros=0, seed=0):
    scores = scale * torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    zero = torch.zeros(shape, dtype=torch.bool)
    zero.flatten()[:zeros] = True
    return Share(scores, unit, zero)


def test_each_layer_loses_the_same_share():
    found = by_scope("layer", {"a": share(1, 10, 10), "b": share(2, 5, 7)}, 0.3)
    assert {name: quota.keep for name, quota in found.items()} == {"a": 70, "b": 49}


def test_each_row_loses_the_same_share():
    quota = by_scope("row", {"a": share(2, 4, 10)}, 0.25)["a"]
    assert quota.keep == int(quota.rows.sum()) == 60
    assert sorted(set(quota.rows.flatten().tolist())) == [7, 8]


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9])
def test_the_network_keeps_the_best_and_exactly_as_many_as_asked(ratio):
    shares = {"a": share(1, 20, 30, seed=1), "b": share(1, 30, 30, scale=0.97, seed=2)}
    found = by_scope("network", shares, ratio)
    assert sum(quota.keep for quota in found.values()) == round((1 - ratio) * 1500)
    bar = torch.cat([s.scores.flatten() for s in shares.values()]).sort(descending=True).values
    if ratio > 0:
        limit = bar[round((1 - ratio) * 1500) - 1]
        assert found["a"].keep == int((shares["a"].scores >= limit).sum())


def test_no_layer_is_emptied_and_the_others_pay_for_it():
    shares = {"a": share(1, 20, 20), "b": share(1, 10, 10, scale=1e-9, seed=1)}
    found = by_scope("network", shares, 0.9)
    assert found["b"].keep == 1
    assert found["a"].keep + found["b"].keep == 50


def test_units_of_nine_weights_count_nine():
    shares = {"conv": share(1, 8, 8, unit=9), "fc": share(1, 24, 24, seed=3)}
    found = by_scope("network", shares, 0.5)
    assert abs(9 * found["conv"].keep + found["fc"].keep - 576) <= 9


def test_zeros_that_were_there_go_first():
    shares = {"a": share(1, 10, 10, zeros=40, scale=100.0), "b": share(1, 10, 10, seed=1)}
    found = by_scope("network", shares, 0.2)
    assert (found["a"].keep, found["b"].keep) == (60, 100)


def test_a_pattern_prescribes_the_count():
    assert keep_pattern({"a": (2, 3, 16)}, {"a": 1}, (2, 4))["a"].keep == 48


def test_layers_share_what_stays_as_a_search_over_all_splits_would():
    curves = {"a": (0, 5, 10, 20, 60, 100), "b": (0, 5, 10, 20, 60, 100), "c": (0, 2, 10, 20)}
    scales, rates = {"a": 1.0, "b": 30.0, "c": 5.0}, {"a": 0.10, "b": 0.05, "c": 0.20}
    trials = {n: Trials(c, [scales[n] * math.exp(-rates[n] * m) for m in c[:-1]] + [0.0]) for n, c in curves.items()}
    quotas = keep_by_trials(trials, 0.6)
    kept = {name: quota.keep for name, quota in quotas.items()}
    assert sum(kept.values()) == 88

    def loss(a, b, c):
        return sum(scales[n] * math.exp(-rates[n] * m) * (m < curves[n][-1]) for n, m in (("a", a), ("b", b), ("c", c)))

    best = min(loss(a, b, 88 - a - b) for a in range(1, 88) for b in range(max(1, 68 - a), min(88 - a, 101)))
    assert loss(kept["a"], kept["b"], kept["c"]) <= 1.05 * best


def test_a_layer_that_nothing_depends_on_keeps_its_floor():
    trials = {"a": Trials((0, 50, 100), (1.0, 0.5, 0.0)), "b": Trials((0, 100, 300), (0.0, 0.0, 0.0))}
    assert {name: quota.keep for name, quota in keep_by_trials(trials, 0.8).items()} == {"a": 77, "b": 3}


def test_no_bound_no_budget_by_bounds():
    with pytest.raises(UsageError, match="'bound' is not possible"):
        by_scope("bound", {"a": share(1, 2, 2)}, 0.5)


def test_ties_between_layers_are_split_in_proportion():
    alike = {"a": share(1, 10, 30, scale=0.0), "b": share(2, 5, 10, scale=0.0), "c": share(1, 10, 20, scale=0.0, unit=4)}
    found = by_scope("network", alike, 0.6)
    assert {name: quota.keep for name, quota in found.items()} == {"a": 120, "b": 40, "c": 80}


def test_ties_do_not_overrule_scores():
    """Two values only: all of the larger stay, whichever layer they are in, and as many of the smaller as there is room for."""
    shares = {name: share(1, 10, 10, seed=seed) for name, seed in (("a", 1), ("b", 2))}
    shares = {n: Share((s.scores > bar).double(), 1, s.zero) for (n, s), bar in zip(shares.items(), (0.2, 0.7), strict=True)}
    large = {name: int(s.scores.sum()) for name, s in shares.items()}
    room = 150 - sum(large.values())
    found = by_scope("network", shares, 0.25)
    for name, quota in found.items():
        small = 100 - large[name]
        assert quota.keep == pytest.approx(large[name] + room * small / (200 - sum(large.values())), abs=1)


@pytest.mark.parametrize("ratio", [0.97, 0.99, 0.995])
def test_floors_do_not_keep_more_than_was_asked_for(ratio):
    """With a floor of a hundredth of each layer 99.5 % came out as 99 %: twice as many weights as were to stay."""
    wanted = round((1 - ratio) * 40_000)
    shares = {name: share(1, 100, 200, scale=scale) for name, scale in (("a", 1.0), ("b", 100.0))}
    assert sum(q.keep for q in by_scope("network", shares, ratio).values()) == wanted
    trials = {"a": Trials((0, 10_000, 20_000), (1.0, 0.5, 0.0)), "b": Trials((0, 10_000, 20_000), (90.0, 50.0, 0.0))}
    assert sum(q.keep for q in keep_by_trials(trials, ratio).values()) == wanted


def test_what_is_zero_already_takes_no_room_in_a_trial():
    """Half of `a` is zero: at half of everything nothing more has to go, however little `a` matters."""
    trials = {"a": Trials((0, 50), (1.0, 0.0), zeros=50), "b": Trials((0, 50, 100), (9.0, 5.0, 0.0))}
    assert {name: quota.keep for name, quota in keep_by_trials(trials, 0.25).items()} == {"a": 50, "b": 100}
    assert {name: quota.keep for name, quota in keep_by_trials(trials, 0.1).items()} == {"a": 50, "b": 100}
    nothing = {"a": Trials((0, 0), (0.0, 0.0), zeros=100), "b": Trials((0, 50, 100), (9.0, 5.0, 0.0))}
    assert {name: quota.keep for name, quota in keep_by_trials(nothing, 0.6).items()} == {"a": 0, "b": 80}
