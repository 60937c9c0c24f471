"""fpgm-channel against distances by loops, and what the geometric median means."""

from __future__ import annotations

import math

import pytest
import torch

from onnxprune.contract import Activation, ChannelView, Maker
from onnxprune.methods import create


def view(*weights):
    made = tuple(Maker(f"m{i}", w, torch.zeros(len(w))) for i, w in enumerate(weights))
    return ChannelView("g", len(weights[0]), made, (), Activation("Relu"))


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("channels", "makers"), [(2, 1), (7, 1), (40, 3)])
def test_distances_by_loops(channels, makers):
    weights = [draw(channels, 9 + i, seed=i) for i in range(makers)]
    expected = []
    for c in range(channels):
        total = 0.0
        for w in weights:
            for j in range(channels):
                total += math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(w[c], w[j], strict=True)))
        expected.append(total)
    found = create("fpgm-channel").score(view(*weights))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_the_filter_at_the_geometric_median_goes_first_however_large_it_is():
    """Weiszfeld's iteration finds the point with the least sum of distances; the filter put there is the first to go."""
    weight = draw(9, 6) + 20.0
    median = weight.mean(0)
    for _ in range(500):
        pull = 1 / torch.linalg.vector_norm(weight - median, dim=1)
        median = (pull[:, None] * weight).sum(0) / pull.sum()
    scores = create("fpgm-channel").score(view(torch.cat([weight, median[None]])))
    assert int(scores.argmin()) == 9


def test_a_shift_of_all_filters_changes_nothing():
    weight = draw(8, 5)
    torch.testing.assert_close(create("fpgm-channel").score(view(weight)), create("fpgm-channel").score(view(weight + 3.0)))
