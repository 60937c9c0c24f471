"""--through-norms over the whole pipeline: proven, repaired, reported."""

from __future__ import annotations

import numpy as np
import pytest

import onnxprune
from onnxprune.errors import NothingToPruneError
from tests.graph.nets import net, node, values


def mixer():
    """A stream of 24 that every norm sees: MatMul -> x + MLP(LayerNorm(x)) -> LayerNorm -> MatMul."""
    nodes = [
        node("MatMul", "x w0", "s", name="stem"),
        node("LayerNormalization", "s g be", "n", name="norm1"),
        node("MatMul", "n up", "u", name="up_"),
        node("Relu", "u", "r"),
        node("MatMul", "r down", "d", name="down_"),
        node("Add", "s d", "t"),
        node("LayerNormalization", "t g be", "m", name="norm2"),
        node("MatMul", "m w1", "y", name="head"),
    ]
    weights = {"w0": values(12, 24), "up": values(24, 32), "down": values(32, 24), "w1": values(24, 5)}
    return net(nodes, weights | {"g": values(24, low=0.5, high=2), "be": values(24)}, {"x": ["N", 7, 12]})


FIELDS = {"ratio": 0.5, "latency": False, "budget": "uniform", "align": 1, "method": "l2-channel", "only": ["stem"]}


def data():
    return np.random.default_rng(0).standard_normal((80, 7, 12)).astype(np.float32)


def test_proven_and_repaired():
    plain, repaired = (
        onnxprune.prune(mixer(), data=data(), through_norms=True, repair=repair, **FIELDS).report for repair in ("none", "auto")
    )
    assert repaired["proof"]["max_relative_difference"] < 1e-5
    assert "to the mean of the others" in repaired["proof"]["summary"]
    assert repaired["options"]["through_norms"] is True
    assert {g["name"]: g["kept"] for g in repaired["groups"]}["stem"] == 12
    assert repaired["deviation"]["y"]["relative_l2"] < 0.7 * plain["deviation"]["y"]["relative_l2"]


def test_without_the_option_the_stream_is_pinned():
    reasons = {p.reason for p in onnxprune.inspect(mixer()).pins}
    assert "'norm1' normalises over these channels (LayerNormalization); --through-norms lets them go" in reasons
    assert [g.name for g in onnxprune.inspect(mixer()).groups] == ["up_"]
    assert [g.name for g in onnxprune.inspect(mixer(), through_norms=True).groups] == ["stem", "up_"]
    assert onnxprune.explain(mixer(), "w0", through_norms=True).axes[0].groups == (("stem", "neuron", 24),)
    with pytest.raises(NothingToPruneError):
        onnxprune.prune(net([node("MatMul", "x w", "y")], {"w": values(4, 4)}, {"x": ["N", 4]}), ratio=0.5, through_norms=True)


def test_the_proof_would_see_a_norm_that_was_not_rescaled(monkeypatch):
    import onnxprune.rewrite.cut as rewriting

    monkeypatch.setattr(rewriting, "factors", lambda *_: ({}, {}))
    with pytest.raises(onnxprune.OnnxpruneError, match="differs from its masked twin"):
        onnxprune.prune(mixer(), data=data(), through_norms=True, **FIELDS)
