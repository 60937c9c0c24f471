"""ThiNet against loops over every output at every position: contributions, the greedy set, the factors of those that stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxprune.contract import Activation, ChannelView, Maker, Moments, PatchMoments, Reader, readings
from onnxprune.methods import create
from onnxprune.methods.thinet import DAMPING, contributions

CHANNELS, KERNEL, OUT, ROWS = 6, 4, 3, 50


def case(readers=1, *, patches=True, gains=None, seed=0):
    """A view, and for each reader the inputs (rows, channels, kernel)."""
    rng = torch.Generator().manual_seed(seed)
    kernel = KERNEL if patches else 1
    made = Maker("m", torch.randn((CHANNELS, 5), generator=rng), torch.randn(CHANNELS, generator=rng))
    read, statistics, seen = [], {}, []
    for i in range(readers):
        read.append(Reader(f"r{i}", torch.randn((CHANNELS, OUT * kernel), generator=rng), torch.arange(CHANNELS)[:, None]))
        x = torch.randn((ROWS, CHANNELS, kernel), generator=rng).relu() + torch.randn((ROWS, 1, 1), generator=rng)
        kind = PatchMoments if patches else Moments
        statistics[f"r{i}", kind] = kind()
        statistics[f"r{i}", kind].add(x.flatten(1)[:, None] if patches else x[:, :, 0])
        seen.append(x)
    return ChannelView("g", CHANNELS, (made,), tuple(read), Activation("Relu"), statistics, gains or {}), seen


def by_loops(v, seen):
    """(t, channels): for every reader, sample position and output what each channel gives; times sqrt(gain / positions)."""
    found = []
    for reader, x in zip(v.readers, seen, strict=True):
        weight = reader.columns.reshape(CHANNELS, OUT, -1)
        for row in x:
            for o in range(OUT):
                part = [sum(float(weight[c, o, p]) * float(row[c, p]) for p in range(x.shape[2])) for c in range(CHANNELS)]
                found.append(np.array(part) * np.sqrt(v.gains.get(reader.layer, 1.0) / ROWS))
    return np.array(found)


def greedy(parts):
    gone = []
    while len(gone) < CHANNELS:
        rest = [c for c in range(CHANNELS) if c not in gone]
        gone.append(min(rest, key=lambda c: float((parts[:, [*gone, c]].sum(1) ** 2).sum())))
    return gone


CASES = [{}, {"patches": False}, {"readers": 2, "gains": {"r0": 5.0, "r1": 0.1}}, {"readers": 2, "seed": 5}]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_contributions_and_greedy_order_by_loops(options):
    v, seen = case(**options)
    parts = by_loops(v, seen)
    gram = sum(contributions(reading) for reading in readings(v))
    np.testing.assert_allclose(gram.numpy(), parts.T @ parts, rtol=1e-4, atol=1e-4)
    assert torch.argsort(create("thinet-channel").score(v)).tolist() == greedy(parts)


def test_what_the_set_adds_up_to_decides_and_not_each_channel_alone():
    """Contributions that have much in common: the squared sum of the set is far from the sum of the squares."""
    different = 0
    for seed in range(6):
        v, seen = case(patches=False, seed=seed)
        parts = by_loops(v, seen)
        order = torch.argsort(create("thinet-channel").score(v)).tolist()
        assert order == greedy(parts)
        different += order != np.argsort((parts**2).sum(0)).tolist()
    assert different >= 4


@pytest.mark.parametrize("options", CASES, ids=str)
def test_factors_solve_the_papers_least_squares(options):
    """Equation 7 with the ridge, as a least-squares problem with rows of its own."""
    v, seen = case(**options)
    method = create("thinet-channel")
    scores = method.score(v)
    plan = method.decide(v, scores, method.rank(v, scores, torch.Generator()), 4, torch.Generator())
    parts = by_loops(v, seen)
    kept = parts[:, plan.keep.numpy()]
    ridge = np.sqrt(DAMPING * (kept**2).sum() / 4) * np.eye(4)
    rows, right = np.concatenate([kept, ridge]), np.concatenate([parts.sum(1), ridge.sum(1)])
    np.testing.assert_allclose(plan.scale.numpy(), np.linalg.lstsq(rows, right, rcond=None)[0], rtol=1e-3)
    plain = float(((parts.sum(1) - kept.sum(1)) ** 2).sum())
    assert float(((parts.sum(1) - kept @ plan.scale.numpy()) ** 2).sum()) < plain


def test_channels_that_cancel_go_first_and_the_strongest_stays():
    """The least energy goes first (torchprune's ranks are upside down), and two that cancel are no more than one small one."""
    columns = torch.tensor([[1.0], [5.0], [-5.0], [3.0]])
    counted = Moments()
    counted.add(torch.randn((300, 1), generator=torch.Generator().manual_seed(0)).expand(-1, 4) * torch.tensor([1.0, 1, 1, 3]))
    reader = Reader("r", columns, torch.arange(4)[:, None])
    v = ChannelView("g", 4, (Maker("m", torch.ones(4, 2), torch.zeros(4)),), (reader,), Activation(), {("r", Moments): counted})
    scores = create("thinet-channel").score(v)
    assert int(scores.argmin()) == 0
    assert int(scores.argmax()) == 3
    assert {int(scores[1]), int(scores[2])} == {1, 2}
