"""SiPP against its formulas: bounds solve what they are derived from and hold, samples are unbiased and exact in number."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import onnxprune
from onnxprune.contract import LayerView, Quota
from onnxprune.errors import UsageError
from onnxprune.methods import create
from onnxprune.methods.sensitivity import Sensitivity
from onnxprune.methods.sipp import draws_for, eps_det, eps_rand, sample, sample_size
from onnxprune.methods.sipp_bounds import Signs, compression_bound, condition_number, operator_norm
from onnxprune.testing import check_method, tiny_network

NAMES = ["sipp-det", "sipp-rand", "sipp-hybrid", "sipp-simple"]
PRUNE = {"latency": False, "samples": 48, "batch": 8, "device": "cpu"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def seen(groups=1, out=4, inputs=30, rows=60, seed=0):
    """A view with its statistics, and the rows they were counted on."""
    matrix = torch.randn((groups, out, inputs), generator=seeded(seed))
    data = torch.randn((rows, groups, inputs), generator=seeded(seed + 1)).relu()
    counted = {Sensitivity: Sensitivity(matrix), Signs: Signs(matrix)}
    for statistic in counted.values():
        statistic.add(data)
    return LayerView("layer", matrix, torch.zeros(groups, out), positions=rows, statistics=counted), data


@pytest.mark.parametrize("name", NAMES)
def test_the_contract(name):
    check_method(type(create(name)))


@pytest.mark.parametrize("total", [0.3, 5.0, 400.0])
@pytest.mark.parametrize("draws", [1, 50, 10**6])
@pytest.mark.parametrize("constant", [1.0, 3.0])
def test_eps_rand_solves_the_inequality_of_bernstein(total, draws, constant):
    delta, outputs = 0.05, 17
    eps = float(eps_rand(total, draws, constant, 16 * outputs / delta))
    log_left = math.log(2) - 3 * eps**2 * draws / (total * constant * (6 + 2 * eps))
    assert log_left == pytest.approx(math.log(delta / (8 * outputs)), rel=1e-9)
    assert eps > float(eps_rand(total, draws + 1, constant, 16 * outputs / delta))


def test_sample_size_is_that_of_the_authors_for_lenet():
    assert sample_size(10, 784, 0.1, 1.0) == math.ceil(math.log(8 * 10 * 784 / 0.1))
    # Their rule, with eta of the largest layer instead of the size of the largest row, is 152 for LeNet-300-100.
    assert sample_size(410, 300, 1e-16, 3.0) == 152


@pytest.mark.parametrize("seed", range(3))
def test_draws_for_inverts_the_expected_number_of_different_items(seed):
    q = torch.rand(3, 200, generator=seeded(seed), dtype=torch.float64) ** torch.tensor([1.0, 4.0, 12.0])[:, None]
    q = q / q.sum(1, keepdim=True)
    wanted = torch.tensor([1, 2, 20, 100, 180]).expand(3, -1)
    found = draws_for(q, wanted)
    for row in range(3):
        for m, draws in zip(wanted[row].tolist(), found[row].tolist(), strict=True):
            unique = float(-(torch.expm1(draws * torch.log1p(-q[row]))).sum())
            assert unique == pytest.approx(m, rel=0.01)
    assert bool((found.diff(dim=1) > 0).all())


def test_draws_for_uniform_items_and_at_the_ends():
    q = torch.full((1, 50), 1 / 50, dtype=torch.float64)
    closed = math.log(1 - 20 / 50) / math.log(1 - 1 / 50)
    assert float(draws_for(q, torch.tensor([[20]]))) == pytest.approx(closed, rel=0.02)
    assert draws_for(q, torch.tensor([[0, 50, 60]])).tolist() == [[0.0, math.inf, math.inf]]
    assert draws_for(torch.zeros(1, 5), torch.tensor([[0, 1]])).tolist() == [[0.0, math.inf]]


def test_samples_are_exact_in_number_and_unbiased():
    q = torch.rand(3, 12, generator=seeded(4), dtype=torch.float64) + 0.1
    q[2, 5:] = 0
    q = q / q.sum(1, keepdim=True)
    counts = torch.tensor([4, 7, 3])
    found = []
    for seed in range(4000):
        keep, factors = sample(q, counts, seeded(seed))
        assert torch.equal(keep.sum(1), counts)
        found.append(factors * keep)
    drawn = torch.stack(found)
    error = (drawn.mean(0) - (q > 0).double()).abs()
    assert bool((error <= 5 * drawn.std(0) / 4000**0.5 + 1e-12).all())


def test_a_whole_support_stays_as_it_is():
    q = torch.tensor([[0.5, 0.3, 0.2, 0, 0]])
    keep, factors = sample(q, torch.tensor([3]), seeded())
    assert keep.tolist() == [[True, True, True, False, False]]
    assert factors.tolist() == [[1.0] * 5]


def test_inclusion_is_that_of_sampling_until_enough_are_seen():
    q = torch.tensor([[0.4, 0.3, 0.2, 0.07, 0.03]], dtype=torch.float64)
    runs = 4000
    ours = sum(sample(q, torch.tensor([2]), seeded(s))[0].double() for s in range(runs))[0] / runs
    rng, literal = np.random.default_rng(0), np.zeros(5)
    for _ in range(runs):
        got = set()
        while len(got) < 2:
            got.add(int(rng.choice(5, p=q[0].numpy())))
        literal[list(got)] += 1 / runs
    assert np.allclose(ours.numpy(), literal, atol=5 * math.sqrt(0.5 / runs))


@pytest.mark.parametrize("name", ["sipp-rand", "sipp-hybrid"])
def test_reweighed_rows_are_right_on_average(name):
    view, _ = seen(inputs=400)
    method = create(name, delta=0.999, C=1.0)
    scores = method.score(view)
    runs = 1000
    counts = torch.full((4,), 200)
    quota = Quota(800, rows=counts[None])
    plans = [method.decide(view, scores, quota, seeded(s)) for s in range(runs)]
    weights = torch.stack([plan.weights(view) for plan in plans]).double()
    error = (weights.mean(0) - view.matrix).abs()
    # Of what is hardly ever drawn a thousand draws say nothing.
    often = (scores > 0.2 * scores.mean(2, keepdim=True)) & method.random_rows(*method.row_bounds(view, scores, counts))[:, None]
    assert int(often.sum()) > 800
    assert bool((error <= 5 * weights.std(0) / runs**0.5 + 1e-6)[often].all())


@pytest.mark.parametrize("name", ["sipp-det", "sipp-rand", "sipp-hybrid"])
def test_the_bounds_hold(name):
    """On the very samples: relative error of each sign's sum, at every row and sample, over hundreds of draws."""
    view, data = seen()
    method = create(name, C=1.0, delta=0.1)
    scores = method.score(view)
    worst = 0.0
    for seed in range(150 if name != "sipp-det" else 1):
        for keep in (40, 100):
            plan = method.decide(view, scores, Quota(keep), seeded(seed))
            for sign in (1, -1):
                before = data[:, 0] @ (sign * view.matrix[0]).clamp(min=0).T
                after = data[:, 0] @ (sign * plan.weights(view)[0]).clamp(min=0).T
                there = before > 1e-3
                relative = ((after - before).abs() / before)[there].max()
                worst = max(worst, float(relative) / plan.error)
    assert 0 < worst <= 1


def test_det_bound_is_what_goes():
    view, _ = seen()
    method = create("sipp-det", C=2.0)
    scores = method.score(view)
    plan = method.decide(view, scores, Quota(50), seeded())
    assert plan.error == pytest.approx(2 * max(float((scores[0, i] * ~plan.keep[0, i]).sum()) for i in range(4)), rel=1e-6)
    curve = method.errors(view, scores)
    for i in range(4):
        ranked = sorted(scores[0, i].tolist(), reverse=True)
        assert np.allclose(curve[i].numpy(), [2 * sum(ranked[m:]) for m in range(31)], atol=1e-5)
    assert float(eps_det(3.0, 2.0)) == 6.0


def test_hybrid_takes_the_smaller_bound_row_by_row():
    view, _ = seen(out=6, inputs=200)
    options = {"C": 1.0, "delta": 0.5}
    curves = {}
    for name in ("sipp-det", "sipp-rand", "sipp-hybrid"):
        method = create(name, **options)
        curves[name] = method.errors(view, method.score(view))
    assert torch.equal(curves["sipp-hybrid"], torch.minimum(curves["sipp-det"], curves["sipp-rand"]))
    assert bool((curves["sipp-rand"].diff(dim=1) <= 0).all())
    hybrid = create("sipp-hybrid", **options)
    counts = torch.full((6,), 150)
    random = hybrid.random_rows(*hybrid.row_bounds(view, hybrid.score(view), counts))
    assert torch.equal(random, curves["sipp-rand"][:, 150] < curves["sipp-det"][:, 150])


def test_optalloc_of_det_is_the_simple_variant():
    det = onnxprune.prune(tiny_network(), "sipp-det", 0.6, repair="none", **PRUNE)
    simple = onnxprune.prune(tiny_network(), "sipp-simple", 0.6, repair="none", **PRUNE)
    assert [r["zeros"] for r in det.report["weights"]] == [r["zeros"] for r in simple.report["weights"]]


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_network_loses_exactly_what_was_asked_and_the_report_tells_the_bounds(name):
    found = onnxprune.prune(tiny_network(), name, 0.6, repair="none", **PRUNE).report
    total = sum(row["weights"] for row in found["weights"])
    assert sum(row["zeros"] for row in found["weights"]) == total - round(0.4 * total)
    bounds = found["bounds"]
    assert "relative error of a layer" in bounds["summary"]
    assert bounds["samples"] < bounds["samples_wanted"]
    assert any("calibration samples" in warning for warning in found["warnings"])
    for row in bounds["layers"]:
        assert row["error"] >= 0
        assert row["sign_complexity"] >= 1
        assert row["condition"] > 0
    assert max(row["error"] for row in bounds["layers"]) > 0


def test_with_a_pattern_the_draws_choose_and_nothing_is_reweighed():
    view, _ = seen(inputs=32)
    for name in ("sipp-rand", "sipp-hybrid"):
        method = create(name)
        plan = method.decide(view, method.score(view), Quota(64, pattern=(2, 4)), seeded(1))
        assert bool((plan.keep.reshape(1, 4, 8, 4).sum(3) == 2).all())
        assert plan.matrix is None


@pytest.mark.parametrize("options", [{"C": 0}, {"K": -1}, {"delta": 1}, {"delta": 0}, {"patch_reduce": "min"}, {"patches": -2}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(UsageError):
        create("sipp-det", **options)


def test_sign_complexity_by_hand():
    matrix = torch.tensor([[[2.0, -1.0], [0.5, 3.0]]])
    row = torch.tensor([[[1.0, -2.0]]])
    counted = Signs(matrix)
    counted.add(row)
    # ++: (2, .5), +-: w+ a- = (0, 6), -+: (0, 0), --: (2, 0); Z = (2 + 2, .5 - 6)
    parts = math.hypot(2, 0.5) + 6 + 0 + 2
    norm = math.hypot(4, 5.5)
    assert counted.complexity == pytest.approx(parts / norm)
    assert counted.norms == pytest.approx([norm])


def test_operator_norm_is_no_less_than_a_convolution_does():
    weight = torch.randn(5, 3, 3, 3, generator=seeded())
    view = LayerView("c", weight.reshape(1, 5, 27), torch.zeros(1, 5), kernel=9)
    x = torch.randn(1, 3, 12, 12, generator=seeded(1))
    for stride in (1, 2):
        for _ in range(200):
            y = torch.nn.functional.conv2d(x, weight, stride=stride, padding=1)
            grown = float(y.norm() / x.norm())
            x = torch.nn.functional.conv_transpose2d(y, weight, stride=stride, padding=1, output_padding=stride - 1)
            x = x / x.norm()
        assert grown <= operator_norm(view)
    constant = replace(view, matrix=torch.ones(1, 1, 9), bias=torch.zeros(1, 1))
    x = torch.ones(1, 1, 50, 50)
    assert float(torch.nn.functional.conv2d(x, torch.ones(1, 1, 3, 3)).norm() / x.norm()) > 3  # its Frobenius norm
    assert operator_norm(constant) == pytest.approx(9, rel=1e-4)


def test_the_network_bound_holds_for_a_chain():
    """Theorem 13 on a random ReLU network, pruned by sipp-det, on the samples that were seen."""
    layers = [torch.randn(1, o, i, generator=seeded(o)) / math.sqrt(i) for o, i in ((20, 15), (12, 20), (6, 12))]
    x = torch.rand(40, 15, generator=seeded(3))
    method = create("sipp-det", C=1.0)
    a, ahat, sums, parts, facts = x, x, [], [], {}
    for number, matrix in enumerate(layers):
        counted = {Sensitivity: Sensitivity(matrix), Signs: Signs(matrix)}
        counted[Sensitivity].add(a[:, None])
        for row in a:
            counted[Signs].add(row[None, None])
        view = LayerView(str(number), matrix, torch.zeros(1, len(matrix[0])), statistics=counted, place=(number, 3))
        plan = method.decide(view, method.score(view), Quota(round(0.95 * matrix.numel())), seeded())
        facts[str(number)] = method.facts(view, plan)
        z, zhat = a @ matrix[0].T, ahat @ plan.weights(view)[0].T
        sums.append(z)
        a, ahat = z.relu(), zhat.relu()
    told = method.bounds(facts, 40)
    relative = float(((zhat - z).norm(dim=1) / z.norm(dim=1)).max())
    assert 0 < relative <= told["network"]
    for number, row in enumerate(told["layers"]):
        later = [row["operator_norm"] for row in told["layers"][number + 1 :]]
        ratio = (sums[number].norm(dim=1) / sums[-1].norm(dim=1)).max()
        assert row["condition"] == pytest.approx(math.prod(later) * float(ratio), rel=1e-5)
        parts.append((row["condition"], row["sign_complexity"], row["error"]))
    assert told["network"] == pytest.approx(compression_bound(parts))
    assert condition_number([2.0], [1.0, 3.0], [2.0, 0.0]) == math.inf
