"""Random pruning and pruning of 2-D filters: every unit alike, exact counts, draws with replacement as the paper makes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from onnx import numpy_helper

import onnxprune
from onnxprune.contract import LayerView, Quota
from onnxprune.errors import UsageError
from onnxprune.methods import create
from onnxprune.methods.probabilistic import draws_for
from onnxprune.testing import check_method, tiny_network

QUIET = {"latency": False, "samples": 32, "batch": 8, "device": "cpu", "repair": "none"}


def view(*shape, kernel=1, seed=0):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return LayerView("layer", matrix, torch.zeros(shape[:2]), kernel)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def decided(method, layer, keep, seed=0, unit=1):
    return method.decide(layer, method.score(layer), Quota(keep, unit), seeded(seed)).keep


def arrays(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("name", ["random", "random-kernel", "magnitude-kernel"])
def test_they_keep_the_contract(name):
    check_method(type(create(name)))


@pytest.mark.parametrize("name", ["random", "random-kernel"])
def test_draws_with_replacement_keep_the_contract(name):
    check_method(type(create(name)), replace=True)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(("name", "unit"), [("random", 1), ("random-kernel", 9)])
def test_every_unit_goes_as_often_as_any_other(name, unit, replace):
    layer, method = view(1, 4, 6 * unit, kernel=unit), create(name, replace=replace)
    runs = 3000
    gone = torch.stack([~decided(method, layer, 16, seed, unit) for seed in range(runs)]).float()
    share = gone.mean(0)
    expected = float(share.mean())
    assert (share - expected).abs().max() < 5 * math.sqrt(expected * (1 - expected) / runs)
    if not replace:
        assert expected == pytest.approx(8 / 24)


def test_draws_for_hit_the_wanted_number_in_expectation():
    """Against the sum over units of the chance to be hit, and by throwing."""
    for units, wanted in [(10, 3), (50, 49), (200, 20)]:
        draws = draws_for(wanted, units)
        assert sum(1 - (1 - 1 / units) ** draws for _ in range(units)) == pytest.approx(wanted)
    rng = np.random.default_rng(0)
    seen = [len(set(rng.integers(0, 40, round(draws_for(20, 40))))) for _ in range(4000)]
    assert np.mean(seen) == pytest.approx(20, abs=0.3)
    assert draws_for(7, 7) == math.inf
    assert draws_for(0, 7) == 0


def test_with_replacement_the_count_is_that_of_the_draws_and_never_less_than_asked():
    """Brute force: draw as often, count the distinct ones; where too few were hit, the wanted number."""
    layer, method = view(1, 10, 20), create("random", replace=True)
    counts = np.array([int((~decided(method, layer, 120, seed)).sum()) for seed in range(2000)])
    rng = np.random.default_rng(1)
    draws = round(draws_for(80, 200))
    brute = np.array([max(80, len(set(rng.integers(0, 200, draws)))) for _ in range(2000)])
    assert counts.min() == 80
    assert counts.mean() == pytest.approx(brute.mean(), abs=5 * brute.std() / math.sqrt(1000))
    assert counts.std() == pytest.approx(brute.std(), rel=0.15)


def test_zeros_that_were_there_count_as_gone_and_are_not_drawn():
    layer = view(1, 10, 20)
    layer.matrix[0, :4] = 0.0
    for replace in (False, True):
        keep = decided(create("random", replace=replace), layer, 120)
        assert not keep[0, :4].any()
    counts = [int(decided(create("random", replace=True), layer, 100, seed).sum()) for seed in range(300)]
    assert max(counts) == 100
    assert np.mean(counts) > 95


def test_two_dimensional_filters_with_the_smallest_norms_go():
    """Loops over F[s, t] as appendix C.2 has it."""
    out, channels, kernel = 5, 7, 9
    layer, method = view(1, out, channels * kernel, kernel=kernel), create("magnitude-kernel")
    norms = {}
    for s in range(out):
        for t in range(channels):
            norms[s, t] = sum(abs(float(w)) for w in layer.matrix[0, s, t * kernel : (t + 1) * kernel])
    gone = sorted(norms, key=norms.get)[:12]
    keep = decided(method, layer, 35 - 12, unit=kernel)
    for s, t in norms:
        block = keep[0, s, t * kernel : (t + 1) * kernel]
        assert bool(block.all()) != ((s, t) in gone)
        assert bool(block.any()) == bool(block.all())


@pytest.mark.parametrize("budget", ["uniform", "global"])
@pytest.mark.parametrize("name", ["random-kernel", "magnitude-kernel"])
def test_filters_go_whole_in_the_file_too(name, budget):
    result = onnxprune.prune(tiny_network(), name, 0.5, budget=budget, **QUIET)
    total = 0
    for weight in ("w1", "w2"):
        per_filter = (arrays(result.model)[weight] == 0).reshape(-1, 9).sum(1)
        assert set(per_filter.tolist()) == {0, 9}
        total += int(per_filter.sum())
    assert total == (24 + 96) * 9 / 2
    assert np.array_equal(arrays(result.model)["w3"], arrays(tiny_network())["w3"])


def test_magnitude_over_the_network_takes_the_smallest_filters_whatever_their_layer():
    before = arrays(tiny_network())
    after = arrays(onnxprune.prune(tiny_network(), "magnitude-kernel", 0.4, budget="global", **QUIET).model)
    norms = np.concatenate([np.abs(before[w]).reshape(-1, 9).sum(1) for w in ("w1", "w2")])
    gone = np.concatenate([(after[w] == 0).reshape(-1, 9).all(1) for w in ("w1", "w2")])
    assert gone.sum() == 48
    assert norms[gone].max() <= norms[~gone].min()


def test_a_random_choice_over_the_network_takes_the_same_share_of_every_layer():
    rows = onnxprune.prune(tiny_network(), "random", 0.5, budget="global", **QUIET).report["weights"]
    assert [row["zeros"] / row["weights"] for row in rows] == pytest.approx([0.5] * 4, abs=0.02)
    assert sum(row["zeros"] for row in rows) == round(sum(row["weights"] for row in rows) / 2)


def test_seeds_choose_differently():
    first, second = (arrays(onnxprune.prune(tiny_network(), "random-kernel", 0.5, seed=s, **QUIET).model) for s in (0, 1))
    assert not np.array_equal(first["w2"], second["w2"])


def test_the_share_that_went_is_reported_exactly():
    result = onnxprune.prune(tiny_network(), "random", 0.5, options={"replace": True}, **QUIET)
    for row in result.report["weights"]:
        assert row["zeros"] == int((arrays(result.model)[row["name"]] == 0).sum()) >= row["weights"] // 2


def test_what_draws_with_replacement_cannot_do_is_refused():
    with pytest.raises(UsageError, match="leave out replace"):
        onnxprune.prune(tiny_network(), "random", 0.5, budget="row", options={"replace": True}, **QUIET)
    with pytest.raises(UsageError, match="give true or false"):
        create("random", replace=2)
    with pytest.raises(UsageError, match="give true or false"):
        create("random", replace="yes")
