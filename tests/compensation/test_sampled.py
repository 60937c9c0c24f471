"""Refits on rows are those on sums of products, for a layer with more inputs than rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import onnxprune
from onnxprune.calibration import repair
from onnxprune.compensation.least_squares import Regression, least_squares, match_moments
from onnxprune.compensation.sampled import Sampled
from onnxprune.testing import tiny_network


def layer(groups, *, inputs=40, out=5, rows=30, seed=0):
    """Rows, targets, weights and bias of a layer that its targets do not quite fit."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn((rows, groups, inputs), generator=rng) + 1
    weight, bias = torch.randn((groups, out, inputs), generator=rng), torch.randn((groups, out), generator=rng)
    targets = torch.einsum("ngi,goi->ngo", x, weight + 0.3 * torch.randn(weight.shape, generator=rng)) + 2
    return x, targets.reshape(rows, -1), weight, bias


def both(groups, rows=30):
    x, targets, weight, bias = layer(groups, rows=rows)
    pairs = []
    for kind in (Regression, Sampled):
        fit, held = kind(), kind()
        for part in (slice(0, 7), slice(7, 2 * rows // 3)):
            fit.add(x[part], targets[part])
        held.add(x[2 * rows // 3 :], targets[2 * rows // 3 :])
        pairs.append((fit, held, weight, bias))
    return pairs


@pytest.mark.parametrize("free_bias", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("solver", [least_squares, match_moments])
def test_the_refit_is_that_of_the_sums(solver, groups, free_bias):
    sums, rows = both(groups)
    wanted, found = solver(*sums, free_bias=free_bias), solver(*rows, free_bias=free_bias)
    assert found.ridge == wanted.ridge
    np.testing.assert_allclose([found.before, found.after], [wanted.before, wanted.after], rtol=1e-3)
    # The sums are in float32, which a weak ridge lets show.
    torch.testing.assert_close(found.weight.double(), wanted.weight.double(), rtol=0, atol=5e-3)
    torch.testing.assert_close(found.bias.double(), wanted.bias.double(), rtol=0, atol=1e-2)
    assert found.after < found.before or not free_bias or solver is match_moments


@pytest.mark.parametrize("free_bias", [True, False])
@pytest.mark.parametrize("share", [1e-3, 1.0])
def test_the_dual_is_the_ridge_solution(share, free_bias):
    x, targets, w0, b0 = layer(2, rows=20)
    data = Sampled()
    data.add(x, targets)
    weight, bias = data.ridge(w0, b0, share, free_bias)
    for group in range(2):
        rows, wanted = x[:, group].double().numpy(), targets.reshape(20, 2, -1)[:, group].double().numpy()
        mean, level = (rows.mean(0), wanted.mean(0)) if free_bias else (np.zeros(40), b0[group].double().numpy())
        covariance = (rows - mean).T @ (rows - mean) / 20
        damping = share * np.trace(covariance) / 40
        old = w0[group].double().numpy()
        new = np.linalg.solve(covariance + damping * np.eye(40), (rows - mean).T @ (wanted - level) / 20 + damping * old.T).T
        np.testing.assert_allclose(weight[group], new, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(bias[group], level - new @ mean, rtol=1e-4, atol=1e-3)


def test_of_many_rows_so_many_stay_whatever_order_they_came_in():
    x, targets, *_ = layer(1, rows=200)
    whole, apart = Sampled(most=20), Sampled(most=20)
    whole.add(x, targets)
    for part in range(0, 200, 25):
        apart.add(x[part : part + 25], targets[part : part + 25])
    assert (whole.count, len(whole.x)) == (200, 20)
    torch.testing.assert_close(whole.x, apart.x, rtol=0, atol=0)
    times = np.zeros(200)
    for seed in range(300):
        some = Sampled(most=20)
        some._rng.manual_seed(seed)
        some.add(torch.arange(200.0).reshape(-1, 1, 1), torch.zeros(200, 1))
        times[some.x.int().flatten().numpy()] += 1
    assert 10 < times.min() < times.max() < 60, "each of 200 rows stays in about 30 of 300 draws"


def test_merging_is_a_sample_of_both():
    x, targets, *_ = layer(1, rows=60)
    first, second = Sampled(most=10), Sampled(most=10)
    first.add(x[:30], targets[:30])
    second._rng.manual_seed(1)
    second.add(x[30:], targets[30:])
    keys = torch.cat([first.keys, second.keys])
    first.merge(second)
    assert (first.count, len(first.x)) == (60, 10)
    assert set(first.keys.tolist()) == set(keys.sort().values[:10].tolist())


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("kind", ["least-squares", "mean"])
def test_a_network_is_repaired_alike(monkeypatch, kind, sequential):
    data = (
        np.random.default_rng(0)
        .standard_normal((64, *onnxprune.inspect(tiny_network()).input_shapes["x"][1:]))
        .astype(np.float32)
    )
    asked = {"ratio": 0.5, "data": data, "latency": False, "repair": kind, "sequential": sequential, "align": 1}
    sums = onnxprune.prune(tiny_network(), **asked).report
    monkeypatch.setattr(repair, "WIDEST", 1)
    rows = onnxprune.prune(tiny_network(), **asked).report

    def of(report):
        return [figures["relative_l2"] for figures in report["deviation"].values()]

    assert of(rows) == pytest.approx(of(sums), rel=0.05)
    assert [r["layer"] for r in rows["repair"]["layers"]] == [r["layer"] for r in sums["repair"]["layers"]]
