"""Layers that become two through the whole pipeline: every kind of node, what is left alone, budgets, repair, what is told."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import NothingToPruneError, ProofError, UnknownNameError, UsageError
from onnxprune.testing import tiny_network

QUIET = {"latency": False, "samples": 48, "batch": 8, "device": "cpu"}


def arrays(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def net(nodes, stored, x, y, opset=17, ir=8, kind=np.float32):
    """Weights are random, divided by the root of their fan-in, so that activations stay about as large."""
    rng = np.random.default_rng(0)
    tensors = []
    for name, value in stored.items():
        drawn = rng.standard_normal(value) / np.sqrt(np.prod(value[1:])) if isinstance(value, tuple) else value
        tensors.append(numpy_helper.from_array(np.asarray(drawn, kind if isinstance(value, tuple) else drawn.dtype), name))
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    given = [helper.make_tensor_value_info("x", element, x)]
    if ir < 4:
        given += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    graph = helper.make_graph(nodes, "net", given, [helper.make_tensor_value_info("y", element, y)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    onnx.checker.check_model(model, full_check=True)
    return model


def node(op, *inputs, name="layer", **attributes):
    return helper.make_node(op, list(inputs), ["y"], name=name, **attributes)


def with_relu(*made):
    """A Relu in front: inputs that are not symmetric, so that means matter."""
    return [helper.make_node("Relu", ["x"], ["h"], name="relu"), *made]


VECTOR, IMAGE = (["n", 24], ["n", 16]), (["n", 6, 9, 8], None)
CASES = {
    "gemm": (with_relu(node("Gemm", "h", "w", "b", transB=1)), {"w": (16, 24), "b": (16,)}, *VECTOR),
    "gemm, plain": (with_relu(node("Gemm", "h", "w", "b")), {"w": (24, 16), "b": (1, 16)}, *VECTOR),
    "gemm, scaled": (
        with_relu(node("Gemm", "h", "w", "b", alpha=0.5, beta=-2.0)), {"w": (24, 16), "b": (16,)}, *VECTOR,
    ),
    "gemm without bias": (with_relu(node("Gemm", "h", "w", transB=1, alpha=3.0)), {"w": (16, 24)}, *VECTOR),
    "gemm, one number as bias": (with_relu(node("Gemm", "h", "w", "b")), {"w": (24, 16), "b": (1,)}, *VECTOR),
    "matmul": (with_relu(node("MatMul", "h", "w")), {"w": (24, 16)}, ["n", 5, 24], ["n", 5, 16]),
    "matmul from the left": (with_relu(node("MatMul", "w", "h")), {"w": (16, 24)}, ["n", 24, 5], ["n", 16, 5]),
    "matmul and add": (
        with_relu(
            helper.make_node("MatMul", ["h", "w"], ["m"], name="layer"), helper.make_node("Add", ["b", "m"], ["y"], name="add")
        ),
        {"w": (24, 16), "b": (16,)}, *VECTOR,
    ),
    "transposed by a node": (
        with_relu(helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]), node("MatMul", "h", "wt")), {"w": (16, 24)},
        *VECTOR,
    ),
    "conv": (
        with_relu(node("Conv", "h", "w", "b", strides=[2, 1], pads=[1, 0, 2, 1], dilations=[1, 2])),
        {"w": (16, 6, 3, 2), "b": (16,)}, ["n", 6, 9, 8], ["n", 16, 5, 7],
    ),
    "conv, same padding": (
        with_relu(node("Conv", "h", "w", auto_pad="SAME_LOWER", strides=[2, 2], kernel_shape=[3, 3])), {"w": (16, 6, 3, 3)},
        ["n", 6, 9, 8], ["n", 16, 5, 4],
    ),
    "conv of one axis": (with_relu(node("Conv", "h", "w", "b")), {"w": (16, 6, 4), "b": (16,)}, ["n", 6, 9], ["n", 16, 6]),
    "conv of three axes": (
        with_relu(node("Conv", "h", "w")), {"w": (16, 3, 2, 2, 2)}, ["n", 3, 4, 4, 4], ["n", 16, 3, 3, 3],
    ),
}  # fmt: skip


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_layer_becomes_two_of_the_rank_that_the_ratio_asks_for(name, data):
    nodes, stored, x, y = CASES[name]
    model = net(nodes, stored, x, y)
    result = onnxprune.prune(model, "svd", 0.5, budget="uniform", options={"data": data}, repair="none", **QUIET)
    (row,) = result.report["ranks"]
    size = stored["w"]
    out = size[0] if nodes[-1].op_type == "Conv" or size[0] == 16 else size[1]
    inputs = int(np.prod(size)) // out
    assert row["rank"] == int(0.5 * out * inputs / (out + inputs))
    after = arrays(result.model)
    assert "w" not in after
    assert after["w@first"].size + after["w@second"].size == row["parameters"] == row["rank"] * (out + inputs)
    assert result.report["pruned"]["parameters"] == sum(v.size for v in after.values())
    ops = [n.op_type for n in result.model.graph.node]
    kind = next(n.op_type for n in nodes if n.name == "layer")
    assert ops[1:3] == [{"Gemm": "MatMul"}.get(kind, kind), kind]
    assert result.model.graph.node[2].name == "layer"
    onnx.checker.check_model(result.model, full_check=True)
    macs = [result.report[which]["macs"] for which in ("original", "pruned")]
    if kind != "Conv":
        assert macs[1] * out * inputs == macs[0] * row["parameters"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("data", [True, False])
def test_weights_of_low_rank_are_met_exactly(name, data):
    """A layer whose matrix has rank 2 gives what it gave, whatever the orientation, alpha, beta, pads or strides."""
    nodes, stored, x, y = CASES[name]
    model = net(nodes, stored, x, y)
    rng = np.random.default_rng(1)
    weight = next(t for t in model.graph.initializer if t.name == "w")
    shape = tuple(weight.dims)
    thin = rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, int(np.prod(shape[1:]))))
    weight.CopyFrom(numpy_helper.from_array(thin.reshape(shape).astype(np.float32), "w"))
    result = onnxprune.prune(model, "svd", 0.5, budget="uniform", options={"data": data}, repair="none", **QUIET)
    given = rng.standard_normal([3 if n == "n" else n for n in x]).astype(np.float32)
    assert run(result.model, given) == pytest.approx(run(model, given), rel=1e-3, abs=1e-4)
    assert result.report["ranks"][0]["lost"] < 1e-6


@pytest.mark.parametrize(
    "name", ["gemm", "gemm, plain", "gemm, scaled", "gemm without bias", "matmul and add", "conv of one axis"]
)
def test_the_bias_takes_up_the_mean_of_what_is_lost(name):
    """Over the calibration inputs the mean of every output stays, whatever alpha and beta: that is what the best bias does."""
    nodes, stored, x, y = CASES[name]
    model = net(nodes, stored, x, y)
    data = np.random.default_rng(1).standard_normal([60 if n == "n" else n for n in x]).astype(np.float32)
    quiet = {"budget": "uniform", "repair": "none", "latency": False, "device": "cpu"}
    result = onnxprune.prune(model, "svd", 0.6, data=data, test_data=data, **quiet)
    before, after = run(model, data), run(result.model, data)
    axes = (0, *range(2, before.ndim))
    assert after.mean(axes) == pytest.approx(before.mean(axes), abs=1e-3)
    assert np.abs(after - before).max() > 0.1


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 21])
@pytest.mark.parametrize("name", ["gemm", "gemm, scaled", "matmul and add", "conv"])
def test_every_opset(name, opset):
    nodes, stored, x, y = CASES[name]
    model = net(nodes, stored, x, y, opset=opset, ir=3 if opset == 7 else 8)
    result = onnxprune.prune(model, "svd", 0.5, **QUIET)
    assert len(result.model.graph.node) == len(model.graph.node) + 1


def test_the_best_rank_on_the_inputs_beats_that_of_the_weights():
    nodes, stored, x, y = CASES["matmul and add"]
    stored = stored | {"mix": (24, 24)}
    rng = np.random.default_rng(2)
    mix = (rng.standard_normal((24, 24)) * 0.7 ** np.arange(24)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "mix"], ["g"], name="mixing"), helper.make_node("Relu", ["g"], ["h"]), *nodes[1:]]
    model = net(nodes, stored | {"mix": mix}, x, y)
    sets = {
        "data": rng.standard_normal((400, 24)).astype(np.float32),
        "test_data": rng.standard_normal((400, 24)).astype(np.float32),
    }
    errors = {}
    for data in (True, False):
        result = onnxprune.prune(
            model, "svd", 0.6, budget="uniform", options={"data": data}, repair="none", skip=["mix"], latency=False, **sets
        )
        (deviation,) = result.report["deviation"].values()
        errors[data] = deviation["relative_l2"]
    assert errors[True] < 0.7 * errors[False]


def test_the_refit_brings_the_outputs_nearer_and_touches_what_reads_them():
    rng = np.random.default_rng(3)
    sets = {
        "data": rng.standard_normal((600, 3, 8, 8)).astype(np.float32),
        "test_data": rng.standard_normal((200, 3, 8, 8)).astype("f"),
    }
    quiet = {"latency": False, "device": "cpu"}
    plain = onnxprune.prune(tiny_network(), "svd", 0.7, budget="uniform", options={"data": False}, repair="none", **quiet, **sets)
    fitted = onnxprune.prune(tiny_network(), "svd", 0.7, budget="uniform", options={"data": False}, **quiet, **sets)
    (before,), (after,) = (list(r.report["deviation"].values()) for r in (plain, fitted))
    assert after["relative_l2"] < 0.8 * before["relative_l2"]
    a, b = arrays(plain.model), arrays(fitted.model)
    assert np.array_equal(a["w2@first"], b["w2@first"])
    assert not np.array_equal(a["w2@second"], b["w2@second"])
    assert not np.array_equal(a["w4"], b["w4"])
    assert [entry["layer"] for entry in fitted.report["repair"]["layers"]] == ["layer2", "layer3", "layer4"]


def test_the_original_runs_beside_the_result_whatever_way_its_weights_are_stored():
    """The refit pairs nodes off: weights behind a Transpose, in a Constant node, and a bias in one."""
    rng = np.random.default_rng(0)
    kernel, bias = rng.standard_normal((16, 24)).astype(np.float32), rng.standard_normal(16).astype(np.float32)
    nodes = with_relu(
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(kernel, "inner")),
        helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(bias, "inner2")),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "wt"], ["m"], name="layer"),
        helper.make_node("Add", ["m", "b"], ["s"], name="add"),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="last"),
    )
    model = net(nodes, {"w2": (16, 16)}, *VECTOR)
    result = onnxprune.prune(model, "svd", 0.5, budget="uniform", **QUIET)
    assert [entry["layer"] for entry in result.report["repair"]["layers"]] == ["layer", "last"]
    assert all(entry["error_after"] <= entry["error_before"] for entry in result.report["repair"]["layers"])
    assert "Constant" not in {n.op_type for n in result.model.graph.node}


def test_shared_weights_stay_shared():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Add", ["a", "b1"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["m"], name="second"),
        helper.make_node("Add", ["m", "b2"], ["y"]),
    ]
    model = net(nodes, {"w": (20, 20), "b1": (20,), "b2": (20,)}, ["n", 20], ["n", 20])
    result = onnxprune.prune(model, "svd", 0.5, **QUIET)
    reads = [list(n.input) for n in result.model.graph.node if n.op_type == "MatMul"]
    assert [r[1] for r in reads] == ["w@first", "w@second", "w@first", "w@second"]
    assert set(result.report["repair"]["left_out"].values()) == {"its weights are shared with another layer"}
    after = arrays(result.model)
    before = arrays(model)
    shifts = [next(v for n, v in after.items() if n.startswith(f"{b}@")) - before[b] for b in ("b1", "b2")]
    assert shifts[0] == pytest.approx(shifts[1], abs=1e-5)
    assert np.abs(shifts[0]).max() > 1e-3


LEFT = {
    "grouped": (
        node("Conv", "h", "w", group=2), {"w": (16, 3, 3, 3)}, ["n", 6, 9, 8], ["n", 16, 7, 6], "its groups are thin already",
    ),
    "depthwise": (
        node("Conv", "h", "w", group=16), {"w": (16, 1, 3, 3)}, ["n", 16, 9, 8], ["n", 16, 7, 6], "its groups are thin already",
    ),
    "transposed": (
        node("ConvTranspose", "h", "w"), {"w": (16, 12, 3, 3)}, ["n", 16, 9, 8], ["n", 12, 11, 10], "it is a transposed conv",
    ),
    "narrow": (node("MatMul", "h", "w"), {"w": (24, 10)}, ["n", 24], ["n", 10], "it has 10 outputs"),
    "recurrent": (
        helper.make_node("LSTM", ["h", "w", "r"], ["y"], hidden_size=16, name="layer"), {"w": (1, 64, 24), "r": (1, 64, 16)},
        [5, "n", 24], [5, 1, "n", 16], "its matrices lie inside its node",
    ),
    "one input": (node("MatMul", "h", "w"), {"w": (1, 24)}, ["n", 1], ["n", 24], "rank 1 would be no smaller"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_alone_is_told_with_the_reason(name):
    made, stored, x, y, words = LEFT[name]
    with pytest.raises(NothingToPruneError, match=words):
        onnxprune.prune(net(with_relu(made), stored, x, y), "svd", 0.5, **QUIET)


@pytest.mark.parametrize(("target", "key"), [("params=0.6", "parameters"), ("macs=0.7", "macs"), ("bytes=0.6", "bytes")])
@pytest.mark.parametrize("budget", ["auto", "uniform"])
def test_targets_are_met_and_not_by_far(target, key, budget):
    nodes = [helper.make_node("Conv", ["x", "w0"], ["c"], name="a", pads=[1, 1, 1, 1])]
    nodes += [helper.make_node("Relu", ["c"], ["r"]), helper.make_node("Conv", ["r", "w1", "b1"], ["d"], name="b")]
    nodes += [helper.make_node("GlobalAveragePool", ["d"], ["p"]), helper.make_node("Flatten", ["p"], ["f"])]
    nodes += [helper.make_node("Gemm", ["f", "w2"], ["y"], name="c")]
    model = net(nodes, {"w0": (24, 6, 3, 3), "w1": (40, 24, 3, 3), "b1": (40,), "w2": (40, 30)}, ["n", 6, 9, 9], ["n", 30])
    report = onnxprune.prune(model, "svd", target=target, budget=budget, **QUIET).report
    share = report["pruned"][key] / report["original"][key]
    wanted = float(target.split("=")[1])
    # Names and nodes are in the file's bytes too.
    assert wanted - 0.08 < share <= wanted + (0.03 if key == "bytes" else 0)


def test_auto_takes_ranks_where_the_spectrum_says_that_little_is_lost():
    rng = np.random.default_rng(0)
    flat = np.linalg.qr(rng.standard_normal((24, 24)))[0].astype(np.float32)
    steep = (flat * 0.5 ** np.arange(24)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "flat"], ["a"], name="a"),
        helper.make_node("MatMul", ["a", "steep"], ["y"], name="b"),
    ]
    model = net(nodes, {"flat": flat, "steep": steep}, ["n", 24], ["n", 24])
    rows = onnxprune.prune(model, "svd", 0.3, options={"data": False}, repair="none", **QUIET).report["ranks"]
    assert rows[0]["rank"] is None
    assert 1 <= rows[1]["rank"] <= 9
    assert rows[0]["reason"]


def test_a_wrong_rewrite_does_not_leave(monkeypatch):
    from onnxprune.contract import Factors
    from onnxprune.jobs import ranks

    plain = ranks.factorised

    def spoilt(graph, splits):
        return plain(graph, [ranks.Split(s.layers, Factors(s.factors.first, -s.factors.second, s.factors.shift)) for s in splits])

    monkeypatch.setattr(ranks, "factorised", spoilt)
    with pytest.raises(ProofError, match="differ from their product"):
        onnxprune.prune(tiny_network(), "svd", 0.5, **QUIET)


def test_half_precision_stays_half_precision():
    nodes, stored, x, y = CASES["conv"]
    model = net(nodes, stored, x, y, kind=np.float16)
    result = onnxprune.prune(model, "svd", 0.5, **QUIET)
    assert all(v.dtype == np.float16 for v in arrays(result.model).values())


def test_external_data_keeps_its_style(tmp_path):
    nodes, stored, x, y = CASES["gemm"]
    onnx.save(net(nodes, stored, x, y), tmp_path / "in.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    result = onnxprune.prune(tmp_path / "in.onnx", "svd", 0.5, output=tmp_path / "out.onnx", **QUIET)
    written = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    held = {t.name: t.data_location for t in written.graph.initializer}
    assert {held[n] for n in ("w@first", "w@second")} == {TensorProto.EXTERNAL}
    assert result.report["pruned"]["bytes"] == sum(p.stat().st_size for p in tmp_path.glob("out.onnx*"))


def test_a_result_can_be_made_thin_again():
    nodes, stored, x, y = CASES["conv"]
    once = onnxprune.prune(net(nodes, stored, x, y), "svd", 0.2, budget="uniform", **QUIET)
    twice = onnxprune.prune(once.model, "svd", 0.3, budget="uniform", **QUIET)
    assert len(twice.model.graph.node) > len(once.model.graph.node)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ratio": 0.5, "align": 8}, "align .8. has no meaning"),
        ({"pattern": "2:4"}, "pattern .2:4. has no meaning"),
        ({"ratio": 0.5, "reweigh": False}, "no reweigh has no meaning"),
        ({"ratio": 0.5, "sparse_storage": True}, "sparse storage"),
        ({"ratio": 0.5, "sequential": False}, "parallel has no meaning"),
        ({"ratio": 0.5, "budget": "row"}, "for weights, not for ranks"),
        ({"target": "latency=0.5"}, "give a target of macs instead"),
        ({"target": "params=0.01"}, "cannot be reached: with every layer at rank 1"),
    ],
)
def test_what_makes_no_sense_is_refused(given, words):
    with pytest.raises(UsageError, match=words):
        onnxprune.prune(tiny_network(), "svd", **given, **QUIET)


def test_only_and_skip_name_layers_or_weights():
    rows = onnxprune.prune(tiny_network(), "svd", 0.5, budget="uniform", skip=["layer2"], repair="none", **QUIET).report["ranks"]
    assert [row["rank"] is not None for row in rows] == [False, False, True, False]
    assert [row["reason"] for row in rows][1] == "not chosen"
    with pytest.raises(UnknownNameError, match="layr1"):
        onnxprune.prune(tiny_network(), "svd", 0.5, only=["layr1"], **QUIET)


def test_the_auto_budget_asks_what_errors_do_to_the_outputs(monkeypatch):
    from onnxprune.decide.weights import Views

    def ranks(**gains):
        monkeypatch.setattr(Views, "gains", lambda self, found: {site.name: gains.get(site.name, 1.0) for site in found})
        rows = onnxprune.prune(tiny_network(), "svd", 0.5, samples=24, batch=4, latency=False, repair="none").report["ranks"]
        return {row["name"]: row["parameters"] for row in rows}

    assert ranks(w2=100.0)["w2"] > ranks(w2=0.01)["w2"]
    assert ranks(w3=100.0)["w3"] > ranks(w3=0.01)["w3"]
