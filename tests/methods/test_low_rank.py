"""svd against a slow reference: no other matrix of that rank is nearer on the data, errors are what the energies say."""

from __future__ import annotations

import pytest
import torch

from onnxprune.contract import RankView
from onnxprune.methods import create, low_rank
from onnxprune.methods.low_rank import LayerMoments

SHAPES = [(7, 12), (12, 7), (8, 8)]


@pytest.fixture(autouse=True)
def undamped(monkeypatch):
    """The formulas without what guards them against scarce data."""
    monkeypatch.setattr(low_rank, "DAMPING", 1e-9)
    monkeypatch.setattr(LayerMoments, "scarcity", 0.0)


def layer(out, inputs, *, free=True, seed=0):
    """A view, the inputs that were counted, and the matrix in double precision."""
    rng = torch.Generator().manual_seed(seed)
    matrix = torch.randn((1, out, inputs), generator=rng)
    mix = torch.randn((inputs, inputs), generator=rng) * 0.6 ** torch.arange(inputs)
    x = (torch.randn((200, inputs), generator=rng) @ mix.T + 1).relu()
    counted = LayerMoments(matrix)
    for part in x.split(60):
        apart = LayerMoments(matrix)
        apart.add(part[:, None])
        counted.merge(apart)
    view = RankView("layer", matrix, torch.zeros(1, out), statistics={LayerMoments: counted}, free_bias=free)
    return view, x.double(), matrix[0].double()


def error(view, x, matrix, found):
    """mean ||(W - U V) x - shift||^2, sample by sample."""
    total = 0.0
    for row in x:
        lost = (matrix - found.matrix[0]) @ row - (0 if found.shift is None else found.shift)
        total += float(lost @ lost)
    return total / len(x)


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_at_every_rank_is_what_the_energies_say(shape, free):
    view, x, matrix = layer(*shape, free=free)
    method = create("svd")
    energies = method.energies(view)
    for rank in range(1, view.full + 1):
        found = method.factor(view, rank)
        found.check(view, rank)
        assert error(view, x, matrix, found) == pytest.approx(float(energies[rank:].sum()), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_alternating_least_squares_finds_nothing_nearer(shape, free):
    """The reference: from random starts, U and V in turns, each the least-squares solution given the other."""
    view, x, matrix = layer(*shape, free=free)
    rank = 3
    best = error(view, x, matrix, create("svd").factor(view, rank))
    moved = x - x.mean(0) if free else x
    target = moved @ matrix.T
    rng = torch.Generator().manual_seed(5)
    for _ in range(3):
        first = torch.randn((rank, shape[1]), generator=rng, dtype=torch.float64)
        for _ in range(60):
            second = torch.linalg.lstsq(moved @ first.T, target).solution.T
            # min over V of ||X V^T U^T - Y||: V^T = X^+ Y (U^T)^+
            first = (torch.linalg.pinv(moved) @ target @ torch.linalg.pinv(second.T)).T
        other = float(((moved @ first.T @ second.T - target) ** 2).sum(1).mean())
        assert best <= other * (1 + 1e-3)
        assert other <= best * 1.05


@pytest.mark.parametrize("shape", SHAPES)
def test_without_data_it_is_the_svd_of_the_weights(shape):
    view, _, matrix = layer(*shape)
    method = create("svd", data=False)
    assert method.needs == ()
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    assert method.energies(view).tolist() == pytest.approx((values**2).tolist(), rel=1e-6)
    for rank in (1, 4, view.full):
        found = method.factor(view, rank)
        assert found.shift is None
        expected = left[:, :rank] * values[:rank] @ right[:rank]
        assert float((found.matrix[0] - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_inputs_that_no_sample_showed_keep_their_weights_at_full_rank(shape):
    view, _, matrix = layer(*shape)
    blank = LayerMoments(view.matrix)
    rows = torch.zeros((50, 1, shape[1]))
    rows[:, :, :2] = torch.randn((50, 1, 2), generator=torch.Generator().manual_seed(0))
    blank.add(rows)
    found = create("svd").factor(RankView("l", view.matrix, view.bias, statistics={LayerMoments: blank}), view.full)
    assert float((found.matrix[0] - matrix).abs().max()) < 1e-4


@pytest.mark.parametrize("count", [6, 60, 6000])
def test_few_samples_are_not_believed(count, monkeypatch):
    """Of 6 samples a rank of 6 explains all; of inputs that are all alike it explains 6 / 40."""
    monkeypatch.undo()
    rng = torch.Generator().manual_seed(0)
    matrix = torch.linalg.qr(torch.randn((40, 40), generator=rng)).Q[None]
    counted = LayerMoments(matrix)
    counted.add(torch.randn((count, 1, 40), generator=rng))
    view = RankView("l", matrix, torch.zeros(1, 40), statistics={LayerMoments: counted})
    energies = create("svd").energies(view)
    assert 6 / 40 <= float(energies[:6].sum() / energies.sum()) < 0.4


@pytest.mark.parametrize("shape", SHAPES)
def test_the_statistic_says_what_it_holds(shape):
    out, inputs = shape
    view, x, matrix = layer(*shape)
    counted = view.statistic(LayerMoments)
    seen = x @ matrix.T if out < inputs else x
    assert counted.of_outputs == (out < inputs)
    assert counted.count == 200
    assert torch.allclose(counted.mean, seen.mean(0), atol=1e-4)
    assert torch.allclose(counted.second(centred=True), torch.cov(seen.T, correction=0), rtol=1e-3, atol=1e-3)
    assert counted.input_energy(centred=False) == pytest.approx(float((x**2).mean()), rel=1e-4)
    assert counted.bytes(1, out, inputs) >= 8 * min(shape) ** 2
