"""Error-first pruning through the pipeline: what bounds promise holds for the model that comes out, and labels stay."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from rich.console import Console

import onnxprune
from onnxprune.decide.bounds import has_bound
from onnxprune.errors import UsageError
from onnxprune.methods import METHODS
from onnxprune.report import json as report_json
from onnxprune.report import text

SAMPLES = Path(__file__).parents[2] / "samples"
MODEL = SAMPLES / "models/digits_lenet300.onnx"
CALIBRATION = np.load(SAMPLES / "data/digits_calibration.npz")["image"][:200]
TEST = np.load(SAMPLES / "data/digits_test.npz")["image"][:200]
QUIET = {"data": CALIBRATION, "test_data": TEST, "device": "cpu", "latency": False}
LAYERS = ("fc1", "fc2", "fc3")


def stored(model):
    return {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}


def prune(method, model=MODEL, **given):
    return onnxprune.prune(model, method, **QUIET | given)


def run(model, samples):
    """The outputs of all layers."""
    model = onnx.load(model) if isinstance(model, Path) else model
    taps = onnx.ModelProto()
    taps.CopyFrom(model)
    names = [n.output[0] for n in model.graph.node if n.op_type == "Gemm"]
    taps.graph.output.extend(
        [helper.make_empty_tensor_value_info(n) for n in names if n not in {o.name for o in model.graph.output}]
    )
    session = onnxruntime.InferenceSession(taps.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(LAYERS, session.run(names, {session.get_inputs()[0].name: samples}), strict=True))


def inputs(samples):
    before = run(MODEL, samples)
    return {"fc1": samples.reshape(len(samples), -1), "fc2": before["fc1"].clip(0), "fc3": before["fc2"].clip(0)}


@pytest.mark.parametrize("method", ["coreset-weight-det", "coreset-weight-rand", "corenet", "corenet+", "corenet++"])
def test_each_layer_stays_within_epsilon_and_the_report_tells_of_it(method):
    result = prune(method, epsilon=2.0)
    before, after = stored(onnx.load(MODEL)), stored(result.model)
    bounds = result.report["bounds"]
    assert bounds["epsilon"] == 2.0
    assert bounds["kind"] == "relative"
    assert [row["layers"] for row in bounds["layers"]] == [["/fc1/Gemm"], ["/fc2/Gemm"], ["/fc3/Gemm"]]
    for name, row in zip(LAYERS, bounds["layers"], strict=True):
        w, v, x = before[f"{name}.weight"], after[f"{name}.weight"], inputs(TEST)[name].astype(np.float64)
        moved, size = np.abs(x @ (v - w).T), np.abs(x) @ np.abs(w).T
        found = np.divide(moved, size, out=np.zeros_like(moved), where=size > 0)
        assert found.max() <= row["implied_epsilon"] <= 2.0
        assert row["observed"]["max"] == pytest.approx(found.max(), rel=1e-3)
        assert row["observed"]["mean"] == pytest.approx(found.mean(), rel=1e-3)
        assert row["observed"]["std"] == pytest.approx(found.std(), rel=1e-3)
        outputs = np.abs(x @ w.T + before[f"{name}.bias"])
        assert row["relative_to_output"]["mean"] == pytest.approx((moved / outputs).mean(), rel=0.05)
        assert row["kept"] == np.count_nonzero(v)
        assert (row["draws"] is None) == (method == "coreset-weight-det")
    assert sum(row["kept"] for row in bounds["layers"]) < 0.9 * sum(row["units"] for row in bounds["layers"])
    assert result.report["repair"]["layers"] == []
    assert result.report["sparsity"]["share_asked"] is None


@pytest.mark.parametrize("only", [None, "fc3.weight", "fc2.weight", "fc1.weight"])
def test_the_labels_that_are_guaranteed_stay(only):
    """K = 1/3 makes the bound certain on the samples that were seen: then so are the labels."""
    given = {} if only is None else {"only": [only]}
    result = prune("coreset-weight-det", guarantee_labels=0.75, options={"K": 1 / 3}, **given)
    required = result.report["bounds"]["required"]
    name = (only or "fc3.weight").split(".")[0]
    assert required["layer"] == f"/{name}/Gemm"
    assert required["guaranteed"] >= 0.75
    assert required["labels"] == 200
    changed = [n for n, v in stored(result.model).items() if not np.array_equal(v, stored(onnx.load(MODEL))[n])]
    assert changed == [f"{name}.weight"]
    before, after = run(MODEL, CALIBRATION)["fc3"], run(result.model, CALIBRATION)["fc3"]
    assert (before.argmax(1) == after.argmax(1)).mean() >= 0.75
    assert result.report["bounds"]["layers"][0]["implied_epsilon"] <= required["epsilon"]
    if name == "fc3":
        assert required["epsilon"] < required["lemma_epsilon"]


def test_the_epsilon_of_an_earlier_layer_is_the_worst_that_its_error_can_do():
    """Every output of fc2 off by as much as allowed, against the label, one competitor at a time: no guaranteed label flips."""
    required = prune("coreset-weight-det", guarantee_labels=0.9, only=["fc2.weight"]).report["bounds"]["required"]
    w = stored(onnx.load(MODEL))
    x = inputs(CALIBRATION)["fc2"].astype(np.float64)
    hidden = x @ w["fc2.weight"].T + w["fc2.bias"]
    reach = required["epsilon"] * (np.abs(x) @ np.abs(w["fc2.weight"]).T)
    logits = hidden.clip(0) @ w["fc3.weight"].T + w["fc3.bias"]
    top, rows = logits.argmax(1), np.arange(len(x))
    stays = np.ones(len(x), bool)
    for other in range(10):
        against = w["fc3.weight"][other] - w["fc3.weight"][top]
        moved = (hidden + reach * np.sign(against)).clip(0) @ w["fc3.weight"].T + w["fc3.bias"]
        stays &= (moved[rows, other] < moved[rows, top]) | (top == other)
    assert stays.mean() >= 0.9


@pytest.mark.parametrize(("share", "c"), [(0.5, 0.01), (0.95, 0.0005)])
def test_neurons_are_drawn_until_the_logits_cannot_move_too_far(share, c):
    result = prune("coreset-neuron", guarantee_labels=share, options={"c": c})
    bounds, logits = result.report["bounds"], run(MODEL, CALIBRATION)["fc3"].astype(np.float64)
    gaps = np.sort(logits, 1)[:, -1] - np.sort(logits, 1)[:, -2]
    assert bounds["kind"] == "additive"
    assert bounds["required"]["epsilon"] == pytest.approx(np.quantile(gaps / 2, 1 - share), rel=0.1)
    (row,) = bounds["layers"]
    assert (row["name"], row["layers"], row["units"]) == ("/fc2/Gemm", ["/fc3/Gemm"], 100)
    assert row["draws"] > 0
    assert 0 < row["kept"] < 100
    w, v = stored(onnx.load(MODEL)), stored(result.model)
    removed = result.report["removed"]["fc3.weight"]["1"]
    kept = np.setdiff1d(np.arange(100), removed)
    assert v["fc3.weight"].shape == (10, row["kept"]) == (10, len(kept))
    x = inputs(TEST)["fc3"].astype(np.float64)
    moved = np.abs(x[:, kept] @ v["fc3.weight"].T - x @ w["fc3.weight"].T)
    assert row["observed"]["max"] == pytest.approx(moved.max(), rel=1e-3)
    assert moved.max() <= row["worst_case"]


def test_convolutions_have_channels_within_a_bound():
    model = SAMPLES / "models/digits_cnn.onnx"
    result = prune("coreset-channel", model, epsilon=400.0)
    rows = result.report["bounds"]["layers"]
    assert any(row["kept"] < row["units"] for row in rows)
    for row in rows:
        assert row["observed"] is None or row["observed"]["max"] <= row["worst_case"] + 1e-3
    assert result.report["alignment"]["summary"].startswith("kept channels: any number (9 groups): ")
    report_json.render(result.report)


def test_a_share_asked_for_is_told_what_it_implies():
    rows = prune("coreset-weight-rand", ratio=0.5, repair="none").report["bounds"]["layers"]
    assert all(row["implied_epsilon"] > 1 and row["draws"] >= row["kept"] for row in rows)
    (first, *_) = prune("coreset-weight-det", ratio=0.5, repair="none").report["bounds"]["layers"]
    assert first["implied_epsilon"] > first["observed"]["max"]
    assert prune("coreset-weight-det", ratio=0.5).report["bounds"] == {}, "a bound says nothing of refitted weights"
    (one, _) = prune("coreset-neuron", ratio=0.5, repair="none", options={"draws": 1}, budget="uniform").report["bounds"][
        "layers"
    ]
    assert one["implied_epsilon"] > one["observed"]["max"]
    assert prune("coreset-neuron", ratio=0.5, repair="none", reweigh=False).report["bounds"] == {}


def test_the_report_says_so_in_words():
    report = prune("coreset-weight-det", guarantee_labels=0.5).report
    console = Console(width=600, record=True, file=io.StringIO())
    text.show(report, console)
    shown = console.export_text()
    assert "% of the labels of 200 calibration samples cannot change" in shown


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("magnitude", {"epsilon": 0.5}, "no bound .* coreset-weight-det"),
        ("l2-channel", {"epsilon": 0.5}, "no bound .* coreset-channel"),
        ("uniform-channel", {"guarantee_labels": 0.5}, "no bound"),
        ("coreset-weight-det", {"epsilon": 0.0}, "above 0"),
        ("coreset-weight-det", {"epsilon": float("inf")}, "above 0"),
        ("coreset-weight-det", {"guarantee_labels": 1.5}, "such as 0.95"),
        ("coreset-weight-det", {"epsilon": 0.5, "ratio": 0.5}, "in one way"),
        ("coreset-weight-det", {"epsilon": 0.5, "guarantee_labels": 0.5}, "in one way"),
        ("coreset-weight-det", {"epsilon": 0.5, "repair": "least-squares"}, "repair none"),
        ("coreset-weight-det", {"epsilon": 0.5, "budget": "uniform"}, "leave --budget out"),
        ("coreset-weight-det", {"guarantee_labels": 0.5, "only": ["fc*.weight"]}, "one layer at a time"),
        ("coreset-neuron", {"guarantee_labels": 0.5, "only": ["*"]}, "one group"),
    ],
)
def test_what_makes_no_sense_is_refused(method, given, words):
    with pytest.raises(UsageError, match=words):
        prune(method, **given)


BOUNDED = sorted(name for name, cls in METHODS.items() if has_bound(cls))


@pytest.mark.parametrize("method", BOUNDED)
def test_the_smallest_and_the_largest_epsilon_have_a_result(method):
    """Their squares are 0 and infinity."""
    few = {"data": CALIBRATION[:16], "test_data": TEST[:8]}
    shares = [pruned_share(prune(method, epsilon=epsilon, **few).report) for epsilon in (1e-300, 1e300)]
    # Weights that no sample has a use for may go at any epsilon.
    assert shares[0] < shares[1] > 0.9


def pruned_share(report):
    groups = report["groups"]
    return (
        report["sparsity"]["share"]
        if report["sparsity"]
        else 1 - sum(g["kept"] for g in groups) / sum(g["channels"] for g in groups)
    )


def test_labels_behind_a_convolution_are_refused_with_the_way_out():
    with pytest.raises(UsageError, match="no fully connected layer; --only a later layer, or give --epsilon"):
        prune("coreset-weight-det", SAMPLES / "models/digits_cnn.onnx", guarantee_labels=0.5, only=["stem.conv.weight"])


def test_the_softmax_at_the_end_is_no_part_of_the_logits():
    model = onnx.load(MODEL)
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["p"], axis=1))
    model.graph.output[0].name = "p"
    plain, soft = (prune("coreset-weight-det", m, guarantee_labels=0.5).report["bounds"]["required"] for m in (MODEL, model))
    assert soft == plain
