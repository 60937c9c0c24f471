"""Weights set to zero through the whole pipeline: every kind of layer, exact counts, kept bytes, repair, what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.contract import WeightMethod
from onnxprune.errors import NothingToPruneError, UnknownNameError, UsageError
from onnxprune.methods import METHODS
from onnxprune.testing import tiny_network

QUIET = {"latency": False, "samples": 48, "batch": 8, "device": "cpu"}


def arrays(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def net(nodes, stored, inputs, outputs, opset=17):
    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(v if isinstance(v, np.ndarray) else rng.standard_normal(v).astype(np.float32), n)
        for n, v in stored.items()
    ]
    values = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in each.items()] for each in (inputs, outputs)]
    graph = helper.make_graph(nodes, "net", *values, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def recurrent(op="LSTM", gates=4, directions=2):
    direction = "bidirectional" if directions == 2 else "forward"
    nodes = [
        helper.make_node(op, ["x", "w", "r", "b"], ["y"], hidden_size=6, direction=direction, name="rnn"),
        helper.make_node("Transpose", ["y"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["out"], name="head"),
    ]
    stored = {"w": (directions, gates * 6, 5), "r": (directions, gates * 6, 6), "b": (directions, 2 * gates * 6)}
    stored |= {"shape": np.array([0, 0, -1]), "head": (directions * 6, 3)}
    return net(nodes, stored, {"x": [7, "n", 5]}, {"out": [7, "n", 3]})


def convolutions():
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], name="plain"),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], group=4, pads=[1, 1, 1, 1], name="grouped"),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("ConvTranspose", ["r2", "w3"], ["c3"], strides=[2, 2], group=2, name="transposed"),
        helper.make_node("GlobalAveragePool", ["c3"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], alpha=0.5, name="scaled"),
    ]
    stored = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (12, 2, 3, 3), "w3": (12, 4, 2, 2), "w4": (8, 5), "b4": (5,)}
    return net(nodes, stored, {"x": ["n", 3, 8, 8]}, {"y": ["n", 5]})


MODELS = {"tiny": tiny_network, "convolutions": convolutions, "lstm": recurrent}
MODELS |= {"gru": lambda: recurrent("GRU", 3), "rnn": lambda: recurrent("RNN", 1, 1)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_every_layer_loses_its_share_and_what_stays_is_untouched(name, method):
    model = MODELS[name]()
    result = onnxprune.prune(model, method, 0.5, repair="none", **QUIET)
    before, after = arrays(model), arrays(result.model)
    rows = {row["name"]: row for row in result.report["weights"]}
    assert set(rows) == {n for n, v in before.items() if v.ndim > 1 and n != "b"}
    for weight in rows:
        gone = after[weight] == 0
        assert gone.sum() == rows[weight]["zeros"]
        assert gone.sum() == pytest.approx(gone.size / 2, abs=1)
        assert np.array_equal(after[weight][~gone], before[weight][~gone])
        if method == "magnitude":
            assert np.abs(before[weight][gone]).max() <= np.abs(before[weight][~gone]).min()
    assert all(np.array_equal(before[n], after[n]) for n in before if n not in rows)
    onnxruntime.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["tiny", "convolutions"])
def test_the_refit_keeps_the_zeros_and_brings_the_outputs_nearer(name):
    model = MODELS[name]()
    plain = onnxprune.prune(model, "magnitude", 0.6, repair="none", **QUIET)
    refitted = onnxprune.prune(model, "magnitude", 0.6, **QUIET)
    a, b = arrays(plain.model), arrays(refitted.model)
    for row in plain.report["weights"]:
        assert np.array_equal(a[row["name"]] == 0, b[row["name"]] == 0)
    (before,), (after,) = (list(r.report["deviation"].values()) for r in (plain, refitted))
    assert after["relative_l2"] < 0.8 * before["relative_l2"]
    assert {entry["layer"] for entry in refitted.report["repair"]["layers"]} >= {"layer1"} if name == "tiny" else True


def test_recurrent_matrices_are_pruned_and_said_not_to_be_refitted():
    report = onnxprune.prune(recurrent(), "magnitude", 0.5, **QUIET).report
    assert report["repair"]["left_out"] == {"rnn": "LSTM is not refitted"}
    assert [entry["layer"] for entry in report["repair"]["layers"]] == ["head"]


@pytest.mark.parametrize("method", ["obs", "sipp-det", "magnitude-global"])
def test_a_second_run_at_the_same_ratio_takes_nothing_more(method):
    once = onnxprune.prune(convolutions(), "magnitude-global", 0.5, **QUIET)
    twice = onnxprune.prune(once.model, method, 0.5, **QUIET)
    assert [row["zeros"] for row in twice.report["weights"]] == [row["zeros"] for row in once.report["weights"]]


def test_a_layer_whose_weight_is_turned_on_the_way_is_refitted_and_nothing_else_is_said():
    nodes = [
        helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0], name="turn"),
        helper.make_node("MatMul", ["x", "turned"], ["h"], name="layer"),
    ]
    repair = onnxprune.prune(net(nodes, {"w": (16, 8)}, {"x": ["n", 8]}, {"h": ["n", 16]}), "magnitude", 0.5, **QUIET).report[
        "repair"
    ]
    assert [entry["layer"] for entry in repair["layers"]] == ["layer"]
    assert repair["left_out"] == {}


@pytest.mark.parametrize("method", ["magnitude", "wanda", "obs"])
def test_a_model_of_nothing_but_a_recurrent_node_is_pruned(method):
    node = helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=6, name="rnn")
    model = net([node], {"w": (1, 18, 5), "r": (1, 18, 6)}, {"x": [4, "n", 5]}, {"y": [4, 1, "n", 6]})
    rows = onnxprune.prune(model, method, 0.5, **QUIET).report["weights"]
    assert sum(row["zeros"] for row in rows) == 99


def test_statistics_of_recurrent_weights_are_those_of_what_they_multiply():
    """Wanda on R with one unit that is always zero: its column goes first."""
    model = recurrent("RNN", 1, 1)
    for tensor in model.graph.initializer:
        if tensor.name in ("w", "r", "b"):
            value = numpy_helper.to_array(tensor).copy()
            value[:, 2] = 0.0  # unit 2 gets nothing, tanh(0) = 0
            if tensor.name == "b":
                value[:, 8] = 0.0
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    result = onnxprune.prune(model, "wanda", 0.3, repair="none", **QUIET)
    assert bool((arrays(result.model)["r"][:, :, 2] == 0).all())


def test_a_shared_matrix_is_pruned_once_and_stays_shared():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="second"),
    ]
    model = net(nodes, {"w": (6, 6)}, {"x": ["n", 6]}, {"y": ["n", 6]})
    result = onnxprune.prune(model, "wanda", 0.5, **QUIET)
    assert [n.input[1] for n in result.model.graph.node if n.op_type == "MatMul"] == ["w", "w"]
    assert int((arrays(result.model)["w"] == 0).sum()) == 18
    assert result.report["weights"][0]["layers"] == ["first", "second"]


def test_a_table_that_is_looked_up_too_is_left_alone():
    nodes = [
        helper.make_node("Cast", ["at"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["x", "table"], ["m"], name="mul"),
        helper.make_node("MatMul", ["m", "w"], ["z"], name="other"),
        helper.make_node("ReduceMean", ["e"], ["s"], axes=[0], keepdims=0),
        helper.make_node("Add", ["z", "s"], ["y"]),
    ]
    model = net(nodes, {"table": (6, 4), "w": (4, 4)}, {"x": ["n", 6], "at": [2]}, {"y": ["n", 4]})
    result = onnxprune.prune(model, "magnitude", 0.5, repair="none", **QUIET)
    assert np.array_equal(arrays(result.model)["table"], arrays(model)["table"])
    assert [row["name"] for row in result.report["weights"]] == ["w"]


def test_a_pattern_holds_in_the_file_and_misfits_are_named():
    model = convolutions()
    report = onnxprune.prune(model, "magnitude", pattern="2:4", repair="none", **QUIET)
    after = arrays(report.model)
    # (in, out) of a Gemm without transB: neighbours along axis 0.
    assert bool(((after["w4"].reshape(2, 4, 5) != 0).sum(1) == 2).all())
    reasons = {row["name"]: row["reason"] for row in report.report["weights"]}
    assert reasons["w1"] == "its inputs are no multiple of 4"
    assert reasons["w4"] is None


@pytest.mark.parametrize("name", sorted(name for name, cls in METHODS.items() if issubclass(cls, WeightMethod)))
def test_every_weight_method_keeps_the_pattern_in_every_kind_of_layer(name):
    """Of every four input channels at one kernel position two stay at most, as sparse tensor cores read them."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1], name="plain"),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], group=2, name="grouped"),
        helper.make_node("ConvTranspose", ["c2", "w3"], ["c3"], name="transposed"),
        helper.make_node("GlobalAveragePool", ["c3"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w4"], ["g"], transB=1, name="gemm"),
        helper.make_node("MatMul", ["g", "w5"], ["y"], name="matmul"),
    ]
    stored = {"w1": (8, 4, 3, 3), "w2": (8, 4, 3, 3), "w3": (8, 8, 2, 2), "w4": (12, 8), "w5": (12, 3)}
    model = net(nodes, stored, {"x": ["n", 4, 8, 8]}, {"y": ["n", 3]})
    result = onnxprune.prune(model, name, pattern="2:4", **QUIET)
    after = arrays(result.model)
    blocks = {
        "w1": after["w1"].reshape(8, 1, 4, 3, 3), "w2": after["w2"].reshape(8, 1, 4, 3, 3),
        "w3": np.moveaxis(after["w3"].reshape(2, 4, 8, 2, 2), 2, 0),
        "w4": after["w4"].reshape(12, 2, 4), "w5": after["w5"].T.reshape(3, 3, 4),
    }  # fmt: skip
    kernels = METHODS[name].target == "kernel"
    for weight, value in blocks.items():
        there = (value != 0).sum(2)
        if not kernels or weight in ("w1", "w2", "w3"):
            assert there.max() <= 2, weight
            assert METHODS[name].may_keep_fewer or there.min() == 2, weight
    told = result.report["sparsity"]["summary"]
    assert "it has no kernels for 2:4; TensorRT has)" in told


def test_the_ends_stay_whole_where_asked():
    rows = onnxprune.prune(tiny_network(), "magnitude", 0.5, keep_ends=True, repair="none", **QUIET).report["weights"]
    assert [row["zeros"] > 0 for row in rows] == [False, True, True, False]


def test_only_and_skip_name_layers_or_weights():
    chosen = {"only": ["layer*"], "skip": ["w2"]}
    rows = onnxprune.prune(tiny_network(), "magnitude", 0.5, **chosen, repair="none", **QUIET).report["weights"]
    assert [row["zeros"] > 0 for row in rows] == [True, False, True, True]
    with pytest.raises(UnknownNameError, match="layr1"):
        onnxprune.prune(tiny_network(), "magnitude", 0.5, only=["layr1"], **QUIET)


@pytest.mark.parametrize("budget", ["uniform", "global", "row"])
def test_the_share_of_the_whole_is_met(budget):
    sparsity = onnxprune.prune(tiny_network(), "magnitude", 0.7, budget=budget, repair="none", **QUIET).report["sparsity"]
    assert sparsity["share"] == pytest.approx(0.7, abs=0.02 if budget == "row" else 0.002)


def test_params_is_a_target_of_weights():
    sparsity = onnxprune.prune(tiny_network(), "magnitude", target="params=0.25", repair="none", **QUIET).report["sparsity"]
    assert sparsity["share"] == pytest.approx(0.75, abs=0.002)


def test_statistics_beyond_the_memory_budget_come_in_several_passes(monkeypatch):
    from onnxprune.decide import weights

    whole = onnxprune.prune(tiny_network(), "wanda", 0.5, repair="none", budget="global", **QUIET)
    monkeypatch.setattr(weights, "STATISTICS_BUDGET", 1)
    passes = []
    monkeypatch.setattr(weights, "observe", lambda *a, _plain=weights.observe, **k: passes.append(1) or _plain(*a, **k))
    apart = onnxprune.prune(tiny_network(), "wanda", 0.5, repair="none", budget="global", **QUIET)
    assert len(passes) == 8  # four layers, once for the scores and once for the decisions
    assert all(np.array_equal(a, arrays(apart.model)[n]) for n, a in arrays(whole.model).items())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ratio": 0.5, "align": 8}, "align .8. has no meaning"),
        ({"ratio": 0.5, "kinds": "head,neuron"}, "kinds .neuron, head. has no meaning"),
        ({"ratio": 0.5, "reweigh": False}, "no reweigh has no meaning"),
        ({"ratio": 0.5, "through_norms": True}, "through norms"),
        ({"target": "macs=0.5"}, "zeros bring no less macs"),
        ({"ratio": 0.5, "budget": "fair"}, "fair"),
        ({"ratio": 0.5, "budget": "bound"}, "not possible with this method"),
        ({"pattern": "4:2"}, "0 < N < M"),
        ({"pattern": "half"}, "N:M"),
        ({"pattern": "2:4", "ratio": 0.5}, "in one way"),
    ],
)
def test_what_makes_no_sense_is_refused(given, words):
    with pytest.raises(UsageError, match=words):
        onnxprune.prune(tiny_network(), "magnitude", **given, **QUIET)


@pytest.mark.parametrize("given", [{"keep_ends": True}, {"budget": "row"}])
def test_channel_methods_refuse_what_is_for_weights(given):
    with pytest.raises(UsageError):
        onnxprune.prune(tiny_network(), "l1-channel", 0.5, **given, **QUIET)


def matmuls(count):
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"], name=f"m{i}") for i in range(count)]
    ends = [{name: ["n", 12]} for name in ("h0", f"h{count}")]
    return net(nodes, {f"w{i}": (12, 12) for i in range(count)}, *ends)


@pytest.mark.parametrize("method", ["magnitude", "svd"])
@pytest.mark.parametrize(
    ("layers", "given", "says"),
    [
        (1, {"keep_ends": True}, "the first and the last layer, and there is only one; leave it out"),
        (2, {"keep_ends": True}, "the first and the last layer, and these are all there is; leave it out"),
        (3, {"keep_ends": True, "only": ["m0", "m2"]}, "the first and the last layer, and no other is chosen; leave it out"),
        (3, {"keep_ends": True, "skip": ["w1"]}, "no other is chosen"),
        (2, {"skip": ["m*"]}, "--only and --skip leave no layer; leave one of them out"),
        (2, {"skip": ["m1"], "only": ["w1"], "keep_ends": True}, "--only and --skip leave no layer"),
    ],
)
def test_nothing_to_prune_says_why(method, layers, given, says):
    with pytest.raises(NothingToPruneError, match=says):
        onnxprune.prune(matmuls(layers), method, 0.5, **given, **QUIET)


def test_the_one_layer_between_the_ends_may_go():
    rows = onnxprune.prune(matmuls(3), "magnitude", 0.5, keep_ends=True, **QUIET).report["weights"]
    assert [row["zeros"] for row in rows] == [0, 72, 0]


def test_filters_are_those_of_convolutions():
    with pytest.raises(NothingToPruneError, match=r"no 2-D filter of this model can be removed \('m0': it is no convolution"):
        onnxprune.prune(matmuls(2), "magnitude-kernel", 0.5, **QUIET)
    rows = onnxprune.prune(tiny_network(), "magnitude-kernel", 0.5, **QUIET).report["weights"]
    assert [row["reason"] for row in rows] == [None, None, "it is no convolution", "it is no convolution"]


def test_labels_are_not_guaranteed_by_a_layer_that_is_left_alone():
    with pytest.raises(UsageError, match="by the last layer, and 'm2' is left alone; name another with --only"):
        onnxprune.prune(matmuls(3), "coreset-weight-det", guarantee_labels=0.5, keep_ends=True, **QUIET)


def test_half_precision_stays_half_precision():
    model = convolutions()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    result = onnxprune.prune(model, "magnitude", 0.5, **QUIET)
    assert all(v.dtype == np.float16 for v in arrays(result.model).values())
