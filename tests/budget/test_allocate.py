"""Budgets: exact counts, targets that are never exceeded, the auto budget against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxprune.budget.alignment import Choices
from onnxprune.budget.allocate import BUDGETS, Candidate, Resource, by_ratio, by_target, resource
from onnxprune.errors import UnknownNameError, UsageError
from onnxprune.graph import find, prepare
from onnxprune.network import Axis, Term
from onnxprune.testing import tiny_network

SIZES = (10, 20, 33)


def counts(size, block=1, lowest=1):
    return (size, *(n for n in range(size // block * block, lowest - 1, -block) if n < size))


def candidates(sizes=SIZES, block=1, lowest=1, seed=0, loss="convex"):
    rng = np.random.default_rng(seed)
    found = []
    for i, size in enumerate(sizes):
        steps = np.sort(rng.exponential(size=size))  # losses of removing one more channel, growing: a convex curve
        if loss == "any":
            rng.shuffle(steps)
        curve = np.concatenate([[0], np.cumsum(steps)])[::-1].copy()
        some = Choices(f"g{i}", size, block, counts(size, block, lowest))
        found.append(Candidate(some, rng.exponential(size=size), None if loss is None else curve))
    return found


def chain(sizes=SIZES):
    """MACs of 3 -> g0 -> g1 -> g2 -> 5: products of neighbours, and a part that nothing changes."""
    ends = [Axis(3, {}), *(Axis(0, {f"g{i}": 1}) for i in range(len(sizes))), Axis(5, {})]
    terms = [(1, Term(f"l{i}", 9, pair)) for i, pair in enumerate(itertools.pairwise(ends))] + [(1, Term("rest", 50, ()))]
    return Resource({f"g{i}": size for i, size in enumerate(sizes)}, terms)


def total_loss(found, kept):
    return sum(float(c.loss[kept[c.name]]) for c in found)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1 / 3, 0.5, 0.77, 0.9])
def test_a_ratio_is_met_exactly_where_every_count_is_allowed(budget, ratio):
    kept = by_ratio(budget, candidates(), ratio)
    assert sum(SIZES) - sum(kept.values()) == pytest.approx(sum(SIZES) * ratio, abs=0.5)


def test_ratio_zero_keeps_everything():
    for budget in BUDGETS:
        assert by_ratio(budget, candidates(block=8), 0.0) == {"g0": 10, "g1": 20, "g2": 33}


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_uniform_takes_the_same_share_of_every_group(ratio):
    kept = by_ratio("uniform", candidates(), ratio)
    for i, size in enumerate(SIZES):
        assert abs(kept[f"g{i}"] - size * (1 - ratio)) <= 1


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_global_removes_the_lowest_normalised_scores(ratio):
    found = candidates(seed=3)
    kept = by_ratio("global", found, ratio)
    everything = sorted((s / c.scores.mean(), c.name) for c in found for s in c.scores)
    gone = [name for _, name in everything[: round(ratio * sum(SIZES))]]
    expected = {c.name: c.choices.size - gone.count(c.name) for c in found}
    if min(expected.values()) >= 1:  # no floor in the way
        assert kept == expected


def test_global_treats_groups_alike_whose_channels_are_all_alike():
    """Ties over the whole network must not empty the first groups: random and uniform methods score all channels the same."""
    for value in (0.0, 1.0):
        found = [Candidate(c.choices, np.full(c.choices.size, value), None) for c in candidates((20, 20, 40))]
        assert by_ratio("global", found, 0.5) == {"g0": 10, "g1": 10, "g2": 20}


def test_floors_hold_whatever_the_budget_says():
    for budget in BUDGETS:
        found = candidates(lowest=4, seed=1)
        # the scores and losses of one group are so small that it would go first
        found[2] = Candidate(found[2].choices, found[2].scores * 1e-9 + np.linspace(0, 1e-6, 33), found[2].loss * 1e-9)
        kept = by_ratio(budget, found, 0.6)
        assert all(4 <= kept[c.name] <= c.choices.size for c in found)
        assert by_ratio(budget, found, 0.99) == {"g0": 4, "g1": 4, "g2": 4}


def test_auto_without_losses_is_uniform():
    assert by_ratio("auto", candidates(loss=None), 0.4) == by_ratio("uniform", candidates(), 0.4)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.75])
def test_auto_is_the_optimum_by_brute_force_for_convex_losses(seed, ratio):
    found = candidates((6, 9, 12), seed=seed)
    kept = by_ratio("auto", found, ratio)
    left = sum(kept.values())
    assert left == pytest.approx(27 * (1 - ratio), abs=0.5)
    best = min(
        total_loss(found, dict(zip(kept, option, strict=True)))
        for option in itertools.product(*(c.choices.counts for c in found))
        if sum(option) == left
    )
    assert total_loss(found, kept) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(8))
def test_auto_is_within_a_step_of_the_optimum_at_the_same_macs(seed):
    found, macs = candidates((6, 9, 12), seed=seed), chain((6, 9, 12))
    kept = by_target("auto", found, macs, 0.5)
    assert macs(kept) <= 0.5 + 1e-9
    options = [dict(zip(kept, o, strict=True)) for o in itertools.product(*(c.choices.counts for c in found))]
    best = min(total_loss(found, o) for o in options if macs(o) <= 0.5)
    dearest = max(float(c.loss[n - 1] - c.loss[n]) for c in found for n in range(max(kept[c.name], 2), c.choices.size + 1))
    assert best <= total_loss(found, kept) + 1e-9
    assert total_loss(found, kept) <= best + dearest


def greedy_by_the_book(found, macs, share):
    """Every price computed anew for every step; nothing given back."""
    kept = {c.name: c.choices.size for c in found}
    while macs(kept) > share:
        prices = {
            c.name: float(c.loss[kept[c.name] - 1] - c.loss[kept[c.name]]) / macs.saved(kept, c.name, kept[c.name] - 1)
            for c in found
            if kept[c.name] > 1
        }
        kept[min(prices, key=lambda name: prices[name])] -= 1
    return kept


@pytest.mark.parametrize("seed", range(8))
def test_prices_follow_what_the_neighbours_have_lost(seed):
    found, macs = candidates(seed=seed), chain()
    plain = greedy_by_the_book(found, macs, 0.4)
    kept = by_target("auto", found, macs, 0.4)
    assert all(plain[name] <= kept[name] <= plain[name] + 2 for name in plain)
    assert total_loss(found, kept) <= total_loss(found, plain)


def test_a_dear_first_step_does_not_hide_cheap_ones_behind_it():
    """The losses of one group are not convex: its hull counts."""
    curve = np.array([9.0, 2.2, 2.1, 2.0, 2.0, 0.0])  # removing the first costs 2, the next three next to nothing
    dear = Candidate(Choices("dear", 5, 1, (5, 4, 3, 2, 1)), np.ones(5), curve)
    flat = Candidate(Choices("flat", 5, 1, (5, 4, 3, 2, 1)), np.ones(5), np.array([9.0, 4.0, 3.0, 2.0, 1.0, 0.0]))
    kept = by_ratio("auto", [dear, flat], 0.4)
    assert kept == {"dear": 1, "flat": 5}


@pytest.mark.parametrize("budget", ["auto", "global"])
def test_a_wide_channel_counts_for_what_it_is_wide(budget):
    """4 heads 24 wide and 96 units: half of the 192 channels goes, and 3 of the heads, which matter least, are 72 of them."""
    curve = lambda size, price: price * np.arange(size, -1.0, -1.0)  # noqa: E731
    heads = Candidate(Choices("heads", 4, 1, (4, 3, 2, 1), 24), np.array([1e-6, 1e-6, 1e-6, 4.0]), curve(4, 1e-6))
    units = Candidate(Choices("units", 96, 1, tuple(range(96, 0, -1))), np.ones(96), curve(96, 1.0))
    assert by_ratio(budget, [heads, units], 0.5) == {"heads": 1, "units": 72}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("block", [1, 4])
def test_a_target_is_met_and_never_exceeded(budget, share, block):
    found, macs = candidates((16, 24, 40), block, block), chain((16, 24, 40))
    kept = by_target(budget, found, macs, share)
    assert macs(kept) <= share + 1e-9
    # Not much less than was asked for is left: one more step back in every group would be too much.
    if budget == "auto":
        for c in found:
            at = c.choices.counts.index(kept[c.name])
            if at:
                assert macs(kept | {c.name: c.choices.counts[at - 1]}) > share
    else:
        assert macs(kept) > share - 0.15


def test_an_unreachable_target_says_what_can_be_reached():
    found, macs = candidates((16, 24, 40), 8, 8), chain((16, 24, 40))
    least = macs({c.name: 8 for c in found})
    for budget in BUDGETS:
        with pytest.raises(UsageError, match=f"0.01 cannot be reached: {least:.3f} is left") as caught:
            by_target(budget, found, macs, 0.01)
        assert caught.value.remedy
        assert by_target(budget, found, macs, least + 1e-9) == {c.name: 8 for c in found}


def test_an_unknown_budget_is_answered_with_what_was_meant():
    with pytest.raises(UnknownNameError, match="did you mean 'uniform'"):
        by_ratio("unifrom", candidates(), 0.5)


# --- resources


@pytest.fixture(scope="module")
def network():
    return find(prepare(tiny_network(), {"x": (1, 3, 8, 8)})[0])


@pytest.mark.parametrize("kind", ["macs", "params", "bytes"])
def test_a_resource_is_what_the_network_says_it_costs(network, kind):
    one, rng = resource(network, kind), np.random.default_rng(0)
    field = {"macs": "macs", "params": "parameters", "bytes": "bytes"}[kind]
    for _ in range(5):
        kept = {g.name: int(rng.integers(1, g.size + 1)) for g in network.groups}
        expected = getattr(network.cost(kept), field) / getattr(network.cost(), field)
        assert one(kept) == pytest.approx(expected)
        for name in kept:
            new = kept | {name: 1}
            assert one.saved(kept, name, 1) == one.amount(kept) - one.amount(new)


def test_parameters_and_macs_of_the_tiny_network_by_hand(network):
    assert network.cost().macs == 8 * 27 * 64 + 12 * 72 * 16 + 16 * 12 + 5 * 16
    assert network.cost().parameters == 8 * 27 + 12 * 72 + 16 * 12 + 5 * 16 + 4 * (8 + 12 + 16)


def test_channels_are_a_resource_too(network):
    sizes = {g.name: g.size for g in network.groups}
    assert resource(network, "channels")({n: s // 2 for n, s in sizes.items()}) == pytest.approx(0.5)


def test_savings_change_only_for_groups_that_share_a_term():
    macs = chain()
    assert [macs.near(f"g{i}") for i in range(3)] == [{"g0", "g1"}, {"g0", "g1", "g2"}, {"g1", "g2"}]


def test_biases_that_a_repair_adds_count_but_not_in_the_whole(network):
    """Every layer of the tiny network is without one."""
    plain, repaired = resource(network, "params"), resource(network, "params", new_biases=True)
    kept = {g.name: g.size // 2 for g in network.groups}
    assert repaired.amount(kept) - plain.amount(kept) == 4 + 6 + 8 + 5
    assert repaired.whole == plain.whole
    assert resource(network, "bytes", new_biases=True).amount(kept) == 4 * repaired.amount(kept)


def test_an_unknown_resource():
    with pytest.raises(UnknownNameError, match="no target 'mac'"):
        resource(find(prepare(tiny_network(), {"x": (1, 3, 8, 8)})[0]), "mac")
