"""Where limits keep a result from what was asked for, the report names both shares and the way out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import account
from onnxprune.testing import tiny_network

QUIET = {"latency": False, "samples": 48, "batch": 8, "device": "cpu", "repair": "none"}


def chain(*sizes):
    """Fully connected layers without biases, named m0, m1 ... with weights w0, w1 ..."""
    rng = np.random.default_rng(0)
    names = ["x", *(f"h{i}" for i in range(len(sizes) - 2)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"m{i}") for i in range(len(sizes) - 1)]
    stored = [
        numpy_helper.from_array(rng.standard_normal(sizes[i : i + 2]).astype(np.float32), f"w{i}") for i in range(len(sizes) - 1)
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in (("x", sizes[0]), ("y", sizes[-1]))]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def warnings(*args, **given):
    report = onnxprune.prune(*args, **QUIET | given).report
    return [text for text in report["warnings"] if "asked for" in text], report


@pytest.mark.parametrize("budget", ["auto", "uniform"])
def test_ranks_stop_at_1(budget):
    (told,), report = warnings(tiny_network(), "svd", 0.99, budget=budget)
    rows = [row for row in report["ranks"] if row["lost"] is not None]
    assert {row["rank"] for row in rows} == {1}
    left, whole = (sum(row[key] for row in rows) for key in ("parameters", "parameters_before"))
    assert told == (
        f"99 % of the eligible weights were asked for, {100 * (1 - left / whole):.3g} % could go: every layer keeps rank 1; "
        "ask for less, or use a -channel method, which takes whole outputs"
    )
    assert warnings(tiny_network(), "svd", 0.5, budget=budget)[0] == []
    assert warnings(tiny_network(), "svd", target="params=0.5", budget=budget)[0] == []


def test_layers_that_compete_keep_a_weight_each():
    model = chain(2, 2, 2, 2, 2, 2, 2)
    (told,), report = warnings(model, "magnitude-global", 0.95)
    assert report["sparsity"]["share"] == pytest.approx(0.75)
    assert told.startswith("95 % of the weights were asked for, 75 % could go: every layer keeps 1 % of its weights, or one")
    assert told.endswith("--budget uniform")
    assert warnings(model, "magnitude-global", 0.5)[0] == []
    assert warnings(model, "magnitude-global", 0.5, only=["w1"])[0] == [], "what was not chosen does not count"


def test_groups_keep_a_tenth_of_their_channels():
    model = chain(20, 40, 60, 5)
    (told,), _ = warnings(model, "l2-channel", 0.93, align=1)
    assert told == (
        "93 % of the channels were asked for, 90 % could go: every group keeps a tenth of its channels; prune the result again "
        "for more"
    )
    assert warnings(model, "l2-channel", 0.9, align=1)[0] == []
    (told,), _ = warnings(model, "l2-channel", 0.93, align=16)
    assert told.endswith("and whole blocks of them; a smaller --align may let more go")
    (told,), _ = warnings(chain(20, 32, 5), "l2-channel", 0.3, align=16)
    assert told == "30 % of the channels were asked for, 50 % went: only whole blocks can go; a smaller --align comes nearer"


def test_matrices_that_lost_all_their_weights_are_named():
    def told(ratio, **given):
        report = onnxprune.prune(chain(30, 40, 5, 4, 3, 2), "magnitude", ratio, **QUIET | given).report
        return [text for text in report["warnings"] if "nothing of the input comes through" in text]

    assert told(0.8) == []
    assert told(0.98) == [
        "all weights of 'w2', 'w3', 'w4' went: nothing of the input comes through there; ask for less, or --skip such layers"
    ]
    assert "all weights of 'w1', 'w2', 'w3' and 1 more went" in told(0.998)[0]
    assert told(0.98, skip=["w2", "w3", "w4"]) == []
    assert told(0.98, budget="global") == [], "where layers compete each keeps one"


@pytest.mark.parametrize(("method", "what"), [("coreset-neuron", "channel"), ("coreset-weight-det", "weight")])
def test_an_error_that_allows_nothing_says_so(method, what):
    def told(**given):
        return [text for text in onnxprune.prune(chain(8, 12, 3), method, **QUIET | given).report["warnings"] if "may go" in text]

    assert told(epsilon=1e-9) == [
        f"no {what} may go with an error of at most 1e-09: the method's bound needs all of them; allow more, or give --ratio"
    ]
    assert told(guarantee_labels=1.0)[0].startswith(f"no {what} may go with 1.0 of the labels guaranteed: ")
    assert told(epsilon=1e9) == []
    assert told(ratio=0.0) == []


@pytest.mark.parametrize(
    ("asked", "got", "said"),
    [
        (0.5, 0.46, False), (0.5, 0.44, True), (0.9, 0.885, False), (0.9, 0.87, True), (0.99, 0.98, True), (0.999, 0.9985, False),
        (0.999, 0.995, True), (0.4, 0.9, False), (None, 0.0, False),
    ],
)  # fmt: skip
def test_what_stays_counts_by_what_was_to_stay(asked, got, said):
    found = account.missed(asked, got, "weights", "they are few", "ask for less")
    assert len(found) == said
    assert not said or f"{100 * got:.3g} % could go: they are few; ask for less" in found[0]
