"""Every registered method keeps the contract, and the contract test notices those that do not."""

from __future__ import annotations

import pytest
import torch

import onnxprune
from onnxprune.contract import ChannelMethod, ChannelPlan, Moments
from onnxprune.errors import OnnxpruneError, UsageError
from onnxprune.methods import METHODS
from onnxprune.testing import check_method, check_rule, tiny_network


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_keeps_the_contract(name):
    check_method(METHODS[name])


def test_the_contract_is_public():
    assert onnxprune.check_method is check_method
    assert onnxprune.check_rule is check_rule


def test_coreset_keeps_the_contract_with_its_options():
    check_method(METHODS["coreset-channel"], beta=3.0)


class Sound(ChannelMethod):
    """The base of the broken ones below, in order itself: not registered, with statistics of the readers."""

    name = "sound-channel"
    paper = "none"
    target = "channel"
    needs = (Moments,)

    def score(self, view):
        return view.maker_norms


def test_a_class_of_ones_own_is_checked_without_registering_it():
    check_method(Sound)
    assert Sound.name not in METHODS


class Constant(Sound):
    def score(self, view):
        return torch.nan_to_num(view.maker_norms)


class Short(Sound):
    def score(self, view):
        return view.maker_norms[1:]


class Writer(Sound):
    def score(self, view):
        view.makers[0].weight.mul_(2)
        return torch.zeros(view.channels)


class Threshold(Sound):
    """The classic: a threshold removes one too many or too few on ties."""

    def decide(self, view, scores, order, keep, rng):
        bar = scores.sort(descending=True).values[keep - 1]
        return ChannelPlan(torch.nonzero(scores >= bar)[:, 0])


class Unsorted(Sound):
    def decide(self, view, scores, order, keep, rng):
        return ChannelPlan(order[:keep].flip(0))


class Unseeded(Sound):
    def rank(self, view, scores, rng):
        return torch.randperm(view.channels)


class Repeats(Sound):
    def rank(self, view, scores, rng):
        return torch.zeros(view.channels, dtype=torch.int64)


class Scales(Sound):
    def decide(self, view, scores, order, keep, rng):
        return ChannelPlan(order[:keep].sort().values, torch.full((keep,), 2.0))


class Infinite(Sound):
    def decide(self, view, scores, order, keep, rng):
        return ChannelPlan(order[:keep].sort().values, torch.full((keep,), torch.inf))


class Misnamed(Sound):
    name = "sound"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Constant, "NaN weights give finite scores"),
        (Short, "shape"),
        (Writer, "written to"),
        (Threshold, "channels where"),
        (Unsorted, "ascending"),
        (Unseeded, "two plans|two models"),
        (Repeats, "no permutation"),
        (Scales, "nothing goes, yet"),
        (Infinite, "scale must be finite"),
        (Misnamed, "should end in -channel"),
    ],
)
def test_a_broken_method_is_caught(broken, words):
    with pytest.raises((AssertionError, OnnxpruneError), match=words):
        check_method(broken)


def test_the_rules_of_a_model_are_checked():
    assert check_rule(tiny_network(), ratio=0.5, seed=1) < 1e-5


def test_a_wrong_rule_is_caught(monkeypatch):
    from dataclasses import replace

    from onnxprune.errors import ProofError
    from onnxprune.graph import labels

    right = labels.OPERATORS["", "Relu"]

    def reversed_channels(flow, index):
        node = flow.graph.nodes[index]
        flow.give(node.output[0], {a: v[::-1].copy() for a, v in flow.labels(node.input[0]).items()})

    monkeypatch.setitem(labels.OPERATORS, ("", "Relu"), replace(right, flow=reversed_channels))
    with pytest.raises(ProofError, match="masked twin"):
        check_rule(tiny_network())


def test_scores_of_a_third_party_are_checked_in_the_pipeline(monkeypatch):
    class Spoilt(Sound):
        name = "spoilt-channel"

        def score(self, view):
            return view.maker_norms * torch.nan

    monkeypatch.setitem(METHODS, "spoilt-channel", Spoilt)
    with pytest.raises(UsageError, match="spoilt-channel gives non-finite scores"):
        onnxprune.prune(tiny_network(), "spoilt-channel", 0.5, samples=8, latency=False)
