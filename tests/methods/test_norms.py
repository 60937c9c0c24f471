"""l1, l2, percentile, random and bn-scale against loops written from their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from onnxprune.contract import Activation, ChannelView, Maker, Reader
from onnxprune.errors import UsageError
from onnxprune.methods import create


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed))


def view(makers=1, scale=True, channels=7):
    made = [
        Maker(f"m{i}", draw(channels, 10, seed=i), draw(channels, seed=50 + i), draw(channels, seed=90 + i) if scale else None)
        for i in range(makers)
    ]
    return ChannelView(
        "g", channels, tuple(made), (Reader("r", draw(channels, 6), torch.arange(channels)[:, None]),), Activation("Relu")
    )


@pytest.mark.parametrize("makers", [1, 2, 3])
@pytest.mark.parametrize("name", ["l1-channel", "l2-channel", "percentile-channel"])
def test_norms_by_loops(name, makers):
    v = view(makers)
    expected = []
    for c in range(v.channels):
        total = 0.0
        for maker in v.makers:
            row = [float(w) for w in maker.weight[c]]
            if name == "l1-channel":
                total += sum(abs(w) for w in row)
            elif name == "l2-channel":
                total += math.sqrt(sum(w * w for w in row))
            else:
                total += math.sqrt(sum(w * w for w in [*row, float(maker.bias[c])]))
        expected.append(total)
    torch.testing.assert_close(create(name).score(v), torch.tensor(expected))


def test_the_largest_stay_and_ties_go_by_position():
    method, v = create("l1-channel"), view()
    scores = torch.tensor([1.0, 3, 2, 3, 0, 3, 1])
    order = method.rank(v, scores, rng())
    assert order.tolist() == [1, 3, 5, 2, 0, 6, 4]
    assert method.decide(v, scores, order, 5, rng()).keep.tolist() == [0, 1, 2, 3, 5]


def test_batch_norm_scale_is_summed_over_the_makers():
    v = view(2)
    expected = [abs(float(v.makers[0].batch_norm_scale[c])) + abs(float(v.makers[1].batch_norm_scale[c])) for c in range(7)]
    torch.testing.assert_close(create("bn-scale-channel").score(v), torch.tensor(expected))


def test_batch_norm_scale_refuses_where_there_is_none():
    with pytest.raises(UsageError, match="needs batch norm behind the layers of 'g'") as caught:
        create("bn-scale-channel").score(view(scale=False))
    assert "l1-channel" in caught.value.remedy


def test_random_takes_every_channel_equally_often():
    method, v = create("random-channel"), view()
    counts = torch.zeros(v.channels)
    trials = 2000
    for seed in range(trials):
        scores = method.score(v)
        plan = method.decide(v, scores, method.rank(v, scores, rng(seed)), 3, rng(seed))
        assert plan.scale is None
        counts[plan.keep] += 1
    expected = trials * 3 / 7
    assert float(((counts - expected) ** 2 / expected).sum()) < 22.5  # chi-square with 6 degrees of freedom, 99.9 %


def test_random_neuron_is_random_channel_for_fully_connected_layers():
    assert create("random-neuron").target == "neuron"
    v = view()
    scores = create("random-neuron").score(v)
    assert torch.equal(create("random-neuron").rank(v, scores, rng(5)), create("random-channel").rank(v, scores, rng(5)))
