"""The quadratic form of a layer: both ways to hold it against plain linear algebra, sweeps, solvers, refits on masks."""

from __future__ import annotations

import pytest
import torch

from onnxprune import quadratic as module
from onnxprune.quadratic import Dense, Thin, conjugate_gradients, fit_on_mask

GROUPS, OUT, INPUTS, ROWS = 2, 4, 9, 6


def forms(ridge=0.3):
    """The same H held both ways, and in float64."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn((GROUPS, ROWS, INPUTS), generator=rng)
    own = ridge * (0.5 + torch.rand((GROUPS, INPUTS), generator=rng))
    h = x.double().transpose(1, 2) @ x.double() + torch.diag_embed(own.double())
    weights = torch.randn((GROUPS, OUT, INPUTS), generator=rng)
    return {"dense": Dense(h), "thin": Thin(x, own)}, h, weights


@pytest.mark.parametrize("kind", ["dense", "thin"])
def test_products_solutions_and_diagonals_are_those_of_the_matrix(kind):
    found, h, weights = forms()
    form, w = found[kind], weights.double()
    root = h.diagonal(dim1=1, dim2=2).sqrt()
    order = torch.randperm(INPUTS, generator=torch.Generator().manual_seed(1))
    shifted = h + 0.7 * torch.eye(INPUTS)
    assert torch.allclose(form.times(weights).double(), w @ h, atol=1e-4)
    assert torch.allclose(form.solver(0.7)(weights.to(form.dtype)).double(), w @ torch.linalg.inv(shifted), atol=1e-5)
    assert torch.allclose(form.diagonal.double(), h.diagonal(dim1=1, dim2=2), atol=1e-5)
    assert torch.allclose(form.inverse_diagonal(), torch.linalg.inv(h).diagonal(dim1=1, dim2=2), rtol=1e-5)
    assert torch.allclose(form.normal().times(weights).double(), w @ (h / root[:, :, None] / root[:, None]), atol=1e-4)
    assert torch.allclose(form.ordered(order).times(weights).double(), w @ h[:, order][:, :, order], atol=1e-4)
    where = torch.tensor([1, 4, 5])
    assert torch.allclose(form.block(1, where), h[1][where][:, where], atol=1e-5)
    assert form.error(weights) == pytest.approx(float(torch.einsum("goi,gij,goj->", w, h, w)), rel=1e-5)


@pytest.mark.parametrize("kind", ["dense", "thin"])
def test_without_a_ridge_the_inverse_is_the_pseudo_inverse(kind):
    x = torch.randn((1, 4, 9), generator=torch.Generator().manual_seed(2)).double()
    h = x.transpose(1, 2) @ x
    form = Dense(h) if kind == "dense" else Thin(x, torch.zeros(1, 9))
    assert torch.allclose(form.inverse_diagonal(), torch.linalg.pinv(h[0]).diagonal()[None], rtol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "thin"])
@pytest.mark.parametrize("width", [1, 4, 9])
def test_a_sweep_is_brain_surgery_in_one_order(kind, width):
    """Every weight of odd number goes; each removal updates all columns behind it by the inverse of what is left."""
    found, h, weights = forms()
    sweep, result = found[kind].sweep(weights), torch.zeros(GROUPS, OUT, INPUTS, dtype=torch.float64)
    for low in range(0, INPUTS, width):
        block, upper = (t.double() for t in sweep.block(low, min(low + width, INPUTS)))
        errors = torch.zeros_like(block)
        for j in range(block.shape[2]):
            goes = (low + j) % 2 == 1
            errors[:, :, j] = block[:, :, j] / upper[:, None, j, j] if goes else 0.0
            result[:, :, low + j] = 0.0 if goes else block[:, :, j]
            block = block - errors[:, :, j, None] * upper[:, None, j]
        sweep.push(errors.to(weights) if kind == "thin" else errors)
    expected = weights.double()
    for column in range(1, INPUTS, 2):
        rest = torch.linalg.inv(h[:, column:, column:])
        step = expected[:, :, column] / rest[:, None, 0, 0]
        expected[:, :, column:] -= step[..., None] * rest[:, None, 0]
    assert torch.allclose(result, expected, atol=1e-4)


def test_rows_are_fitted_on_their_own_inputs_and_alike_ones_once(monkeypatch):
    found, h, weights = forms()
    mask = torch.rand((GROUPS, OUT, INPUTS), generator=torch.Generator().manual_seed(3)) < 0.6
    mask[0, 2], mask[0, 0], mask[1, 3] = mask[0, 1], mask[0, 1], False
    factored = []
    plain = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda m: factored.append(m) or plain(m))
    right = found["dense"].times(weights)
    whole = found["dense"].error(weights)
    fitted = fit_on_mask(found["dense"], right, weights, mask, whole)
    assert len(factored) == 5
    for g in range(GROUPS):
        for row in range(OUT):
            where = mask[g, row].nonzero()[:, 0]
            best = torch.zeros(INPUTS, dtype=torch.float64)
            best[where] = torch.linalg.solve(h[g][where][:, where], (h[g] @ weights[g, row].double())[where])
            assert torch.allclose(fitted[g, row], best, atol=1e-6)
    thin = fit_on_mask(found["thin"], found["thin"].times(weights), weights, mask, whole)
    assert torch.allclose(thin, fitted, atol=1e-4)
    monkeypatch.setattr(module, "EXACT", 0)
    for kind in ("dense", "thin"):
        near = fit_on_mask(found[kind], found[kind].times(weights), weights, mask, whole)
        assert not bool(near[~mask].any())
        assert found["dense"].error(near - weights) <= 1.001 * found["dense"].error(fitted - weights)


def test_more_steps_are_never_worse():
    found, _, weights = forms()
    form, whole = found["dense"], found["dense"].error(weights)
    mask = torch.rand(weights.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    right = form.times(weights)
    errors = [form.error(conjugate_gradients(form, right, weights, mask, whole, steps) - weights) for steps in range(7)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_a_matrix_that_rounding_spoilt_is_factorised_with_the_least_ridge():
    spoilt = torch.ones(1, 3, 3) - 1e-6 * torch.eye(3)
    factor = module.cholesky(spoilt)
    assert torch.allclose(factor @ factor.transpose(1, 2), spoilt, atol=1e-4)
