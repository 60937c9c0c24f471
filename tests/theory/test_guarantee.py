"""What is said beforehand of a whole model: inside the theorems' regime the formulas' numbers, outside it the reasons."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import UsageError
from onnxprune.testing import tiny_network
from onnxprune.theory import theorems
from onnxprune.theory.guarantee import bounds
from onnxprune.theory.theorems import Chain


def made(nodes, stored, x, y):
    values = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s)] for n, s in (x, y)]
    tensors = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in stored.items()]
    graph = helper.make_graph(nodes, "net", *values, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def fully_connected(widths, draw, activation="Relu", transposed=False):
    nodes, stored, at = [], {}, "x"
    for k, (n, m) in enumerate(pairwise(widths), 1):
        value = draw((m, n)) / math.sqrt(max(m, n))
        stored[f"w{k}"] = value.T if transposed else value
        nodes.append(helper.make_node("Gemm", [at, f"w{k}"], [f"h{k}"], transB=int(not transposed), name=f"fc{k}"))
        at = f"h{k}"
        if k < len(widths) - 1:
            nodes.append(helper.make_node(activation, [at], [f"a{k}"], name=f"act{k}"))
            at = f"a{k}"
    return made(nodes, stored, ("x", ["n", widths[0]]), (at, ["n", widths[-1]]))


def convolutional(scale, channels=16, side=64, kernel=1):
    rng, nodes, stored, at = np.random.default_rng(0), [], {}, "x"
    shapes = [(channels, 3), (channels, channels), (channels, channels)]
    for k, (out, into) in enumerate(shapes, 1):
        stored[f"w{k}"] = scale * rng.uniform(-1, 1, (out, into, kernel, kernel)) / (side * math.sqrt(channels))
        nodes += [helper.make_node("Conv", [at, f"w{k}"], [f"h{k}"], pads=[kernel // 2] * 4, name=f"conv{k}")]
        nodes += [helper.make_node("Relu", [f"h{k}"], [f"a{k}"])]
        at = f"a{k}"
    stored["last"] = 0.1 * rng.uniform(-1, 1, (10, channels * side**2)) / side
    nodes += [helper.make_node("Flatten", [at], ["f"]), helper.make_node("Gemm", ["f", "last"], ["y"], transB=1, name="fc")]
    return made(nodes, stored, ("x", ["n", 3, side, side]), ("y", ["n", 10]))


def uniform(spread, seed=0):
    rng = np.random.default_rng(seed)
    return lambda shape: spread * rng.uniform(-1, 1, shape)


WIDTHS = (20, 120, 150, 120, 10)


@pytest.mark.parametrize("transposed", [False, True])
def test_inside_the_regime_the_theorems_give_their_numbers(transposed):
    model = fully_connected(WIDTHS, uniform(0.1), transposed=transposed)
    weights = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    norms = [float(np.linalg.norm(weights[f"w{k}"], 2)) for k in range(1, 5)]
    found = bounds(model, alpha=0.25, delta=0.9)
    first, second = found.theorems
    m = [max(weights[f"w{k}"].shape) for k in (2, 3)]
    k1 = max(n * (weights[f"w{k}"] ** 2).mean() for n, k in zip(m, (2, 3), strict=True))
    k2 = max(n**2 * (weights[f"w{k}"] ** 4).mean() for n, k in zip(m, (2, 3), strict=True))
    k = max(math.sqrt(n) * np.abs(weights[f"w{k}"]).max() for n, k in zip(m, (2, 3), strict=True))
    chain = Chain(WIDTHS, norms, k=k, k1=k1, k2=k2)
    assert second.outside == ()
    for says, theorem in ((first, theorems.magnitude), (second, theorems.random)):
        assert says.promise.error == pytest.approx(theorem(chain, 0.25).error)
        assert says.promise.confidence == pytest.approx(theorem(chain, 0.25).confidence)
        assert says.counts == {"fc2": math.floor(18000**0.75), "fc3": math.floor(18000**0.75)}
    assert first.outside == ("d^-alpha = 0.302 is more than c0 = 0.109",)
    assert [row.goes for row in found.layers] == [0, math.floor(18000**0.75), math.floor(18000**0.75), 0]


def test_an_epsilon_is_turned_into_the_most_that_may_go():
    model = fully_connected(WIDTHS, uniform(1.0))
    found = bounds(model, epsilon=0.1, delta=0.2)
    says = found.theorems[0]
    assert says.outside == ()
    assert says.promise.error <= 0.1 * (1 + 1e-9)
    assert says.promise.confidence >= 0.8
    assert found.error["h4"] <= 0.1
    assert 0 < found.ratio < 1
    assert bounds(model, ratio=found.ratio + 0.01).error["h4"] > 0.1
    # What the norms of the weights at hand allow is more than what the theorem allows of all such weights.
    assert found.layers[1].goes > says.counts["fc2"]
    strict = bounds(model, epsilon=1e-6)
    assert any("no alpha gives an error of 1e-06" in why for why in strict.theorems[0].outside)


def test_a_ratio_is_turned_into_the_alpha_at_which_no_layer_loses_less():
    found = bounds(fully_connected(WIDTHS, uniform(0.01)), ratio=0.2, delta=0.5)
    assert min(found.theorems[1].counts.values()) == 0.2 * 18000
    assert [row.goes for row in found.layers] == [0, 3600, 3600, 0]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (fully_connected((20, 40, 10), uniform(1)), "2 layers, fewer than 3"),
        (fully_connected((50, 40, 40, 10), uniform(1)), "smallest hidden width, 40"),
        (fully_connected(WIDTHS, np.random.default_rng(0).standard_normal), "'fc2' are not uniform"),
        (fully_connected(WIDTHS, lambda s: uniform(1)(s) + 0.5), "mean other than 0"),
        (fully_connected(WIDTHS, uniform(1), "Sigmoid"), "'act1' (Sigmoid) is neither"),
        (fully_connected(WIDTHS, uniform(30)), "no positive probability"),
        (fully_connected(WIDTHS, uniform(1)), "its probability, 0."),
    ],
)
def test_outside_the_regime_the_reason_is_named(model, words):
    found = bounds(model, ratio=0.01, delta=0.01)
    assert any(words in why for says in found.theorems for why in says.outside)


def test_theorem_3_for_convolutions_that_are_alike():
    found = bounds(convolutional(0.05), ratio=0.7, delta=0.99)
    (says,) = found.theorems
    assert says.name == "Theorem 3"
    assert says.outside == ()
    assert 0.01 <= says.promise.confidence < 1
    # ratio = d^-alpha: floor(d^(2 - alpha)) of the d^2 filters.
    assert set(says.counts.values()) == {math.floor(0.7 * 256)}
    assert any("less than 0.99" in why for why in bounds(convolutional(20.0), ratio=0.7, delta=0.01).theorems[0].outside)
    (tiny,) = bounds(tiny_network()).theorems
    assert "its inner convolutions are not all of one shape, with stride 1 and without groups" in tiny.outside
    assert "it is not convolutions and one fully connected layer behind them" in tiny.outside


def test_quarrels_and_nonsense_are_refused():
    model = fully_connected((4, 4, 4, 4), uniform(1))
    for given, words in [
        ({"epsilon": 0.0}, "error that is allowed"), ({"delta": 1.0}, "between 0 and 1"), ({"alpha": 2.0}, "alpha of 2"),
        ({"alpha": 0.5, "ratio": 0.5}, "give one"), ({"ratio": 1.0}, "from 0 to less than 1"),
        ({"radius": 0.0}, "norm of an input"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=words):
            bounds(model, **given)


def test_a_model_that_is_not_understood_has_a_reason_and_no_number():
    model = fully_connected((4, 4, 4, 4), uniform(1), "Exp")
    onnx.checker.check_model(model, full_check=True)
    found = bounds(model, epsilon=1.0)
    assert found.error == {}
    assert found.reasons == {"h3": "nothing is known of 'act1' (Exp)"}
    assert found.ratio == 0
