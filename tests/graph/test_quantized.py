"""What the nets of the rule tests cannot show of quantised layers: our own twin, scores, costs, the repair and the proof."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.calibration.views import channel_views
from onnxprune.devices import choose_device
from onnxprune.errors import ProofError
from onnxprune.graph.find import find
from onnxprune.graph.prepare import prepare
from onnxprune.graph.quantised import real
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.mask import masked_twin
from onnxprune.rewrite.prove import prove
from tests.graph import cases_integers  # noqa: F401
from tests.graph.cases import CASES
from tests.graph.cases_quantized import BIAS, q8, scales, zeros
from tests.graph.nets import arrays, conv_net, feeds, half, net, node, pruned, run, values

QUANTISED = [
    name
    for name, build in CASES.items()
    if any("Quantize" in n.op_type or "Dequantize" in n.op_type or "Integer" in n.op_type for n in build().model.graph.node)
]


def run_as_written(model: onnx.ModelProto, given) -> list[np.ndarray]:
    """Optimised, ONNX Runtime rounds activations of its own accord where a MatMul has weights of integers."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, given)


@pytest.mark.parametrize("name", [n for n in QUANTISED if CASES[n]().groups])
def test_removed_equals_our_own_twin(name):
    model = CASES[name]().model
    graph, network, made = pruned(model)
    twin = masked_twin(graph, network, network.alive(half(network, 0)))
    given = feeds(model, model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 3)
    for small, whole in zip(run_as_written(made.model, given), run_as_written(twin, given), strict=True):
        assert np.abs(small - whole).max() <= 1e-4 * np.abs(whole).max()


def qdq_net(units: int = 32) -> onnx.ModelProto:
    """A float layer, a quantised one, a float one."""
    nodes = [
        node("MatMul", "x w1", "a", name="first"),
        node("Relu", "a", "r"),
        node("QuantizeLinear", "r xs xz", "q"),
        node("DequantizeLinear", "q xs xz", "d"),
        node("DequantizeLinear", "w s z", "wf", axis=1),
        node("MatMul", "d wf", "h", name="mid"),
        node("Relu", "h", "k"),
        node("MatMul", "k w2", "y", name="last"),
    ]
    stored = {
        "w1": values(12, units), "xs": np.float32(0.02), "xz": np.uint8(0), "w": q8(units, units), "s": scales(units),
        "z": zeros(units), "w2": values(units, 3),
    }  # fmt: skip
    return net(nodes, stored, {"x": ["N", 12]})


@pytest.mark.parametrize("block", [0, 4])
def test_methods_see_the_numbers_that_onnx_runtime_computes_with(block):
    shape = (2, 6) if block else (6,)
    scale, zero = values(*shape, low=0.01, high=0.02), q8(*shape, seed=5)
    dequantise = node("DequantizeLinear", "w s z", "wf", axis=0 if block else 1, **({"block_size": block} if block else {}))
    nodes = [dequantise, node("MatMul", "x wf", "y")]
    fields = {"opset": 21, "ir": 10} if block else {}
    model = net(nodes, {"w": q8(8, 6), "s": scale, "z": zero}, {"x": ["N", 8]}, ("y", "wf"), **fields)
    graph, _ = prepare(model)
    network = find(graph)
    assert np.allclose(real(graph, "w", network.quantised), run(model, feeds(model, 1))[1], atol=1e-6)


def test_views_hold_dequantised_weights():
    graph, _ = prepare(qdq_net())
    network = find(graph)
    first, mid = (network.group[name] for name in ("first", "mid"))
    a, b = channel_views(graph, network, [first, mid], {}, "cpu")
    stored = arrays(graph.model)
    whole = (stored["w"].astype(np.float32) - stored["z"]) * stored["s"]
    assert np.allclose(a.readers[0].weight.numpy(), whole, atol=1e-6)
    assert np.allclose(b.makers[0].weight.numpy(), whole.T, atol=1e-6)


@pytest.mark.parametrize("name", ["qlinear_conv_per_channel", "matmul_integer_per_channel", "qgemm_per_channel_1"])
def test_products_of_integers_are_seen_with_their_scales(name):
    graph, _ = prepare(CASES[name]().model)
    network = find(graph)
    stored = arrays(graph.model)
    layer = network.layer["mid"]
    assert layer.quantised
    axis = 1 if layer.transposed else 0
    spread = [-1 if a == axis else 1 for a in range(stored["w"].ndim)]
    whole = (stored["w"].astype(np.float32) - stored["z"].reshape(spread)) * stored["s"].reshape(spread)
    assert np.allclose(real(graph, "w", network.quantised), whole)
    if "c" in stored and stored["c"].dtype == np.int32:
        assert np.allclose(real(graph, "c", network.quantised), stored["c"] * stored["xs"] * stored["s"])


def test_integers_count_a_byte_each():
    graph, _ = prepare(qdq_net())
    network = find(graph)
    weights = 12 * 32 + 32 * 3 + 32 + 1  # first, last, scales
    assert network.cost().bytes == 4 * weights + 32 * 32 + 32 + 1
    assert network.cost().macs == 12 * 32 + 32 * 32 + 32 * 3
    assert network.cost({"mid": 16}).macs == 12 * 32 + 32 * 16 + 16 * 3


def test_float_layers_are_repaired_and_quantised_ones_left():
    found = onnxprune.prune(qdq_net(), "l2-channel", 0.5, samples=64, latency=False)
    assert found.report["repair"]["left_out"] == {"mid": "its weights are quantised"}
    assert [layer["layer"] for layer in found.report["repair"]["layers"]] == ["last"]
    assert {t.name: t.data_type for t in found.model.graph.initializer}["w"] == TensorProto.INT8


def test_reweighing_leaves_integers_alone():
    model = qdq_net()
    found = onnxprune.prune(model, "coreset-channel", 0.5, samples=64, latency=False, repair="none", budget="uniform")
    assert found.report["repair"]["left_out"] == {"mid": "its weights are quantised"}
    assert set(arrays(found.model)["w"].reshape(-1).tolist()) <= set(arrays(model)["w"].reshape(-1).tolist())


def test_no_statistics_of_integers_are_asked_for():
    data = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    model = CASES["qlinear_conv_per_channel"]().model
    found = onnxprune.prune(model, "coreset-channel", 0.4, data=data, latency=False, align=1)
    assert found.report["groups"][1]["kept"] < 8


def test_scales_that_layers_share_are_copied_in_front_of_their_dequantize_linear():
    graph, _, made = pruned(CASES["dequantised_convs_share_scales"]().model)
    assert set(made.renamed) == {(1, 1), (1, 2), (3, 1), (3, 2)}
    assert {graph.nodes[node].op_type for node, _ in made.renamed} == {"DequantizeLinear"}


def test_a_twin_of_integers_is_silenced_with_zero_points():
    graph, network, _ = pruned(qdq_net())
    alive = network.alive({"first": np.arange(16)})
    twin = arrays(masked_twin(graph, network, alive))
    assert np.array_equal(twin["w"][16:], np.broadcast_to(twin["z"], (16, 32)))
    assert np.array_equal(twin["w"][:16], graph.array("w")[:16])


def test_a_scale_measured_at_run_time_does_not_see_what_went():
    """The channel that sets the scale goes: the twin has to make it zero where it is made."""
    model = CASES["matmul_integer_per_tensor"]().model
    graph, _ = prepare(model)
    weight = graph.array("w1").copy()
    weight[0] *= 50
    next(t for t in model.graph.initializer if t.name == "w1").CopyFrom(numpy_helper.from_array(weight, "w1"))
    graph, _ = prepare(model)
    network = find(graph)
    alive = network.alive({"first": np.arange(1, 6)})
    made, twin = cut(graph, network, alive), masked_twin(graph, network, alive)
    given = feeds(model, 2)
    assert np.allclose(run(made.model, given)[0], run(twin, given)[0], atol=1e-5)


def test_a_wrong_cut_of_a_quantised_model_is_found_out():
    model = qdq_net()
    graph, network, _ = pruned(model)
    device, batches = choose_device("cpu"), [feeds(model, 4)]
    alive, wrong = network.alive({"mid": np.arange(16)}), network.alive({"mid": np.arange(16, 32)})
    assert prove(graph, network, alive, cut(graph, network, alive).model, batches, device) < 1e-6
    with pytest.raises(ProofError):
        prove(graph, network, alive, cut(graph, network, wrong).model, batches, device)


def test_half_precision_weights_behind_a_cast():
    """A bias that two layers share through Casts of their own: each gets a copy in the type that it reads."""
    nodes = [
        node("Cast", "w", "wf", to=TensorProto.FLOAT),
        node("Cast", "c", "cf", to=TensorProto.FLOAT),
        node("Conv", "a wf cf", "m", name="mid"),
        node("Conv", "m w9 cf", "b", name="third"),
    ]
    stored = {
        "w": values(8, 6, 1, 1).astype(np.float16), "c": values(8).astype(np.float16), "w9": values(8, 8, 1, 1),
    }  # fmt: skip
    model = conv_net(nodes, stored, reads=8)
    graph, network, made = pruned(model)
    assert {g.name: g.size for g in network.groups} == {"first": 6, "mid": 8, "third": 8}
    twin = masked_twin(graph, network, network.alive(half(network, 0)))
    given = feeds(model, 2)
    assert np.allclose(run(made.model, given)[0], run(twin, given)[0], atol=1e-4)
    kinds = {t.name: helper.tensor_dtype_to_np_dtype(t.data_type) for t in made.model.graph.initializer}
    assert kinds["c@mid"] == kinds["c@third"] == np.float32


def test_whole_model_in_half_precision():
    nodes = [
        node("Cast", "x", "h", to=TensorProto.FLOAT16),
        node("Conv", "h w1", "a", name="first"),
        node("Relu", "a", "r"),
        node("Conv", "r w2", "b", name="last"),
        node("Cast", "b", "y", to=TensorProto.FLOAT),
    ]
    stored = {"w1": values(16, 3, 3, 3).astype(np.float16), "w2": values(4, 16, 1, 1).astype(np.float16)}
    found = onnxprune.prune(net(nodes, stored, {"x": ["N", 3, 8, 8]}), ratio=0.5, samples=16, latency=False)
    assert {t.data_type for t in found.model.graph.initializer if t.dims} == {TensorProto.FLOAT16}
    assert found.report["groups"][0]["kept"] == 8


def test_bias_of_integers_is_cut_with_its_scales():
    _, _, made = pruned(CASES["dequantised_conv_with_bias"]().model)
    shapes = {t.name: list(t.dims) for t in made.model.graph.initializer}
    assert [shapes[n] for n in (*BIAS, "s", "z")] == [[4]] * 5
