"""Fused nodes become their parts on loading: same outputs, valid, and what was hidden inside can be followed."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.special import erf

from onnxprune.graph.load import load
from onnxprune.graph.unfuse import WRITERS, unfuse
from tests.graph.nets import check, net, node, pruned, run, values

MS = {"com.microsoft": 1}
HIDDEN = (4, 5, 6)


def ms(op, inputs, outputs, **attributes):
    return node(op, inputs, outputs, domain="com.microsoft", **attributes)


def around(middle, weights, *, opset=17, made=6):
    """x (N, 5, 8) -> MatMul 'first' -> a, `middle` makes b of a, b -> MatMul 'last' -> y"""
    stored = {"w1": values(8, 6), "w2": values(made, 4, seed=2)} | weights
    nodes = [node("MatMul", "x w1", "a", name="first"), *middle, node("MatMul", "b w2", "y", name="last")]
    return net(nodes, stored, {"x": ["N", 5, 8]}, opset=opset, imports=MS, output_shape=["N", 5, 4])


def convs(middle, weights):
    stored = {"w1": values(6, 3, 3, 3), "b1": values(6, seed=1), "w2": values(4, 6, 1, 1)} | weights
    nodes = [*middle, node("Conv", "b w2", "y", name="last")]
    return net(nodes, stored, {"x": ["N", 3, 8, 8]}, imports=MS, output_shape=["N", 4, 8, 8])


def activated(activation, **more):
    return ms("FusedConv", "x w1 b1", "b", name="first", activation=activation, pads=[1, 1, 1, 1], **more)


NORM = {"g": values(6, low=0.5, high=2), "be": values(6), "bi": values(6, seed=4)}
SKIP = ms("SkipLayerNormalization", "a a g be bi", "b - - s", name="norm", epsilon=1e-6)
EMBED = {
    "words": values(11, 6), "places": values(7, 6), "kinds": values(2, 6), "ids": np.arange(10).reshape(2, 5).astype(np.int32),
    "which": np.array([[0, 0, 1, 1, 1]] * 2, np.int32), "mask": np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], np.int32),
    "at": np.array([[3, 2, 1, 0, 5]] * 2, np.int32),
}  # fmt: skip


def embedded(inputs, outputs="e count", opset=17):
    """Embeddings of constant ids, so that two are added to a of batch 2."""
    nodes = [
        node("MatMul", "x w1", "a", name="first"),
        ms("EmbedLayerNormalization", inputs, outputs, epsilon=1e-6),
        node("Add", "a e", "c"),
        node("MatMul", "c w2", "y", name="last"),
    ]
    stored = {"w1": values(8, 6), "w2": values(6, 4, seed=2)} | NORM | EMBED
    return net(nodes, stored, {"x": [2, 5, 8]}, opset=opset, imports=MS, output_shape=[2, 5, 4])


# name -> (the net, operators that are left of com.microsoft, groups that can go)
CASES = {
    "conv_relu": (lambda: convs([activated("Relu")], {}), {}, {"first": 6}),
    "conv_leaky": (lambda: convs([activated("LeakyRelu", activation_params=[0.2])], {}), {}, {"first": 6}),
    "conv_clip": (lambda: convs([activated("Clip", activation_params=[0.0, 6.0])], {}), {}, {"first": 6}),
    "conv_hard": (lambda: convs([activated("HardSigmoid", activation_params=[0.3, 0.4])], {}), {}, {"first": 6}),
    "conv_sum": (
        lambda: convs(
            [
                node("Conv", "x w3", "z", name="other"),
                ms("FusedConv", "x w1 - z", "b", name="first", activation="Relu", pads=[1, 1, 1, 1]),
            ],
            {"w3": values(6, 3, 1, 1)},
        ),
        {},
        {"other": 6},
    ),
    "gemm": (
        lambda: net(
            [
                ms("FusedGemm", "x w1 b1", "b", name="first", activation="LeakyRelu", activation_alpha=0.3, transB=1, alpha=0.5),
                node("Gemm", "b w2", "y", name="last"),
            ],
            {"w1": values(6, 8), "b1": values(6), "w2": values(6, 4)},
            {"x": ["N", 8]},
            imports=MS,
            output_shape=["N", 4],
        ),
        {},
        {"first": 6},
    ),
    "gemm_of_a_transposed_input": (
        lambda: net(
            [
                node("Gemm", "x w1 b1", "a", name="first", alpha=0.5),
                node("Transpose", "a", "t", perm=[1, 0]),
                node("Gemm", "t w2 b2", "b", name="second", transA=1, transB=1, beta=0.5),
                node("Gemm", "b w3", "y", name="last"),
            ],
            {"w1": values(8, 6), "b1": values(6), "w2": values(5, 6), "b2": values(5), "w3": values(5, 4)},
            {"x": ["N", 8]},
            imports=MS,
        ),
        {},
        {"first": 6, "second": 5},
    ),
    "bias_gelu": (lambda: around([ms("BiasGelu", "a bi", "b")], NORM), {"Gelu"}, {"first": 6}),
    "fast_gelu": (lambda: around([ms("FastGelu", "a bi", "b")], NORM), {"FastGelu"}, {"first": 6}),
    "silu": (lambda: around([ms("QuickGelu", "a", "b", alpha=1.0)], {}), {}, {"first": 6}),
    "skip_norm": (lambda: around([SKIP], NORM), {}, None),
    "skip_norm_sum": (lambda: around([SKIP, node("Relu", "s", "t")], NORM), {}, None),
    "skip_norm_13": (lambda: around([SKIP], NORM, opset=13), {}, None),
    "skip_norm_plain": (lambda: around([ms("SkipLayerNormalization", "a a g", "b")], NORM), {}, None),
    "skip_simple": (lambda: around([ms("SkipSimplifiedLayerNormalization", "a a g bi", "b - - s")], NORM), {}, None),
    "embed": (lambda: embedded("ids which words places kinds g be"), {}, None),
    "embed_places": (lambda: embedded("ids - words places - g be - at"), {}, None),
    "embed_mask": (lambda: embedded("ids which words places kinds g be mask", "e count sum"), {}, None),
    "embed_mask_12": (lambda: embedded("ids which words places kinds g be mask", "e count sum", opset=12), {}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_parts_give_the_same_and_can_be_followed(name):
    build, left, groups = CASES[name]
    fused = build()
    model = load(fused).model
    assert {n.op_type for n in model.graph.node if n.domain} == set(left)
    onnx.checker.check_model(model, full_check=True)
    for batch in (1, 3):
        shape = [d.dim_value or batch for d in model.graph.input[0].type.tensor_type.shape.dim]
        given = {"x": values(*shape, seed=batch)}
        expected, got = run(fused, given), run(model, given)
        for a, b in zip(got, expected, strict=True):
            assert np.abs(a - b).max() <= 1e-6 * max(np.abs(b).max(), 1)
    if groups is not None:
        _, network, made = pruned(model)
        assert {g.name: g.size for g in network.groups} == groups
        check(model, made)


REFERENCES = {
    "BiasAdd": ("a bi a", {}, lambda a: 2 * a + NORM["bi"]),
    "BiasDropout": ("a bi a", {}, lambda a: 2 * a + NORM["bi"]),
    "BiasSoftmax": ("a bi", {"axis": 2}, lambda a: np.exp(a + NORM["bi"]) / np.exp(a + NORM["bi"]).sum(-1, keepdims=True)),
    "BiasSplitGelu": ("a bi", {}, lambda a: _split_gelu(a + NORM["bi"])),
    "FusedMatMulActivation": ("a wm", {"activation": "Relu", "transB": 1, "alpha": 0.5},
                              lambda a: np.maximum(0.5 * a @ EMBED["words"].T, 0)),
    "GemmFastGelu": ("a wt bw", {}, lambda a: _fast_gelu(a @ EMBED["words"].T + values(11))),
}  # fmt: skip


def _split_gelu(x):
    left, right = np.split(x, 2, axis=-1)
    return left * right * 0.5 * (1 + erf(right / np.sqrt(2)))


def _fast_gelu(x):
    return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("op", REFERENCES)
def test_parts_of_operators_that_run_on_other_devices(op, opset):
    inputs, attributes, reference = REFERENCES[op]
    made = {"BiasSplitGelu": 3, "FusedMatMulActivation": 11, "GemmFastGelu": 11}.get(op, 6)
    words = {"wm": EMBED["words"], "wt": EMBED["words"].T.copy(), "bw": values(11)}
    model = load(around([ms(op, inputs, "b", **attributes)], NORM | words, made=made, opset=opset)).model
    x = values(3, 5, 8)
    (got,) = run(model, {"x": x})
    assert np.allclose(got, reference(x @ values(8, 6)) @ values(made, 4, seed=2), atol=1e-5)


@pytest.mark.parametrize("opset", [11, 17, 18, 23])
@pytest.mark.parametrize("op", ["LayerNormalization", "SimplifiedLayerNormalization"])
@pytest.mark.parametrize("half", [False, True])
def test_norms_in_the_wrong_domain_become_valid(op, opset, half):
    """ONNX Runtime writes them into the domain of ONNX, where onnx.checker does not know them."""
    kind = np.float16 if half else np.float32
    scale, bias = values(6).astype(kind), values(6, seed=1).astype(kind)
    named = op == "LayerNormalization"
    nodes = [node(op, "x g be" if named else "x g", "y", name="norm", epsilon=1e-5)]
    element = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    ports = [helper.make_tensor_value_info(n, element, ["N", 5, 6]) for n in ("x", "y")]
    stored = [numpy_helper.from_array(v, n) for n, v in (("g", scale), ("be", bias)) if named or n == "g"]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], stored)
    fused = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = load(fused).model
    x = values(2, 5, 6).astype(kind)
    (got,), (expected,) = run(model, {"x": x}), run(fused, {"x": x})
    assert np.abs(got.astype(np.float64) - expected).max() <= (4e-3 if half else 1e-6) * max(np.abs(expected).max(), 1)
    assert got.dtype == kind
    onnx.checker.check_model(model, full_check=True)


def test_what_cannot_be_told_apart_stays_fused_and_pinned():
    model = load(convs([node("Conv", "x w1", "p", name="before", pads=[1] * 4), ms("FusedConv", "p w3", "b", activation="Odd")],
                       {"w3": values(6, 6, 1, 1)})).model  # fmt: skip
    assert [n.op_type for n in model.graph.node] == ["Conv", "FusedConv", "Conv"]
    _, network, _ = pruned(model)
    assert not network.groups
    assert any("FusedConv" in pin.reason for pin in network.pins)


def test_subgraphs_are_unfused_too_and_names_stay_unique():
    branch = helper.make_graph([ms("BiasGelu", "x c", "o")], "then", [], [helper.make_tensor_value_info("o", 1, None)])
    nodes = [
        ms("BiasGelu", "x c", "b", name="gelu"),
        node("If", "yes", "y", then_branch=branch, else_branch=branch),
        node("Add", "b b/Add", "z"),
    ]
    stored = {"c": values(6), "yes": np.array(True), "b/Add": values(6)}
    model = net(nodes, stored, {"x": ["N", 6]}, ("y", "z"), imports=MS, output_shape=["N", 6])
    assert unfuse(model) == 3
    names = [o for n in model.graph.node for o in n.output]
    assert len(set(names) | {"b/Add"}) == len(names) + 1
    assert run(model, {"x": values(2, 6)})[0].shape == (2, 6)


def test_files_of_onnx_runtime_itself(tmp_path):
    """What its optimiser writes of a plain net, read again, is that net: same groups, same outputs."""
    plain = net(
        [
            node("Conv", "x w1 b1", "a", name="first", pads=[1] * 4),
            node("Relu", "a", "b"),
            node("Conv", "b w2", "c", name="second", pads=[1] * 4),
            node("Conv", "x w3", "d", name="short"),
            node("Add", "c d", "s"),
            node("Relu", "s", "r"),
            node("GlobalAveragePool", "r", "g"),
            node("Flatten", "g", "f"),
            node("Gemm", "f w4", "h", name="dense"),
            node("Relu", "h", "i"),
            node("Gemm", "i w5", "y", name="last"),
        ],
        {"w1": values(8, 3, 3, 3), "b1": values(8), "w2": values(16, 8, 3, 3), "w3": values(16, 3, 1, 1), "w4": values(16, 12),
         "w5": values(12, 4)},
        {"x": ["N", 3, 8, 8]},
    )  # fmt: skip
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(plain.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert any(n.domain for n in onnx.load(tmp_path / "optimised.onnx").graph.node)
    file = load(tmp_path / "optimised.onnx")
    assert not any(n.domain for n in file.model.graph.node)
    assert "fused" in file.notes[0]
    _, network, made = pruned(file.model)
    _, expected, _ = pruned(plain)
    assert sorted(g.size for g in network.groups) == sorted(g.size for g in expected.groups)
    assert {layer.activation[0] for layer in network.layers} == {layer.activation[0] for layer in expected.layers}
    check(file.model, made)


def test_every_writer_has_a_case():
    tried = {n.op_type for build, _, _ in CASES.values() for n in build().graph.node} | set(REFERENCES)
    assert {op for domain, op in WRITERS if domain} <= tried
