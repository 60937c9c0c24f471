"""Attention nodes: what they state is restated, heads stay whole whatever is asked for, and a whole fused encoder."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import tests.graph.cases_fused  # noqa: F401  (registers its cases)
from onnxprune.graph.find import find
from onnxprune.graph.load import load
from onnxprune.graph.prepare import prepare
from onnxprune.rewrite.mask import masked_twin
from tests.graph.cases import CASES
from tests.graph.cases_attention import ms
from tests.graph.nets import check, feeds, net, node, pruned, run, values

HEADED = [name for name in CASES if name.startswith("attention_node_") and min((8, *CASES[name]().groups.values())) <= 4]
STATED = ("num_heads", "q_num_heads", "kv_num_heads")


@pytest.mark.parametrize("name", HEADED)
def test_the_width_of_heads_stays_even_where_it_is_preferred(name):
    graph, _ = prepare(CASES[name]().model)
    heads, widths = find(graph), find(graph, inner=True)
    assert {g.name: g.size for g in widths.groups} == {g.name: g.size for g in heads.groups}
    assert "head" in {g.kind for g in heads.groups}
    assert "head-width" not in {g.kind for g in widths.groups}


@pytest.mark.parametrize("name", HEADED)
def test_head_counts_are_those_that_are_left(name):
    model = CASES[name]().model
    _, _, made = pruned(model, share=0.5)
    for before, after in zip(model.graph.node, made.model.graph.node, strict=True):
        counts = [{a.name: a.i for a in n.attribute if a.name in STATED} for n in (before, after)]
        assert counts[0].keys() == counts[1].keys()
        if counts[0]:
            assert all(counts[1][key] < n for key, n in counts[0].items())
            assert len({counts[1][key] / n for key, n in counts[0].items()}) == 1


def test_sizes_of_queries_keys_and_values_are_restated():
    model = CASES["attention_node_packed_sizes"]().model
    _, _, made = pruned(model, share=0.5)
    (found,) = [helper.get_attribute_value(a) for n in made.model.graph.node for a in n.attribute if a.name == "qkv_hidden_sizes"]
    assert found == [12, 12, 6]


FEATURES = {"Exp": np.exp, "Sigmoid": lambda x: 1 / (1 + np.exp(-x)), "Elu": lambda x: np.where(x > 0, x, np.expm1(x))}


@pytest.mark.parametrize("feature", FEATURES)
def test_features_that_are_not_zero_where_their_weights_are(feature):
    """Linear attention sums over them all the same: what is gone is no term of the sum, in the result and in its twin."""
    nodes = [
        *[node("MatMul", f"x w{n}", n, name=n) for n in "qk"],
        *[node(feature, n, f"{n}e") for n in "qk"],
        *[node("Add", f"{n}e one", f"{n}f") for n in "qk"],
        node("Transpose", "kf", "kt", perm=[0, 2, 1]),
        node("MatMul", "kt x", "kv"),
        node("MatMul", "qf kv", "y"),
    ]
    weights = {"wq": values(5, 7), "wk": values(5, 7, seed=1), "one": np.float32(1)}
    model = net(nodes, weights, {"x": ["N", 3, 5]})
    graph, network, made = pruned(model)
    (group,) = network.groups
    assert (group.size, group.kind) == (7, "head-width")
    stay = np.setdiff1d(np.arange(7), made.removed["wq"]["1"])
    assert 0 < len(stay) < 7
    given = feeds(model, 2)
    q, k = (FEATURES[feature](given["x"] @ weights[w][:, stay]) + 1 for w in ("wq", "wk"))
    expected = q @ (np.swapaxes(k, 1, 2) @ given["x"])
    alive = network.alive({group.name: stay})
    for got in (made.model, masked_twin(graph, network, alive)):
        np.testing.assert_allclose(run(got, given)[0], expected, rtol=1e-5, atol=1e-5)


def encoder(layers: int = 2, width: int = 16) -> onnx.ModelProto:
    """What onnxruntime.transformers.optimizer makes of BERT."""
    stored = {"words": values(11, width), "places": values(7, width), "kinds": values(2, width), "we": values(5, width)}
    nodes = [node("MatMul", "x we", "e", name="embed")]
    last = "e"
    for number in range(layers):
        p = f"l{number}."
        stored |= {
            f"{p}wqkv": values(width, 3 * width, seed=number), f"{p}bqkv": values(3 * width, seed=number),
            f"{p}wo": values(width, width, seed=number), f"{p}bo": values(width, seed=number),
            f"{p}w1": values(width, 3 * width, seed=5 + number), f"{p}b1": values(3 * width, seed=number),
            f"{p}w2": values(3 * width, width, seed=7 + number), f"{p}b2": values(width, seed=9 + number),
            **{f"{p}{n}": values(width, seed=k, low=0.5, high=1.5) for k, n in enumerate(("g1", "h1", "g2", "h2"))},
        }  # fmt: skip
        nodes += [
            ms("Attention", f"{last} {p}wqkv {p}bqkv", f"{p}a", num_heads=4, name=f"{p}attention"),
            node("MatMul", f"{p}a {p}wo", f"{p}o", name=f"{p}out"),
            ms("SkipLayerNormalization", f"{p}o {last} {p}g1 {p}h1 {p}bo", f"{p}n1", name=f"{p}norm1"),
            node("MatMul", f"{p}n1 {p}w1", f"{p}f", name=f"{p}up"),
            ms("BiasGelu", f"{p}f {p}b1", f"{p}g", name=f"{p}gelu"),
            node("MatMul", f"{p}g {p}w2", f"{p}d", name=f"{p}down"),
            ms("SkipLayerNormalization", f"{p}d {p}n1 {p}g2 {p}h2 {p}b2", f"{p}n2", name=f"{p}norm2"),
        ]
        last = f"{p}n2"
    nodes.append(node("MatMul", f"{last} wl", "y", name="last"))
    stored["wl"] = values(width, 4)
    return net(nodes, stored, {"x": ["N", 6, 5]}, imports={"com.microsoft": 1}, output_shape=["N", 6, 4])


def test_a_fused_encoder_loses_heads_and_hidden_units():
    model = load(encoder()).model
    _, network, made = pruned(model)
    assert {g.name: (g.size, g.kind) for g in network.groups} == {
        "l0.wqkv": (4, "head"), "l0.up": (48, "neuron"), "l1.wqkv": (4, "head"), "l1.up": (48, "neuron"),
    }  # fmt: skip
    check(model, made)
    assert np.prod(next(t.dims for t in made.model.graph.initializer if t.name == "l0.wqkv")) == 16 * 24


@pytest.mark.parametrize("packed", ["queries, keys and values", "keys and values"])
def test_packed_heads_of_other_devices(packed):
    """(batch, sequence, heads, 3 or 2, width) does not run on a CPU: what is found and written is looked at instead."""
    parts = 3 if packed.startswith("queries") else 2
    nodes = [
        node("MatMul", "x wq", "q", name="first"),
        node("MatMul", "x wk", "k", name="packed"),
        node("Reshape", "k to", "k5"),
        ms("MultiHeadAttention", "k5 - - b" if parts == 3 else "q k5 - b", "h", num_heads=4),
        node("MatMul", "h wo", "y", name="last"),
    ]
    stored = {
        "wq": values(8, 24),
        "wk": values(8, 24 * parts),
        "to": np.array([0, 0, 4, parts, 6]),
        "b": values(72),
        "wo": values(24, 4),
    }
    model = net(nodes, stored, {"x": ["N", 5, 8]}, imports={"com.microsoft": 1}, output_shape=["N", 5, 4])
    graph, network, made = pruned(model)
    assert graph.shapes["h"] == (1, 5, 24)
    assert {g.name: g.size for g in network.groups} == {"packed" if parts == 3 else "first": 4}
    shapes = {t.name: list(t.dims) for t in made.model.graph.initializer}
    assert (shapes["wk"], shapes["b"], shapes["wo"]) == ([8, 12 * parts], [36], [12, 4])


def test_the_factor_of_a_fused_product_belongs_to_the_layer():
    model = CASES["fused_matmul_weights_1"]().model
    _, network, _ = pruned(model)
    assert (network.layer["first"].scale, network.layer["first"].transposed, network.layer["first"].op) == (0.5, False, "MatMul")


def test_blocks_may_end_with_channels_last():
    nodes = [
        ms("ReorderInput", "x", "r"),
        ms("Conv", "r w", "c", kernel_shape=[3, 3]),
        ms("ReorderOutput", "c", "y", channels=5, channels_last=1),
    ]
    for one in nodes:
        one.domain = "com.microsoft.nchwc"
    model = net(
        nodes,
        {"w": values(16, 16, 3, 3)},
        {"x": ["N", 16, 8, 8]},
        imports={"com.microsoft.nchwc": 1},
        output_shape=["N", 6, 6, 5],
    )
    graph, _ = prepare(model)
    assert graph.shapes["c"] == (1, 16, 6, 6)
    assert graph.shapes["y"] == (1, 6, 6, 5)


def test_a_product_of_activations_alone_is_no_attention():
    """What a graph network sums up over neighbours are features, no width of heads; behind a Softmax they are."""
    for op, kind in (("Relu", "neuron"), ("Softmax", "head-width")):
        nodes = [node("MatMul", "x w1", "h", name="one"), node(op, "near", "p"), node("MatMul", "p h", "s"),
                 node("Relu", "s", "r"), node("MatMul", "r w2", "y", name="two")]  # fmt: skip
        model = net(nodes, {"w1": values(5, 7), "w2": values(7, 4)}, {"x": ["N", 3, 5], "near": ["N", 3, 3]})
        _, network, _ = pruned(model)
        assert [(g.size, g.kind) for g in network.groups] == [(7, kind)]
