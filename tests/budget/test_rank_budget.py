"""Ranks: the uniform formula, the spectra's choice against brute force, targets."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from onnxprune.budget.ranks import Spectrum, by_spectrum, by_target, uniform
from onnxprune.errors import UsageError


def spectrum(name, out, inputs, decay):
    return Spectrum(name, out, inputs, [decay**i for i in range(min(out, inputs))])


def cost(spectra, ranks):
    return sum(s.whole if ranks[s.name] is None else ranks[s.name] * s.per_rank for s in spectra)


def loss(spectra, ranks):
    return sum(s.loss(ranks[s.name]) for s in spectra)


@pytest.mark.parametrize("ratio", [0.1, 0.37, 0.5, 0.9, 0.999])
def test_uniform_is_the_formula(ratio):
    for out, inputs in ((300, 784), (16, 27), (20, 20)):
        (rank,) = uniform([spectrum("a", out, inputs, 0.9)], ratio).values()
        assert rank == max(int((1 - ratio) * out * inputs / (out + inputs)), 1)
        assert rank * (out + inputs) < out * inputs


def test_nothing_goes_at_a_ratio_of_zero_and_where_rank_1_is_no_smaller():
    layers = [spectrum("a", 30, 30, 0.5), spectrum("b", 1, 9, 0.5)]
    for spread in (uniform, by_spectrum):
        assert spread(layers, 0.0) == {"a": None, "b": None}
        assert spread(layers, 0.5)["b"] is None


@pytest.mark.parametrize("seed", range(12))
def test_the_spectra_choose_what_brute_force_does_or_nearly(seed):
    """Within one step of the hull of the best: the last one may not fit."""
    rng = torch.Generator().manual_seed(seed)
    layers = []
    for number in range(3):
        out, inputs = (int(torch.randint(4, 9, (1,), generator=rng)) for _ in range(2))
        energies = torch.rand(min(out, inputs), generator=rng).sort(descending=True).values ** 2
        layers.append(Spectrum(str(number), out, inputs, energies.tolist()))
    for ratio in (0.2, 0.4):
        room = (1 - ratio) * sum(s.whole for s in layers)
        choices = [[None, *range(1, s.highest + 1)] for s in layers]
        all_ranks = [dict(zip("012", ranks, strict=True)) for ranks in product(*choices)]
        fitting = [ranks for ranks in all_ranks if cost(layers, ranks) <= room]
        best = min(loss(layers, ranks) for ranks in fitting)
        found = by_spectrum(layers, ratio)
        assert cost(layers, found) <= room
        largest = max(gain * price for s in layers for gain, price, _ in s.steps)
        assert loss(layers, found) <= best + largest


def test_a_flat_layer_stays_whole_and_a_steep_one_pays():
    layers = [spectrum("flat", 20, 20, 1.0), spectrum("steep", 20, 20, 0.3)]
    found = by_spectrum(layers, 0.3)
    assert found["flat"] is None
    assert 1 < found["steep"] < 8


def test_more_goes_at_a_higher_ratio():
    layers = [spectrum("a", 40, 30, 0.8), spectrum("b", 25, 60, 0.9), spectrum("c", 50, 50, 0.95)]
    costs = [cost(layers, by_spectrum(layers, ratio / 20)) for ratio in range(20)]
    assert costs == sorted(costs, reverse=True)
    whole = sum(s.whole for s in layers)
    for ratio in range(1, 18):
        assert 0.9 * (1 - ratio / 20) * whole <= costs[ratio] <= (1 - ratio / 20) * whole


def test_what_cannot_be_met_leaves_rank_1():
    assert by_spectrum([spectrum("a", 20, 20, 0.9), spectrum("b", 9, 9, 0.9)], 0.99) == {"a": 1, "b": 1}


def test_where_weights_cost_more_they_go_first():
    dear = Spectrum("dear", 20, 20, [0.9**i for i in range(20)], price=50)
    found = by_spectrum([dear, spectrum("cheap", 20, 20, 0.9)], 0.4)
    assert found["cheap"] is None
    assert found["dear"] < 7
    assert uniform([dear], 0.5) == uniform([spectrum("dear", 20, 20, 0.9)], 0.5)


def test_a_layer_whose_errors_matter_more_keeps_more():
    """Of equal spectra the gain decides, and energies count as they are, not as shares of their layer's."""
    alike = [spectrum("a", 40, 40, 0.8), spectrum("b", 40, 40, 0.8)]
    told = [replace(alike[0], gain=10.0), replace(alike[1], gain=0.1)]
    found = by_spectrum(told, 0.5)
    assert (found["a"] or 40) > 2 * found["b"]
    loud = [replace(alike[0], energies=[1000 * e for e in alike[0].energies], gain=1.0), replace(alike[1], gain=1.0)]
    assert (by_spectrum(loud, 0.5)["a"] or 40) > 2 * by_spectrum(loud, 0.5)["b"]
    assert by_spectrum(alike, 0.5)["a"] == by_spectrum(alike, 0.5)["b"]


def test_a_dead_layer_goes_down_to_rank_1():
    dead = Spectrum("dead", 20, 20, [0.0] * 20)
    assert by_spectrum([dead, spectrum("a", 20, 20, 0.9)], 0.3)["dead"] == 1


def test_a_target_is_met_by_the_mildest_ratio():
    layers = [spectrum("a", 40, 30, 0.8), spectrum("b", 25, 60, 0.9)]
    whole = sum(s.whole for s in layers)

    def left(ranks):
        return cost(layers, ranks) / whole

    found = by_target(lambda ratio: uniform(layers, ratio), left, 0.5)
    assert 0.45 < left(found) <= 0.5
    assert by_target(lambda ratio: uniform(layers, ratio), left, 1.0) == {"a": None, "b": None}
    with pytest.raises(UsageError, match=r"with every layer at rank 1 0\.\d+ is left"):
        by_target(lambda ratio: uniform(layers, ratio), left, 0.01)
