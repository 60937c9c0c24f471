"""Greedy block OBS against explicit refits: exhaustive search, greedy by least squares, duplicates and dead channels."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from onnxprune.compensation.least_squares import RefitLosses
from onnxprune.contract import Activation, ChannelView, Maker, Moments, PatchMoments, Reader, readings
from onnxprune.errors import UsageError
from onnxprune.methods import create

KERNEL = 4


def counted(kind, rows):
    found = kind()
    for part in rows.chunk(3):
        found.add(part[:, None] if kind.rows == "grouped" else part)
    return found


def view(channels=6, readers=1, *, patches=True, spread=1, seed=0, change=None, gains=None, rows=400):
    """`spread` positions per channel, one input of somebody else's; change: what is done to the inputs x (n, inputs, kernel)."""
    rng = torch.Generator().manual_seed(seed)
    inputs = channels * spread + 1
    where = torch.arange(channels)[:, None] + channels * torch.arange(spread)[None]
    made = Maker("m", torch.randn((channels, 5), generator=rng), torch.randn(channels, generator=rng))
    read, statistics = [], {}
    for i in range(readers):
        read.append(Reader(f"r{i}", torch.randn((inputs, 3 * KERNEL), generator=rng), where))
        mix = torch.randn((inputs * KERNEL, inputs * KERNEL), generator=rng)
        x = (torch.randn((rows, inputs * KERNEL), generator=rng) @ mix).relu().reshape(rows, inputs, KERNEL)
        x = x if change is None else change(x)
        if patches:
            statistics[f"r{i}", PatchMoments] = counted(PatchMoments, x.flatten(1))
        else:
            statistics[f"r{i}", Moments] = counted(Moments, x.transpose(1, 2).flatten(0, 1))
    return ChannelView("g", channels, (made,), tuple(read), Activation("Relu"), statistics, gains or {})


def refitted(reading, removed):
    """min over V of tr((V - W)^T H (V - W)), V zero on the removed channels: the normal equations, written out."""
    h = reading.covariance.numpy()
    h = h + 0.01 * h.diagonal().mean() * np.eye(len(h))
    w = reading.weights.numpy()
    gone = sorted({int(i) for c in removed for i in reading.positions[c]})
    stay = [i for i in range(len(h)) if i not in gone]
    v = np.zeros_like(w)
    v[stay] = np.linalg.solve(h[np.ix_(stay, stay)], h[stay] @ w)
    return reading.gain * float(np.trace((v - w).T @ h @ (v - w)))


def loss(v, removed):
    return sum(refitted(reading, removed) for reading in readings(v)) if removed else 0.0


def greedy(v):
    gone, added = [], []
    while len(gone) < v.channels:
        rest = [c for c in range(v.channels) if c not in gone]
        costs = [loss(v, [*gone, c]) - loss(v, gone) for c in rest]
        gone.append(rest[int(np.argmin(costs))])
        added.append(min(costs))
    return gone, added


CASES = [
    {}, {"patches": False}, {"readers": 2, "gains": {"r0": 0.2, "r1": 3.0}}, {"spread": 2}, {"spread": 2, "patches": False},
    {"readers": 3, "seed": 4, "channels": 7},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_order_and_losses_are_those_of_greedy_refits(case):
    v = view(**case)
    order, added = greedy(v)
    scores = create("obs-channel", steps=v.channels).score(v)
    assert torch.argsort(scores).tolist() == order
    np.testing.assert_allclose(scores[order].numpy(), np.maximum.accumulate(added), rtol=1e-6)


def opposed(x):
    """Channel 1 shows what channel 0 shows, and a little more."""
    x = x.clone()
    x[:, 1] = x[:, 0] + 0.3 * x[:, 1]
    return x


def test_what_costs_less_once_another_has_gone_still_goes_after_it():
    """Read with opposite signs, the first of two alike takes most of the other's weight along."""
    v = view(change=opposed, rows=5000, seed=1)
    (reader,) = v.readers
    columns = reader.columns.clone()
    columns[:2] *= 0.5
    columns[1] = -columns[0]
    v = replace(v, readers=(replace(reader, columns=columns),))
    order, added = greedy(v)
    assert order[:2] == [0, 1]
    assert added[1] < added[0]
    method = create("obs-channel", steps=6)
    scores = method.score(v)
    assert method.rank(v, scores, torch.Generator()).tolist() == order[::-1]
    assert float(scores[1]) == pytest.approx(float(scores[0]), rel=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_first_to_go_is_the_best_of_all_by_exhaustion(case):
    v = view(**case)
    scores = create("obs-channel").score(v)
    assert int(scores.argmin()) == min(range(v.channels), key=lambda c: loss(v, [c]))
    assert float(scores.min()) == pytest.approx(min(loss(v, [c]) for c in range(v.channels)), rel=1e-6)


def test_gains_decide_between_readers():
    orders = [
        torch.argsort(create("obs-channel").score(view(readers=2, gains={"r0": g, "r1": 1.0}))).tolist() for g in (1e-6, 1e6)
    ]
    assert orders[0] != orders[1]


def test_in_rounds_the_cheapest_go_together():
    v = view(channels=6)
    method = create("obs-channel", steps=2)
    order = torch.argsort(method.score(v)).tolist()
    alone = sorted(range(6), key=lambda c: loss(v, [c]))
    assert order[:3] == alone[:3]
    then = sorted(alone[3:], key=lambda c: loss(v, [*alone[:3], c]))
    assert order[3:] == then


def test_greedy_loses_little_more_than_the_best_set_and_less_than_other_orders():
    worse = 0
    for seed in range(8):
        v = view(channels=8, seed=seed)
        scores = create("obs-channel", steps=8).score(v)
        half = torch.argsort(scores)[:4].tolist()
        best = min(loss(v, list(some)) for some in combinations(range(8), 4))
        assert best <= loss(v, half) * (1 + 1e-9)
        assert loss(v, half) < 1.15 * best
        worse += loss(v, torch.argsort(create("l2-channel").score(v))[:4].tolist()) > loss(v, half)
    assert worse >= 7


def test_the_sum_of_the_losses_is_that_of_refitting_once():
    """Elimination step by step and one Cholesky factorisation of the whole agree."""
    v = view(channels=7, seed=3)
    scores = create("obs-channel", steps=7).score(v)
    order, (reading,) = torch.argsort(scores, descending=True), readings(v)
    curve = RefitLosses(reading.covariance, reading.weights).in_order(reading.positions[order].reshape(-1))[::KERNEL]
    steps = (curve[:-1] - curve[1:]).flip(0)
    np.testing.assert_allclose(scores.sort().values.numpy(), np.maximum.accumulate(steps.numpy()), rtol=1e-6)


def copied(x):
    x = x.clone()
    x[:, 4] = x[:, 1]
    return x


def dead(x):
    x = x.clone()
    x[:, 2] = 0.7
    return x


def exact_loss(v, c):
    """Refitted without ridge or shrinkage."""
    (reading,) = readings(v)
    seen = v.statistic(v.readers[0].layer, PatchMoments) or v.statistic(v.readers[0].layer, Moments)
    mean = (seen.total / seen.count).flatten()
    h = (reading.products - torch.outer(mean, mean)).numpy()
    gone = reading.positions[c].tolist()
    stay = [i for i in range(len(h)) if i not in gone]
    cross, w = h[np.ix_(stay, gone)], reading.weights.numpy()[gone]
    left = h[np.ix_(gone, gone)] - cross.T @ np.linalg.lstsq(h[np.ix_(stay, stay)], cross, rcond=1e-10)[0]
    return float(np.trace(w.T @ left @ w))


@pytest.mark.parametrize("patches", [True, False])
def test_one_of_two_copies_goes_first_and_the_other_stays(patches):
    """What it seems to cost is the ridge and the shrinkage; nothing by the covariance as it is."""
    for seed in range(5):
        v = view(change=copied, patches=patches, seed=seed, rows=5000)
        scores = create("obs-channel", steps=6).score(v)
        first = int(scores.argmin())
        assert first in (1, 4)
        assert float(scores[first]) < 0.3 * float(scores.sort().values[1])
        assert torch.argsort(scores).tolist().index({1: 4, 4: 1}[first]) > 1
        for c in (1, 4):
            assert exact_loss(v, c) < 1e-6 * min(exact_loss(v, other) for other in (0, 2, 3, 5))


@pytest.mark.parametrize("patches", [True, False])
def test_what_never_changes_goes_first_at_no_loss(patches):
    """Dead or constant: the bias takes it up."""
    v = view(change=dead, patches=patches)
    scores = create("obs-channel").score(v)
    assert int(scores.argmin()) == 2
    assert float(scores[2]) == pytest.approx(0, abs=1e-9 * float(scores.max()))


def test_neighbouring_pixels_of_other_channels_stand_in_only_where_patches_were_counted():
    """Channel 0 shows at each kernel position what channel 3 shows at the next: channel by channel they share nothing."""

    def shifted(x):
        x = x.clone()
        x[:, 0] = x[:, 3].roll(1, 1)
        return x

    first = [int(create("obs-channel").score(view(change=shifted, patches=True, seed=s)).argmin()) for s in range(4)]
    assert set(first) <= {0, 3}
    other = [int(create("obs-channel").score(view(change=shifted, patches=False, seed=s)).argmin()) for s in range(4)]
    assert not set(other) <= {0, 3}


def test_without_readers_the_norms_of_the_makers_decide():
    v = view()
    bare = ChannelView("g", v.channels, v.makers, (), v.activation)
    assert torch.equal(create("obs-channel").score(bare), v.maker_norms)


def test_without_data_inputs_count_as_independent():
    v = view(readers=2)
    unseen = ChannelView("g", v.channels, v.makers, v.readers, v.activation)
    energy = torch.stack([r.weight.double().square().sum(1) for r in v.readers]).sum(0)
    assert torch.argsort(create("obs-channel").score(unseen)).tolist() == torch.argsort(energy).tolist()


@pytest.mark.parametrize("steps", [0, 2.5, -3])
def test_steps_are_whole(steps):
    with pytest.raises(UsageError, match="whole number"):
        create("obs-channel", steps=steps)


def test_of_the_makers_inputs_nothing_is_counted():
    assert create("obs-channel").wants(Activation("Relu")) == ()
    assert create("obs-channel").wants(None) == (Moments, PatchMoments)
