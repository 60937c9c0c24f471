"""PFP: a channel's score by loops over its readers' sensitivities, unbiased draws, sample size, and through the pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import onnxprune
from onnxprune.calibration.samples import open_samples
from onnxprune.contract import Activation, ChannelView, Maker, Reader
from onnxprune.decide import channels as decide
from onnxprune.devices import choose_device
from onnxprune.errors import UsageError
from onnxprune.graph import find, load
from onnxprune.methods import create
from onnxprune.methods.pfp import PfpChannel
from onnxprune.methods.sensitivity import Sensitivity
from onnxprune.testing import check_method, tiny_network


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def view(channels=6, readers=2, groups=1):
    """Readers of out = 4 outputs and 9 kernel positions; with groups the channels lie side by side."""
    made = (Maker("maker", torch.randn(channels, 5, generator=seeded()), torch.zeros(channels)),)
    read, counted = [], {}
    for i in range(readers):
        matrix = torch.randn(groups, 4, channels // groups * 9, generator=seeded(i + 1))
        statistic = Sensitivity(matrix)
        statistic.add(torch.randn(20, groups, matrix.shape[2], generator=seeded(i + 5)).relu())
        columns = matrix.reshape(groups, 4, -1, 9).transpose(1, 2).reshape(channels, -1)
        read.append(Reader(f"reader{i}", columns, torch.arange(channels)[:, None]))
        counted[f"reader{i}", Sensitivity] = statistic
    return ChannelView("group", channels, made, tuple(read), Activation("Relu"), counted)


@pytest.mark.parametrize("variant", ["det", "rand"])
def test_the_contract(variant):
    check_method(PfpChannel, variant=variant)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_channel_is_worth_its_most_sensitive_weight(groups):
    group = view(groups=groups)
    scores = create("pfp-channel").score(group)
    per = 6 // groups
    for c in range(6):
        found = []
        for i in range(2):
            value = group.statistics[f"reader{i}", Sensitivity].value
            for out in range(4):
                for position in range(9):
                    found.append(float(value[c // per, out, c % per * 9 + position]))
        assert float(scores[c]) == pytest.approx(max(found))


def test_without_data_all_inputs_count_as_equally_active():
    group = view(readers=1)
    blind = ChannelView("group", 6, group.makers, group.readers, group.activation)
    columns = group.readers[0].columns
    expected = [
        max(float(abs(w) / columns[:, k][columns[:, k] * w > 0].abs().sum()) for k, w in enumerate(columns[c].tolist()))
        for c in range(6)
    ]
    assert torch.allclose(create("pfp-channel").score(blind), torch.tensor(expected), rtol=1e-5)


def test_drawn_channels_are_right_on_average():
    group = view()
    method = create("pfp-channel", variant="rand")
    scores = method.score(group)
    found = torch.zeros(2000, 6, dtype=torch.float64)
    for seed in range(2000):
        order = method.rank(group, scores, seeded(seed))
        plan = method.decide(group, scores, order, 4, seeded(seed))
        found[seed, plan.keep] = plan.scale
    assert bool(((found > 0).sum(1) == 4).all())
    assert bool(((found.mean(0) - 1).abs() <= 5 * found.std(0) / 2000**0.5).all())


def test_sensitivities_are_those_of_the_readers_in_a_model():
    data = np.random.default_rng(0).standard_normal((60, 3, 8, 8)).astype(np.float32)
    options = {"samples": 48, "held_out": 0.2, "seed": 0, "input_shapes": None, "mean": None, "std": None, "layout": "auto"}
    graph, samples = open_samples(load(tiny_network()), data, None, **options)
    network, method = find(graph), create("pfp-channel", patches=0)
    groups = decide.select(network, method, (), ())
    fields = {"batch": 6, "device": choose_device("cpu"), "seed": 0, "progress": lambda stage, share: None}
    evidence = decide.gather(graph, network, groups, method, samples.calibration, weigh=False, **fields)
    readers = {name for group in groups for name in group.readers if name in network.layer}
    assert {layer for layer, _ in evidence.statistics} == readers
    for found in evidence.statistics.values():
        assert found.count > 0
        assert 0 < float(found.value.max()) <= 1


def test_through_the_pipeline():
    result = onnxprune.prune(tiny_network(), "pfp-channel", 0.5, samples=24, batch=4, device="cpu", latency=False, align=1)
    assert any(group["kept"] < group["channels"] for group in result.report["groups"])


@pytest.mark.parametrize("options", [{"variant": "best"}, {"patches": -1}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(UsageError):
        create("pfp-channel", **options)
