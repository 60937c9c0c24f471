"""Attention nodes: what they state is restated, heads stay whole whatever is asked for, and a whole fused encoder."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune.graph.find import find
from onnxprune.graph.load import load
from onnxprune.graph.prepare import prepare
from tests.graph.cases import CASES
from tests.graph.cases_attention import ms
from tests.graph.nets import check, net, node, pruned, values

HEADED = [name for name in CASES if name.startswith("attention_") and min((8, *CASES[name]().groups.values())) <= 4]
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
    model = CASES["attention_packed_sizes"]().model
    _, _, made = pruned(model, share=0.5)
    (found,) = [helper.get_attribute_value(a) for n in made.model.graph.node for a in n.attribute if a.name == "qkv_hidden_sizes"]
    assert found == [12, 12, 6]


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
