"""Normalisations beyond the rule tests: forms that ONNX's checker does not take."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.find import find
from onnxprune.graph.load import load
from onnxprune.graph.prepare import prepare
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.mask import masked_twin
from tests.graph.nets import arrays, feeds, masked, node, pruned, run, values


def unchecked(nodes, weights, opset: int) -> onnx.ModelProto:
    """As nets.net, for operators that the checker refuses and ONNX Runtime runs."""
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 3, 5, 5]), ("y", ["N", 4, 5, 5]))]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def equal_to_masked(model: onnx.ModelProto, made) -> None:
    twin = masked(model, made.removed)
    for batch in (1, 3):
        given = feeds(model, batch, seed=batch)
        for got, expected in zip(run(made.model, given), run(twin, given), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("groups", [3, 6])
def test_group_norm_18_has_a_scale_per_group(groups):
    nodes = [
        node("Conv", "x w1", "a", name="first"),
        node("GroupNormalization", "a g be", "b", num_groups=groups),
        node("Conv", "b w2", "y", name="last"),
    ]
    weights = {"w1": values(6, 3, 1, 1), "w2": values(4, 6, 1, 1), "g": values(groups, low=0.5), "be": values(groups)}
    model = unchecked(nodes, weights, 18)
    _, network, made = pruned(model)
    assert {g.name: g.size for g in network.groups} == {"first": groups}
    left = groups - groups // 2
    assert arrays(made.model)["g"].shape == arrays(made.model)["be"].shape == (left,)
    assert next(a.i for a in made.model.graph.node[1].attribute if a.name == "num_groups") == left
    equal_to_masked(model, made)


@pytest.mark.parametrize("shape", [(5,), (5, 5)])
def test_simplified_layer_norm_over_positions(shape):
    nodes = [
        node("Conv", "x w1", "a", name="first"),
        node("SimplifiedLayerNormalization", "a g", "n", axis=-len(shape)),
        node("Conv", "n w2", "y", name="last"),
    ]
    model = unchecked(nodes, {"w1": values(6, 3, 1, 1), "w2": values(4, 6, 1, 1), "g": values(*shape, low=0.5)}, 17)
    _, network, made = pruned(model)
    assert {g.name: g.size for g in network.groups} == {"first": 6}
    equal_to_masked(model, made)


def test_simplified_layer_norm_over_channels_is_pinned():
    nodes = [
        node("Conv", "x w1", "a", name="first"),
        node("SimplifiedLayerNormalization", "a g", "n", axis=1, name="norm"),
        node("Conv", "n w2", "y", name="last"),
    ]
    model = unchecked(nodes, {"w1": values(6, 3, 1, 1), "w2": values(4, 6, 1, 1), "g": values(6, 5, 5)}, 17)
    _, network, _ = pruned(model)
    assert network.groups == ()
    assert [p.reason for p in network.pins if p.tensor == "a"] == [
        "'norm' normalises over these channels (SimplifiedLayerNormalization); --through-norms lets them go"
    ]
    graph, _ = prepare(model)
    network = find(graph, through_norms=True)
    alive = network.alive({"first": np.array([0, 1, 4])})
    made, twin, given = cut(graph, network, alive), masked_twin(graph, network, alive), feeds(model, 2)
    np.testing.assert_allclose(run(made.model, given)[0], run(twin, given)[0], atol=1e-5)


def test_they_can_be_loaded():
    weights = {"w1": values(6, 3, 1, 1), "g": values(3), "be": values(3)}
    grouped, simplified = (
        node("GroupNormalization", "a g be", "y", num_groups=3),
        node("SimplifiedLayerNormalization", "a g", "y"),
    )
    for opset, norm in ((18, grouped), (17, simplified)):
        file = load(unchecked([node("Conv", "x w1", "a"), norm], weights, opset))
        assert any("ONNX Runtime may take it" in n or "had fused" in n for n in file.notes)
