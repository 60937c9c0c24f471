"""Decisions: which groups, which draw of a random method, losses that are those of the readers, plans that fit their draw."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from onnxprune.calibration.samples import open_samples
from onnxprune.compensation.least_squares import RefitLosses
from onnxprune.contract import ChannelMethod, Moments
from onnxprune.decide import channels as decide
from onnxprune.devices import choose_device
from onnxprune.graph import find, load
from onnxprune.methods import create
from onnxprune.methods.coreset import clocks
from onnxprune.testing import tiny_network

CPU = choose_device("cpu")


@pytest.fixture(scope="module")
def case():
    data = np.random.default_rng(0).standard_normal((60, 3, 8, 8)).astype(np.float32)
    options = {"samples": 48, "held_out": 0.2, "seed": 0, "input_shapes": None, "mean": None, "std": None, "layout": "auto"}
    graph, samples = open_samples(load(tiny_network()), data, None, **options)
    return SimpleNamespace(graph=graph, network=find(graph), source=samples.calibration)


def gather(case, method, weigh=True):
    groups = decide.select(case.network, method, (), ())
    fields = {"batch": 6, "device": CPU, "seed": 0, "progress": lambda stage, share: None}
    return groups, decide.gather(case.graph, case.network, groups, method, case.source, weigh=weigh, **fields)


def judge(case, method, weigh=True, seed=0):
    groups, evidence = gather(case, method, weigh)
    found = decide.judge(case.graph, case.network, groups, method, evidence, align=1, seed=seed, device=CPU)
    return found, evidence


def losses_by_hand(view, evidence, order):
    """Sum over the readers of gain * least-squares loss, inputs of other groups staying."""
    total = 0
    for reader in view.readers:
        covariance = evidence.statistics[reader.layer, Moments].shrunk()
        ranked = reader.positions[order].reshape(-1)
        others = [i for i in range(len(reader.columns)) if i not in set(ranked.tolist())]
        errors = RefitLosses(covariance, reader.columns.double()).in_order(torch.tensor([*others, *ranked.tolist()]))
        total = total + evidence.gains[reader.layer] * errors[len(others) :: reader.positions.shape[1]]
    return total.numpy()


def test_losses_are_those_of_the_readers_weighed_by_their_gains(case):
    found, evidence = judge(case, create("l1-channel"))
    for decision in found:
        expected = losses_by_hand(decision.view, evidence, decision.order)
        np.testing.assert_allclose(decision.candidate.loss, expected, rtol=1e-6, atol=1e-12)
        assert decision.candidate.loss[-1] == 0


def test_of_several_draws_the_one_that_loses_least_is_taken(case):
    method = create("coreset-channel", draws=6)
    found, evidence = judge(case, method)
    for decision in found:
        orders = [method.rank(decision.view, decision.scores, decide.generator(0, decision.view.name, d)) for d in range(6)]
        orders.append(torch.argsort(decision.scores, descending=True, stable=True))  # the plain order competes with them
        totals = [losses_by_hand(decision.view, evidence, order).sum() for order in orders]
        assert decision.draw == int(np.argmin(totals))
        assert torch.equal(decision.order, orders[decision.draw])
    assert any(decision.draw for decision in found)


def test_a_plan_is_made_with_the_clocks_of_its_draw(case):
    """Otherwise the reweighing would not belong to the sample."""
    method = create("coreset-channel", draws=6)
    found, _ = judge(case, method)
    counts = {d.view.name: d.view.channels // 2 for d in found}
    made = decide.plans(method, found, counts, 0)
    drawn = [d for d in found if d.draw < 6]
    for d in found:
        if d.draw == 6:  # no sample, hence no weights of one
            assert made[d.view.name].scale is None
    assert drawn
    for d in drawn:
        probabilities = d.scores.double() / d.scores.double().sum()
        times = clocks(probabilities, decide.generator(0, d.view.name, d.draw))
        expected = torch.argsort(times)[: counts[d.view.name]].sort().values
        assert torch.equal(made[d.view.name].keep, expected)
        direct = method.decide(d.view, d.scores, d.order, counts[d.view.name], decide.generator(0, d.view.name, d.draw))
        assert torch.equal(made[d.view.name].scale, direct.scale)
        assert float((direct.scale * probabilities[direct.keep]).sum()) == pytest.approx(1.0)


def test_without_statistics_there_is_one_draw_and_no_loss(case):
    found, _ = judge(case, create("coreset-channel"), weigh=False)
    assert all(d.draw == 0 and d.candidate.loss is None for d in found)


def test_groups_that_keep_everything_have_no_plan(case):
    found, _ = judge(case, create("l2-channel"))
    counts = {d.view.name: d.view.channels for d in found} | {"layer2": 5}
    assert set(decide.plans(create("l2-channel"), found, counts, 0)) == {"layer2"}


def test_what_one_group_draws_does_not_depend_on_the_others(case):
    method = create("random-channel")
    whole = {d.view.name: d.order for d in judge(case, method)[0]}
    _, evidence = gather(case, method)
    group = [g for g in case.network.groups if g.name == "layer2"]
    alone = decide.judge(case.graph, case.network, group, method, evidence, align=1, seed=0, device=CPU)
    assert torch.equal(alone[0].order, whole["layer2"])
    generators = [decide.generator(seed, name, draw) for seed in range(3) for name in "ab" for draw in range(3)]
    assert len({tuple(torch.randperm(50, generator=g).tolist()) for g in generators}) == 18


def test_statistics_are_counted_for_makers_and_readers(case):
    class Both(ChannelMethod):
        name, paper, target, needs = "both-channel", "none", "channel", (Moments,)

        def score(self, view):
            return view.maker_norms

    _, evidence = gather(case, Both(), weigh=False)
    assert {layer for layer, _ in evidence.statistics} == {"layer1", "layer2", "layer3", "layer4"}
    assert all(s.count for s in evidence.statistics.values())
    assert evidence.gains == {}
