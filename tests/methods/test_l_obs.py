"""Layer-wise brain surgery: against exact surgery and plain loops, its tolerance and its bound never broken, its baselines."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from second_order import damped, exact_surgery, fitted, layer
from test_obs import decided, loss

from onnxprune.contract import (
    ChannelView,
    Gram,
    InputMoments,
    LayerPlan,
    LayerView,
    Maker,
    Quota,
    Reader,
    Zeros,
)
from onnxprune.contract.activation import Activation
from onnxprune.errors import UsageError
from onnxprune.methods.l_obs import Apoz, ApozChannel, ApozW, LObs, accumulated_errors, stale_update


def test_one_round_goes_by_the_first_sensitivities_and_refits_every_row():
    view, h = layer(out=4, inputs=9), damped(layer(out=4, inputs=9))[0]
    scores = view.matrix[0].double() ** 2 / 2 / torch.linalg.inv(h).diagonal()
    order = scores.flatten().argsort(descending=True)[:20]
    keep = torch.zeros(36, dtype=torch.bool)
    keep[order] = True
    plan = decided(LObs(), view, Quota(20))
    assert torch.equal(plan.keep.flatten(), keep)
    for row in range(4):
        _, best = fitted(h, view.matrix[0, row].double(), keep.reshape(4, 9)[row].nonzero()[:, 0].tolist())
        assert torch.allclose(plan.weights(view)[0, row].double(), best, atol=1e-5)
    assert plan.error == pytest.approx(loss(view, plan.weights(view)) ** 0.5, rel=1e-4)


def test_a_round_for_every_weight_is_exact_surgery():
    view = layer(out=3, inputs=8)
    order, _, exact = exact_surgery(damped(view)[0], view.matrix[0], 21)
    plan = decided(LObs(rounds=60), view, Quota(21))
    assert {(int(i), int(q)) for i, q in (~plan.keep[0]).nonzero()} == set(order)
    assert torch.allclose(plan.weights(view)[0].double(), exact, atol=1e-4)


def test_columns_that_do_the_same_work_are_merged():
    view = layer(out=4, inputs=8)
    rows = torch.randn((300, 1, 8), generator=torch.Generator().manual_seed(3)).relu()
    rows[:, :, 5] = rows[:, :, 2]
    gram = Gram()
    gram.add(rows)
    view = replace(view, statistics={Gram: gram})
    plan = decided(LObs(damping=1e-5, rounds=8), view, Quota(28))
    assert bool((plan.keep[0, :, 2] ^ plan.keep[0, :, 5]).all())
    merged = plan.weights(view)[0, :, [2, 5]].sum(1)
    assert torch.allclose(merged, view.matrix[0, :, [2, 5]].sum(1), atol=1e-2)


@pytest.mark.parametrize("rounds", [1, 3])
def test_more_rounds_and_other_quotas_keep_exactly_what_was_asked_for(rounds):
    view = layer(out=5, inputs=4 * 4 * 3, kernel=3)
    method = LObs(rounds=rounds)
    assert int((decided(method, view, Quota(101)).weights(view) != 0).sum()) == 101
    rows = torch.tensor([[3, 0, 48, 17, 9]])
    assert torch.equal(decided(method, view, Quota(77, rows=rows)).keep.sum(2), rows)
    plan = decided(method, view, Quota(5 * 12, pattern=(1, 4)))
    assert bool((plan.keep.reshape(1, 5, 4, 4, 3).sum(3) == 1).all())


def test_more_rounds_lose_less():
    errors = [sum(decided(LObs(rounds=n), layer(seed=s), Quota(10)).error for s in range(6)) for n in (1, 2, 14)]
    assert errors[2] < errors[1] < errors[0]


def test_the_stale_update_is_the_authors_loop():
    view = layer(out=3, inputs=7)
    inverse = torch.linalg.inv(damped(view))
    scores = view.matrix.double() ** 2 / inverse.diagonal(dim1=1, dim2=2)[:, None]
    keep = Quota(9).choose(scores, view)
    found = stale_update(view.matrix, inverse, scores, keep)
    weights = view.matrix[0].double().clone()
    gone = torch.zeros_like(weights, dtype=torch.bool)
    for at in scores[0].flatten().argsort():
        i, q = divmod(int(at), 7)
        if keep[0, i, q]:
            continue
        weights[i] -= weights[i, q] / inverse[0, q, q] * inverse[0, q]
        gone[i, q] = True
        weights[gone] = 0.0
    assert torch.allclose(found[0], weights)
    assert loss(view, found) > decided(LObs(), view, Quota(9)).error ** 2
    plan = decided(LObs(update="stale"), view, Quota(9))
    assert torch.allclose(plan.weights(view)[0].double(), weights, atol=1e-5)


def test_without_an_update_weights_stay_as_they_were():
    view = layer()
    plan = decided(LObs(update="none"), view, Quota(11))
    assert torch.equal(plan.weights(view), view.matrix * plan.keep)


@pytest.mark.parametrize("tolerance", [0.01, 0.1, 0.5])
def test_the_tolerance_is_kept_and_used(tolerance):
    view = layer(out=6, inputs=12)
    whole = loss(view, torch.zeros_like(view.matrix)) ** 0.5
    plan = decided(LObs(tolerance=tolerance), view, Quota(72))
    assert plan.error <= tolerance * whole * (1 + 1e-6)
    fewer = decided(LObs(), view, Quota(int(plan.keep.sum()) - 1))
    assert fewer.error > tolerance * whole
    # A ratio that takes the layer beyond it is a ratio still.
    assert int(decided(LObs(tolerance=1e-6), view, Quota(20)).keep.sum()) == 20


def test_without_damping_the_inverse_is_generalised():
    view = layer(rows=5)
    pseudo = torch.linalg.pinv(view.statistic(Gram).products[0] / 5, rtol=1e-10)
    scores = LObs(damping=0).score(view)[0]
    worth = torch.where(pseudo.diagonal() > 1e-12, 0.5 / pseudo.diagonal(), 0.0)
    assert torch.allclose(scores.double(), view.matrix[0].double() ** 2 * worth, rtol=1e-4, atol=1e-9)
    plan = decided(LObs(damping=0), view, Quota(15))
    assert int(plan.keep.sum()) == 15


def test_no_chain_breaks_the_bound():
    """Theorem 3.2 on hundreds of random ReLU networks, pruned by halves, with Frobenius and with spectral norms."""
    tight = 1.0
    for seed in range(300):
        rng = torch.Generator().manual_seed(seed)
        x = dense = pruned = torch.randn((40, 6), generator=rng).double()
        errors, norms = [], {"fro": [], 2: []}
        for _ in range(3):
            weight = torch.randn((6, 6), generator=rng).double()
            kept = weight * (torch.rand((6, 6), generator=rng) < 0.5)
            errors.append(float(((x @ (kept - weight).T) ** 2).sum(1).mean().sqrt()))
            for kind, found in norms.items():
                found.append(float(torch.linalg.matrix_norm(kept, kind)))
            dense, pruned = (dense @ weight.T).relu(), (pruned @ kept.T).relu()
            x = dense
            measured = float(((dense - pruned) ** 2).sum(1).mean().sqrt())
            for found in norms.values():
                bound = accumulated_errors(errors, found)[-1]
                assert measured <= bound * (1 + 1e-9)
            tight = min(tight, bound / measured - 1)
    assert tight < 1.0


def test_the_report_tells_the_bound_of_the_layers_that_were_pruned():
    views = [replace(layer(out=8, inputs=8, seed=s), activation=Activation("Relu")) for s in range(3)]
    method = LObs()
    plans = [decided(method, view, Quota(40)) for view in views]
    facts = {str(i): method.facts(v, p) for i, (v, p) in enumerate(zip(views, plans, strict=True))}
    told = method.bounds(facts, 200)
    expected = accumulated_errors(
        [p.error for p in plans], [float(torch.linalg.matrix_norm(p.weights(v)[0], 2)) for v, p in zip(views, plans, strict=True)]
    )
    assert told["accumulated"]["spectral"] == pytest.approx(expected[-1], rel=1e-5)
    assert told["accumulated"]["spectral"] < told["accumulated"]["frobenius"]
    assert [entry["name"] for entry in told["layers"]] == ["0", "1", "2"]
    stretching = facts | {"1": method.facts(replace(views[1], activation=Activation("Silu")), plans[1])}
    assert "accumulated" not in method.bounds(stretching, 200)


def test_a_convolutions_norm_is_never_more_than_told():
    """A kernel of ones on a map of ones stretches it by nearly its number of positions, more than its Frobenius norm."""
    view = replace(layer(out=1, inputs=9, kernel=9), matrix=torch.ones(1, 1, 9), positions=400)
    facts = LObs().facts(view, LayerPlan(torch.ones(1, 1, 9, dtype=torch.bool), error=0.0))
    image = torch.ones(1, 1, 20, 20)
    stretched = torch.nn.functional.conv2d(image, torch.ones(1, 1, 3, 3), padding=1).norm() / image.norm()
    assert 3 < float(stretched) <= facts["spectral"] + 1e-6


def test_the_bound_is_the_sum_of_the_theorem():
    errors, norms = [1.0, 2.0, 3.0], [7.0, 0.5, 4.0]
    assert accumulated_errors(errors, norms) == [1.0, 0.5 * 1 + 2, 0.5 * 4 * 1 + 4 * 2 + 3]


def test_apoz_counts_zeros_and_apozw_takes_means():
    rows = torch.randn((50, 2, 6), generator=torch.Generator().manual_seed(0)).relu() * torch.arange(6)
    moments = InputMoments()
    moments.add(rows)
    matrix = torch.randn((2, 4, 6), generator=torch.Generator().manual_seed(1))
    view = LayerView("layer", matrix, torch.zeros(2, 4), statistics={InputMoments: moments})
    apoz, apozw = Apoz().score(view), ApozW().score(view)
    for g in range(2):
        for i in range(4):
            for j in range(6):
                assert float(apoz[g, i, j]) == pytest.approx(float((rows[:, g, j] != 0).float().mean()))
                tau = abs(float((rows[:, g, j] * matrix[g, i, j]).mean()))
                assert float(apozw[g, i, j]) == pytest.approx(tau, abs=1e-6)


def test_a_channel_that_is_often_zero_goes_first():
    seen = torch.tensor([[0.0, 1, 2, 0], [0, 3, 0, 0], [1, 1, 1, 0], [0, 1, 5, 2]])
    zeros, rest = Zeros(), Zeros()
    zeros.add(seen[:1])
    rest.add(seen[1:])
    zeros.merge(rest)
    reader = Reader("next", torch.ones(4, 3), torch.arange(4)[:, None])
    maker = Maker("first", torch.ones(4, 2), torch.zeros(4))
    view = ChannelView("group", 4, (maker,), (reader,), Activation("Relu"), {("next", Zeros): zeros})
    assert ApozChannel().score(view).tolist() == [0.25, 1.0, 0.75, 0.25]


@pytest.mark.parametrize("options", [{"rounds": 0}, {"update": "fresh"}, {"tolerance": -1.0}, {"damping": -0.1}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        LObs(**options)


def test_a_layer_too_wide_for_the_stale_update_is_named():
    view = layer(widest=4)
    with pytest.raises(UsageError, match="too wide"):
        decided(LObs(update="stale"), view, Quota(3))


def test_the_norm_of_a_wide_layer_takes_no_singular_values(monkeypatch):
    """Those of fc6 of AlexNet (4096 x 9216) took minutes; a bound that is no smaller serves the theorem as well."""
    matrix = torch.randn((1, 2100, 2050), generator=torch.Generator().manual_seed(0))
    view = LayerView("wide", matrix, torch.zeros(1, 2100))
    monkeypatch.setattr(torch.linalg, "matrix_norm", lambda *a, **k: pytest.fail("all singular values were computed"))
    facts = LObs().facts(view, LayerPlan(matrix.abs() > 1, error=0.5))
    x = torch.randn(2050, generator=torch.Generator().manual_seed(1))
    for _ in range(10):
        x = x / x.norm()
        reached = (kept := matrix[0] * (matrix[0].abs() > 1)) @ x
        x = kept.T @ reached
    assert float(reached.norm()) <= facts["spectral"]
