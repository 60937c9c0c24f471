"""The joint choice by ADMM, and the column sweep: against exhaustive search, exact surgery, plain elimination in one order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from second_order import best_of_all, damped, exact_surgery, fitted, layer

from onnxprune.contract import Gram, Quota
from onnxprune.errors import UsageError
from onnxprune.methods.obs import Obs, saliencies
from onnxprune.methods.sparsegpt import SparseGpt

RNG = torch.Generator()


def decided(method, view, quota):
    plan = method.decide(view, method.score(view), quota, RNG)
    plan.check(view, quota)
    return plan


def loss(view, matrix):
    change = matrix.double() - view.matrix.double()
    return float(torch.einsum("goi,gij,goj->", change, damped(view), change))


def magnitude_refitted(view, quota):
    keep = quota.choose(view.matrix.abs(), view)[0]
    h = damped(view)[0]
    return sum(fitted(h, w.double(), k.nonzero()[:, 0].tolist())[0] for w, k in zip(view.matrix[0], keep, strict=True))


def test_one_surgery_removes_what_all_tries_would():
    """The saliency of a weight is half the least loss without it."""
    view = layer()
    h, scores = damped(view)[0], Obs().score(view)[0]
    for row, weights in enumerate(view.matrix[0].double()):
        for q in range(8):
            least, _ = fitted(h, weights, [j for j in range(8) if j != q])
            assert float(scores[row, q]) == pytest.approx(least / 2, rel=1e-4)


@pytest.mark.parametrize("keep", [6, 12])
def test_the_joint_choice_is_near_the_best_there_is(keep):
    ours, best, surgery, plain = 0.0, 0.0, 0.0, 0.0
    for seed in range(8):
        view, quota = layer(seed=seed), Quota(keep)
        h = damped(view)[0]
        found = loss(view, decided(Obs(), view, quota).weights(view))
        optimum = best_of_all(h, view.matrix[0], keep)
        assert found >= optimum * (1 - 1e-5)
        _, losses, exact = exact_surgery(h, view.matrix[0], keep)
        assert sum(losses) == pytest.approx(loss(view, exact[None]), rel=1e-6)
        ours, best, surgery = ours + found, best + optimum, surgery + sum(losses)
        plain += magnitude_refitted(view, quota)
    assert ours <= 1.2 * best
    assert ours <= 1.15 * surgery
    assert ours < 0.8 * plain


@pytest.mark.parametrize("cls", [Obs, SparseGpt])
def test_every_row_is_refitted_or_settled_and_the_error_is_told(cls):
    view = layer(out=6, inputs=12, groups=2)
    plan = decided(cls(), view, Quota(50))
    assert plan.error == pytest.approx(loss(view, plan.weights(view)) ** 0.5, rel=1e-4)
    if cls is Obs:
        for g in range(2):
            for row in range(6):
                where = plan.keep[g, row].nonzero()[:, 0].tolist()
                _, best = fitted(damped(view)[g], view.matrix[g, row].double(), where)
                assert torch.allclose(plan.weights(view)[g, row].double(), best, atol=1e-5)


@pytest.mark.parametrize("cls", [Obs, SparseGpt])
@pytest.mark.parametrize("widest", [8192, 4])
def test_quotas_of_rows_and_patterns_are_met(cls, widest):
    view = layer(out=5, inputs=4 * 4 * 3, kernel=3, widest=widest)
    rows = torch.tensor([[3, 0, 48, 17, 9]])
    plan = decided(cls(), view, Quota(77, rows=rows))
    assert torch.equal(plan.keep.sum(2), rows)
    plan = decided(cls(), view, Quota(5 * 24, pattern=(2, 4)))
    channels = plan.keep.reshape(1, 5, 4, 4, 3)
    assert bool((channels.sum(3) == 2).all())
    assert bool((plan.weights(view) != 0).eq(plan.keep).all())


@pytest.mark.parametrize("cls", [Obs, SparseGpt])
def test_sampled_rows_lead_to_the_same_weights_as_the_matrix(cls):
    dense, thin = layer(out=5, inputs=24, rows=60), layer(out=5, inputs=24, rows=60, widest=4)
    a, b = (decided(cls(), view, Quota(40)) for view in (dense, thin))
    assert torch.equal(a.keep, b.keep)
    assert torch.allclose(a.weights(dense), b.weights(thin), atol=2e-3)


def test_the_sweep_is_exact_surgery_from_left_to_right():
    """One block as wide as the layer: the mask by the first scores, then each removal updates all columns behind it."""
    view = layer(out=4, inputs=10)
    plan = decided(SparseGpt(), view, Quota(22))
    h = damped(view)[0]
    upper = torch.linalg.cholesky(torch.linalg.inv(h)).T
    keep = Quota(22).choose((view.matrix[0].double() / upper.diagonal())[None] ** 2, view)[0]
    assert torch.equal(plan.keep[0], keep)
    expected = view.matrix[0].double().clone()
    for column in range(10):
        rest = torch.linalg.inv(h[column:, column:])
        step = torch.where(keep[:, column], 0.0, expected[:, column]) / rest[0, 0]
        expected[:, column:] -= step[:, None] * rest[0]
    assert torch.allclose(plan.weights(view)[0].double(), expected * keep, atol=1e-5)


def test_a_narrow_block_keeps_its_share_and_zeros_count_as_removed():
    view = layer(out=6, inputs=20)
    view = replace(view, matrix=view.matrix * (torch.arange(20) >= 10))
    plan = decided(SparseGpt(block=5), view, Quota(20))
    assert plan.keep[0].reshape(6, 4, 5).sum((0, 2)).tolist() == [0, 0, 10, 10]
    assert int((decided(SparseGpt(block=5), view, Quota(75)).weights(view) != 0).sum()) == 60


def test_saliencies_of_the_pseudo_inverse_leave_dead_inputs_to_go_first():
    view = layer(inputs=6)
    gram = Gram()
    gram.add(torch.randn((4, 1, 6), generator=torch.Generator().manual_seed(0)) * (torch.arange(6) != 1))
    scores = saliencies(view.matrix, gram.damped(0.0))
    assert not bool(scores[:, :, 1].any())
    pseudo = torch.linalg.pinv(gram.products[0] / 4, rtol=1e-10)
    alive = [0, 2, 3, 4, 5]
    assert torch.allclose(
        scores[0][:, alive].double(), (view.matrix[0].double() ** 2 / 2 / pseudo.diagonal())[:, alive], rtol=1e-4
    )


@pytest.mark.parametrize("make", [lambda: Obs(damping=0), lambda: SparseGpt(block=0), lambda: Obs(damping=float("nan"))])
def test_options_that_make_no_sense_are_refused(make):
    with pytest.raises(UsageError, match=r"damping|block"):
        make()
