"""The refit on a mask: against a plain solver row by row, zeros stay, conjugate gradients come to the same."""

from __future__ import annotations

import pytest
import torch

from onnxprune import quadratic
from onnxprune.compensation.least_squares import Regression, least_squares
from onnxprune.compensation.masked import masked_least_squares
from onnxprune.quadratic import Dense, conjugate_gradients


def case(groups=1, out=5, inputs=12, rows=400, kept=0.5, seed=0):
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn((groups, inputs, inputs), generator=rng)
    x = torch.einsum("ngi,gij->ngj", torch.randn((rows, groups, inputs), generator=rng), mixing) + 0.5
    weight, bias = torch.randn((groups, out, inputs), generator=rng), torch.randn((groups, out), generator=rng)
    target = (torch.einsum("ngi,goi->ngo", x, weight) + bias).flatten(1)
    mask = torch.rand((groups, out, inputs), generator=rng) < kept
    return x, target, weight * mask, bias, mask


def regressions(x, target, held=0):
    fit, rest = Regression(), Regression()
    fit.add(x[held:], target[held:])
    if held:
        rest.add(x[:held], target[:held])
    return fit, rest


@pytest.mark.parametrize("groups", [1, 3])
def test_each_row_is_the_best_on_its_own_inputs(groups):
    x, target, weight, bias, mask = case(groups=groups, rows=4000)
    found = masked_least_squares(*regressions(x, target), weight, bias, free_bias=True)
    assert bool((found.weight[~mask] == 0).all())
    assert found.after < found.before
    for g in range(groups):
        for row in range(weight.shape[1]):
            keep = mask[g, row].nonzero()[:, 0]
            wide = torch.cat([x[:, g, keep], torch.ones(len(x), 1)], 1).double()
            best = torch.linalg.lstsq(wide, target[:, g * weight.shape[1] + row, None].double()).solution[:, 0]
            error = (wide @ best - target[:, g * weight.shape[1] + row]).pow(2).mean()
            mine = wide[:, :-1] @ found.weight[g, row, keep] + found.bias[g, row]
            assert (mine - target[:, g * weight.shape[1] + row]).pow(2).mean() <= error * 1.01 + 1e-6


def test_a_full_mask_is_plain_least_squares():
    x, target, weight, bias, _ = case(kept=2.0)
    weight = weight + 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    plain = least_squares(*regressions(x, target), weight, bias, free_bias=True)
    found = masked_least_squares(*regressions(x, target), weight, bias, free_bias=True)
    assert torch.allclose(found.weight, plain.weight, atol=1e-6)


def test_conjugate_gradients_come_to_the_exact_solution(monkeypatch):
    x, target, weight, bias, mask = case(out=7, inputs=20, rows=2000)
    exact = masked_least_squares(*regressions(x, target, held=400), weight, bias, free_bias=True)
    monkeypatch.setattr(quadratic, "EXACT", 0)
    found = masked_least_squares(*regressions(x, target, held=400), weight, bias, free_bias=True)
    assert bool((found.weight[~mask] == 0).all())
    assert torch.allclose(found.weight, exact.weight, atol=2e-2)
    assert found.after == pytest.approx(exact.after, rel=1e-3)


def test_every_step_of_conjugate_gradients_lowers_the_loss():
    x, _, weight, _, mask = case(out=4, inputs=15)
    system = (x[:, 0].T @ x[:, 0]).double() / len(x)
    right = weight[0].double() @ system + 0.3

    def loss(value):
        return float((value @ system * value).sum() / 2 - (right * value).sum())

    found = [conjugate_gradients(Dense(system[None]), right[None], weight, mask, 0.0, steps)[0] for steps in range(8)]
    losses = [loss(value) for value in found]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_without_a_place_for_a_bias_it_stays():
    x, target, weight, bias, _ = case()
    found = masked_least_squares(*regressions(x, target), weight, bias, free_bias=False)
    assert torch.equal(found.bias, bias.double())
    assert found.after <= found.before


def test_a_row_that_lost_everything_takes_the_mean_as_its_bias():
    x, target, weight, bias, _ = case()
    weight[0, 2] = 0
    found = masked_least_squares(*regressions(x, target), weight, bias, free_bias=True)
    assert bool((found.weight[0, 2] == 0).all())
    assert float(found.bias[0, 2]) == pytest.approx(float(target[:, 2].mean()), abs=1e-4)
