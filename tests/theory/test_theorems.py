"""The theorems against their printed formulas by hand, against brute force, and against hundreds of random networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from onnxprune.theory.theorems import (
    LOADS,
    Chain,
    Maps,
    Norms,
    Reach,
    alpha_of,
    best_kernels,
    kernels,
    least_alpha,
    magnitude,
    magnitude_width,
    most_alpha,
    most_kernel_alpha,
    pruned,
    random,
    random_width,
    through,
)  # fmt: skip
from onnxprune.theory.weight_moments import weight_moments

CHAIN = Chain((20, 100, 120, 100, 10), (0.9, 0.8, 0.85, 0.7), k=0.02, k1=1e-5, k2=1e-9)


def spectral(matrix):
    return float(np.linalg.norm(matrix, 2))


def by_magnitude(matrix, count):
    thin = matrix.copy()
    thin.ravel()[np.argsort(np.abs(thin).ravel(), kind="stable")[:count]] = 0.0
    return thin


def at_random(matrix, count, rng):
    thin = matrix.copy()
    thin.ravel()[rng.integers(0, matrix.size, count)] = 0.0
    return thin


def test_alpha_and_ratio_are_two_words_for_one_thing():
    assert pruned(10_000, 0.5) == 100
    assert pruned(1000, alpha_of(0.25, 1000)) == 250
    assert pruned(7, 1.0) == 1


def test_the_printed_limits_of_alpha():
    """Section 5: 0.6729 for d = 128, 0.7205 for d = 1024; with - log log they would be larger."""
    assert most_kernel_alpha(128) == pytest.approx(0.6729, abs=5e-5)
    assert most_kernel_alpha(1024) == pytest.approx(0.7205, abs=5e-5)
    for d_out, d_in in [(300, 100), (64, 64), (1000, 30)]:
        limit = most_alpha(d_out, d_in)
        draws = (d_out * d_in) ** (1 - limit)
        assert draws >= max(d * math.log(d) for d in (d_out, d_in))
        assert draws <= 1.1 * max((d + 1) * math.log(d) for d in (d_out, d_in))


@pytest.mark.parametrize("n", [20, 50])
def test_loads_are_uneven_less_often_than_lemma_6_allows(n):
    rng = np.random.default_rng(0)
    balls = math.ceil(n * math.log(n))
    uneven = np.mean([np.bincount(rng.integers(0, n, balls), minlength=n).max() > 3 * balls / n for _ in range(2000)])
    assert uneven <= n**-LOADS
    assert pytest.approx(0.2958, abs=1e-4) == LOADS
    # The Chernoff bound as printed is broken by a Poisson variable of mean 100; the one used here is not.
    tail = scipy.stats.poisson.sf(299, 100)
    assert math.exp(-4 / 3 * 100) < tail < (math.e**2 / 27) ** 100


def test_theorem_1_by_hand():
    promise = magnitude(CHAIN, 0.5, latala=0.6)
    c2 = 0.6 * 0.02 * (2 * 2**0.5 + 24**0.25)
    assert promise.error == pytest.approx((2**2 - 1) * 100**-0.5 * 0.9**3)
    assert promise.confidence == pytest.approx(1 - 2 * c2 * 100**-0.5)
    doubtful = magnitude(Chain(CHAIN.widths, CHAIN.norms, k=0.02, doubts=(0.01,) * 4), 0.5, latala=0.6)
    assert doubtful.confidence == pytest.approx((1 - 0.01) * (1 - 2 * c2 * 0.1 - 5 * 2 * 0.005))


def test_theorem_2_by_hand():
    promise = random(CHAIN, 0.3, latala=0.6)
    c2 = 0.6 * (2 * math.sqrt(3e-5) + 1e-9**0.25)
    assert promise.error == pytest.approx(3 * 100**-0.075)  # norms below 1 count as 1
    assert promise.confidence == pytest.approx((1 - 100**-LOADS) ** 4 * (1 - 2 * c2 * 100**-0.075))
    doubts = (0.01, 0.02, 0.03, 0.04)
    doubtful = random(Chain(CHAIN.widths, (2, 3, 1, 1), 0.5, k1=1e-5, k2=1e-9, doubts=doubts), 0.3, latala=0.6)
    assert doubtful.error == pytest.approx(3 * 100**-0.075 * 0.5 * 6)
    rest = 1 - 2 * c2 * 100**-0.075 - (3 * 0.01 + 2 * 0.02 + 0.03)
    assert doubtful.confidence == pytest.approx((1 - 100**-LOADS) ** 4 * 0.96 * rest)


def test_theorem_3_by_hand():
    maps = Maps(4, 64, 100, 3, 110, c1=1e-4, c2=1e-8, last=0.5, lipschitz=1.0)
    b1, b2, alpha = 0.3, 0.05, 0.4
    promise = kernels(maps, alpha, b1, b2, latala=0.6)
    c3, c4 = 0.6 * (2e-2 + 1e-2), 0.6 * (2 * math.sqrt(3e-4) + 1e-2)
    step = 100**-b1
    assert promise.error == pytest.approx(0.5 * 110 * 8 * (step * (step + 64**-b2) ** 2 - step**3))
    confidence = 1 - 2 * c4 * 9 / 100 * 64 ** (b2 - 0.1) - 5 * c3 * 9 / 100 ** (1 - b1)
    assert promise.confidence == pytest.approx((1 - 64**-LOADS) ** 4 * confidence)
    best = best_kernels(maps, alpha, 0.9, latala=0.6)
    assert best.confidence >= 0.1
    assert best.error < promise.error


@pytest.mark.parametrize(("theorem", "width"), [(magnitude, magnitude_width), (random, random_width)])
def test_the_width_that_a_theorem_asks_for_is_enough(theorem, width):
    given = {"k": 1.0, "k1": 1 / 3, "k2": 0.2}
    chain = Chain((5, 10, 10, 10, 5), (0.9, 0.8, 1.1, 0.7), **given)
    alpha, epsilon, delta = 0.4, 0.5, 0.2
    d = width(chain, alpha, epsilon, delta)
    wide = Chain((5, *(math.ceil(d),) * 3, 5), chain.norms, **given)
    promise = theorem(wide, alpha)
    assert promise.error <= epsilon
    assert promise.confidence >= 1 - delta
    assert not promise.outside
    narrow = Chain((5, *(math.ceil(d**0.5),) * 3, 5), chain.norms, **given)
    assert theorem(narrow, alpha).error > epsilon or theorem(narrow, alpha).confidence < 1 - delta


def test_the_least_alpha_is_where_the_promise_begins_to_hold():
    found = least_alpha(lambda a: magnitude(CHAIN, a), 0.2, 0.05)
    assert found is not None
    assert magnitude(CHAIN, found).error <= 0.2 * (1 + 1e-9)
    assert magnitude(CHAIN, found - 1e-6).error > 0.2
    assert least_alpha(lambda a: magnitude(CHAIN, a), 1e-9, 0.05) is None
    assert least_alpha(lambda a: magnitude(CHAIN, a), 100.0, 1e-9) is None


def test_outside_the_regime_there_is_a_reason_and_no_error():
    for theorem in (magnitude, random):
        assert "fewer than 3" in theorem(Chain((4, 4, 4), (1, 1)), 0.5).outside[0]
        assert "smallest hidden width, 30" in theorem(Chain((784, 30, 40, 10), (1, 1, 1)), 0.5).outside[0]
        sure = theorem(Chain(CHAIN.widths, CHAIN.norms, k=100.0, k1=1e4, k2=1e8), 0.3)
        assert sure.confidence == 0
        assert "no positive probability" in sure.outside[-1]
    assert "too few draws" in random(CHAIN, 0.99).outside[0]
    assert "more than c0" in magnitude(Chain(CHAIN.widths, (1e-3,) * 4, k=1e-3), 0.5).outside[0]


@pytest.mark.parametrize("depth", [3, 4])
def test_theorem_1_is_kept_by_hundreds_of_random_networks(depth):
    """Identity activations: the largest error over the ball is the spectral norm of the difference of the two products."""
    rng = np.random.default_rng(depth)
    widths, alpha, k = (20, *(60,) * (depth - 1), 10), 0.8, 0.5
    broken, promised = 0, []
    for _ in range(200):
        full = [rng.uniform(-1, 1, s) * k / math.sqrt(max(s)) for s in zip(widths[1:], widths, strict=False)]
        thin = [w if i in (0, depth - 1) else by_magnitude(w, pruned(w.size, alpha)) for i, w in enumerate(full)]
        promise = magnitude(Chain(widths, [spectral(w) for w in full], k=k), alpha)
        assert not [why for why in promise.outside if "positive" not in why]
        error = spectral(np.linalg.multi_dot(full[::-1]) - np.linalg.multi_dot(thin[::-1]))
        broken += error > promise.error
        promised.append(promise.confidence)
    assert broken <= 200 * (1 - np.mean(promised))
    assert broken == 0
    assert np.mean(promised) > 0.5


def test_theorem_2_is_kept_by_hundreds_of_random_networks():
    rng = np.random.default_rng(0)
    widths, alpha = (20, 80, 80, 80, 10), 0.3
    assert alpha < most_alpha(80, 80)
    for _ in range(200):
        full = [rng.standard_normal(s) * 0.1 / math.sqrt(max(s)) for s in zip(widths[1:], widths, strict=False)]
        thin = [w if i in (0, 3) else at_random(w, pruned(w.size, alpha), rng) for i, w in enumerate(full)]
        promise = random(Chain(widths, [spectral(w) for w in full], k1=0.01, k2=3e-4), alpha)
        assert not promise.outside
        assert promise.confidence > 0.1
        assert spectral(np.linalg.multi_dot(full[::-1]) - np.linalg.multi_dot(thin[::-1])) <= promise.error


def test_the_recursion_is_never_broken():
    """Whatever the weights and the pruning: ReLU networks with biases at inputs of norm r, and their exact norms."""
    rng = np.random.default_rng(0)
    nearest = 0.0
    for _ in range(300):
        widths = rng.integers(2, 12, 4)
        full = [rng.standard_normal(s) * rng.uniform(0.1, 3) for s in zip(widths[1:], widths, strict=False)]
        biases = [rng.standard_normal(len(w)) for w in full]
        thin = [by_magnitude(w, rng.integers(0, w.size)) for w in full]
        radius = rng.uniform(0.5, 3)
        reach = Reach(radius, 0.0)
        x = rng.standard_normal((200, widths[0]))
        a = b = radius * x / np.linalg.norm(x, axis=1, keepdims=True)
        for w, v, bias in zip(full, thin, biases, strict=True):
            reach = through(reach, Norms(spectral(w), spectral(v), spectral(w - v)), float(np.linalg.norm(bias)))
            a, b = np.maximum(a @ w.T + bias, 0), np.maximum(b @ v.T + bias, 0)
            assert np.linalg.norm(a, axis=1).max() <= reach.size * (1 + 1e-12)
            error = np.linalg.norm(a - b, axis=1).max()
            assert error <= reach.error * (1 + 1e-12)
            nearest = max(nearest, error / reach.error if reach.error else 0.0)
    assert nearest > 0.3, "a bound that is never near could be anything"


def test_moments_of_weights_against_loops():
    matrix = torch.randn((1, 6, 9), generator=torch.Generator().manual_seed(0))
    values = [float(w) for w in matrix.flatten()]
    found = weight_moments(matrix, 9, 6)
    mean = sum(values) / 54
    variance = sum((w - mean) ** 2 for w in values) / 54
    assert found.mean == pytest.approx(mean)
    assert found.variance == pytest.approx(variance)
    assert found.k == pytest.approx(max(map(abs, values)) * 3)
    assert found.k1 == pytest.approx(9 * sum(w**2 for w in values) / 54)
    assert found.k2 == pytest.approx(81 * sum(w**4 for w in values) / 54)
    assert found.kurtosis == pytest.approx(sum((w - mean) ** 4 for w in values) / 54 / variance**2)
    assert sum(found.histogram) == 54
    most = max(map(abs, values))
    gaps = [abs(sum(v <= w for v in values) / 54 - (w + most) / (2 * most)) for w in values]
    assert max(gaps) <= found.uniform <= max(gaps) + 1 / 54


def test_weights_that_are_uniform_look_so_and_others_do_not():
    rng = torch.Generator().manual_seed(0)
    uniform = [weight_moments(torch.rand(40, 40, generator=rng) * 2 - 1, 40, 40) for _ in range(100)]
    assert sum(found.looks_uniform for found in uniform) > 90
    assert sum(found.centred for found in uniform) > 90
    assert np.mean([found.kurtosis for found in uniform]) == pytest.approx(1.8, abs=0.05)
    gaussian = weight_moments(torch.randn(40, 40, generator=rng), 40, 40)
    assert not gaussian.looks_uniform
    assert gaussian.gaussian < 1.63 / 40
    assert not weight_moments(torch.rand(40, 40, generator=rng), 40, 40).centred
    dead = weight_moments(torch.zeros(1, 3, 4), 4, 3)
    assert (dead.k, dead.kurtosis, dead.looks_uniform) == (0, 0, False)
