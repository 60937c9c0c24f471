"""Weights that hold NaN or infinity: refused where they are to be pruned, else left as they are; the proof stays strict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune.errors import ModelError, ProofError
from onnxprune.graph import surgeon
from onnxprune.jobs import channels as jobs
from onnxprune.rewrite.cut import cut
from onnxprune.testing import tiny_network

SAMPLES = Path(__file__).parents[2] / "samples"
QUIET = {"latency": False, "device": "cpu", "samples": 48, "batch": 8}
METHODS = {
    "coreset-channel": {"align": 1},
    "l2-channel": {"align": 1, "repair": "none"},
    "obs": {},
    "magnitude-global": {},
    "svd": {},
}


def array(model, name):
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def change(model, name, to):
    next(t for t in model.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(to, name))


def two_heads(value=np.inf):
    """The tiny network and a second output, of a layer all of whose weights are `value`."""
    model = tiny_network()
    surgeon.add_initializer(model, numpy_helper.from_array(np.full((16, 7), value, np.float32), "w5"))
    source = next(n for n in model.graph.node if n.name == "layer4").input[0]
    model.graph.node.append(onnx.helper.make_node("MatMul", [source, "w5"], ["z"], name="layer5"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["batch", 7]))
    return model


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", METHODS)
def test_a_head_that_is_skipped_stays_and_the_other_is_pruned_as_if_it_were_alone(method, value):
    model, skip = two_heads(value), {"skip": ["layer4", "layer5"]}
    result = onnxprune.prune(model, method, 0.4, **QUIET | METHODS[method] | skip)
    (told,) = [text for text in result.report["warnings"] if "NaN" in text]
    assert told.startswith("NaN or infinity in the weights 'w5' of layer 'layer5', which stay as they are")
    assert result.report["repair"]["left_out"].get("layer5", "hold NaN or infinity").endswith("hold NaN or infinity")
    assert result.report["deviation"]["y4"]["relative_l2"] < 1
    assert np.isnan(result.report["deviation"]["z"]["relative_l2"])
    assert np.array_equal(array(result.model, "w5"), array(model, "w5"), equal_nan=True)
    alone = onnxprune.prune(tiny_network(), method, 0.4, **QUIET | METHODS[method] | {"skip": ["layer4"]}).model
    for tensor in alone.graph.initializer:
        assert array(result.model, tensor.name) == pytest.approx(numpy_helper.to_array(tensor), rel=1e-4, abs=1e-5), tensor.name


@pytest.mark.parametrize("method", METHODS)
def test_what_is_to_be_pruned_has_to_be_numbers(method):
    model = tiny_network()
    weight = array(model, "w2").copy()
    weight[3, 2, 1, 1] = np.nan
    change(model, "w2", weight)
    with pytest.raises(ModelError, match=r"weight 'w2' of layer 'layer2' holds NaN or infinity; .* --skip 'layer2'"):
        onnxprune.prune(model, method, 0.4, **QUIET | METHODS[method])
    with pytest.raises(ModelError, match="and so do all outputs of the model; train or export it again"):
        onnxprune.prune(model, method, 0.4, skip=["layer2"], only=["layer4"] if method != "svd" else ["layer3"], **QUIET)


@pytest.mark.parametrize("method", ["l1-channel", "magnitude"])
def test_biases_count_too(method):
    model = onnx.load(SAMPLES / "models" / "digits_lenet300.onnx")
    data = np.load(SAMPLES / "data" / "digits_calibration.npz")["image"][:40]
    for name in ("fc3.bias", "fc2.bias"):
        bias = array(model, name).copy()
        bias[1] = np.nan
        change(model, name, bias)
        layer = f"/{name.split('.')[0]}/Gemm"
        with pytest.raises(ModelError, match=f"weight '{name}' of layer '{layer}' holds NaN or infinity; train"):
            onnxprune.prune(model, method, 0.4, only=[layer], data=data, **QUIET)
        if name == "fc3.bias":
            result = onnxprune.prune(model, method, 0.4, skip=[layer], data=data, **QUIET)
            assert any("'fc3.bias' of layer '/fc3/Gemm', which stay as they are" in text for text in result.report["warnings"])
            assert np.array_equal(array(result.model, "fc3.bias"), bias, equal_nan=True)
            assert result.report["repair"]["left_out"].keys() == {"/fc3/Gemm"}
        else:
            with pytest.raises(ModelError, match="so do all outputs"):
                onnxprune.prune(model, "magnitude", 0.4, skip=[layer, "/fc3/Gemm"], data=data, **QUIET)


def test_matrices_inside_recurrent_nodes_count_too():
    rng = np.random.default_rng(0)
    stored = {"w": rng.standard_normal((1, 24, 5)), "r": rng.standard_normal((1, 24, 6)), "head": rng.standard_normal((6, 4))}
    stored["r"][0, 3, 3] = np.inf
    nodes = [
        onnx.helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], hidden_size=6, name="lstm"),
        onnx.helper.make_node("MatMul", ["h", "head"], ["y"], name="head"),
    ]
    values = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", [3, "n", 5]), ("y", [1, "n", 4]))
    ]
    tensors = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in stored.items()]
    graph = onnx.helper.make_graph(nodes, "net", values[:1], values[1:], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match=r"weight 'r' of layer 'lstm\.R' holds NaN or infinity"):
        onnxprune.prune(model, "magnitude", 0.4, **QUIET)


def test_labels_cannot_be_guaranteed_through_weights_that_are_no_numbers():
    model = onnx.load(SAMPLES / "models" / "digits_lenet300.onnx")
    weight = array(model, "fc3.weight").copy()
    weight[2] = np.nan
    change(model, "fc3.weight", weight)
    data = np.load(SAMPLES / "data" / "digits_calibration.npz")["image"][:40]
    with pytest.raises(ModelError, match=r"weight 'fc3\.weight' holds NaN"):
        onnxprune.prune(model, "coreset-weight-det", guarantee_labels=0.5, only=["fc2.weight"], data=data, **QUIET)


def test_a_wrong_cut_is_seen_behind_weights_that_are_no_numbers(monkeypatch):
    """All that the wrong channels reach is an output of NaN: with numbers in its place the proof sees them all the same."""
    model = two_heads(np.nan)
    node = next(n for n in model.graph.node if n.name == "layer4")
    node.input[0], node.input[1] = "flat", "w6"
    surgeon.add_initializer(model, numpy_helper.from_array(np.ones((5, 12), np.float32), "w6"))
    given = {"method": "l2-channel", "ratio": 0.4, "align": 1, "repair": "none", "kinds": "channel", **QUIET}
    skip = ["layer3", "layer4", "layer5"]
    report = onnxprune.prune(model, skip=skip, **given).report
    assert report["proof"]["summary"].endswith("; numbers stood for NaN and infinity in both")

    def wrong(graph, network, alive):
        made = cut(graph, network, alive)
        change(made.model, "w3", array(made.model, "w3") * np.float32(1.5))
        return made

    monkeypatch.setattr(jobs, "cut", wrong)
    with pytest.raises(ProofError, match="differs from its masked twin in output 'z'"):
        onnxprune.prune(model, skip=skip, **given)
