"""Parameters with several users, aliases and outputs: nobody else's numbers change, and nothing is cut twice."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.find import find
from onnxprune.graph.prepare import prepare
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.finish import finish
from onnxprune.rewrite.prove import check_valid, prove
from onnxprune.runtime import Device
from tests.graph.nets import arrays, check, feeds, half, net, node, pruned, run, session, values

CPU = Device("cpu", 0, "CPUExecutionProvider")


def check_all(model: onnx.ModelProto, seeds=(0, 1, 2)) -> None:
    """Against the test's own masks, against the product's masked twin, and once more after the clean-up."""
    for seed in seeds:
        graph, network, made = pruned(model, seed)
        check(model, made)
        alive = network.alive(half(network, seed))
        assert prove(graph, network, alive, made.model, [feeds(graph.model, 2)], CPU) <= 1e-4
        before = run(made.model, feeds(model, 2))
        finish(made.model, graph, {})
        assert check_valid(made.model, model) == []
        for got, expected in zip(run(made.model, feeds(model, 2)), before, strict=True):
            np.testing.assert_array_equal(got, expected)


def two_towers(weights: dict, first: str, second: str, *extra, ir: int = 8, names=("left", "right"), **fields) -> onnx.ModelProto:
    """x -> Conv -> Relu -> Conv in two towers of 6 channels; `first`, `second`: the inputs of the first Conv of each."""
    nodes = [
        *extra,
        node("Conv", f"x {first}", "a1", name=names[0]),
        node("Relu", "a1", "r1"),
        node("Conv", "r1 v1", "y1"),
        node("Conv", f"x {second}", "a2", name=names[1]),
        node("Relu", "a2", "r2"),
        node("Conv", "r2 v2", "y2"),
    ]
    own = {"v1": values(4, 6, 1, 1), "v2": values(4, 6, 1, 1, seed=1)} | weights
    return net(nodes, own, {"x": ["N", 3, 4, 4]}, ["y1", "y2"], ir=ir, **fields)


W = {"w": values(6, 3, 1, 1), "b": values(6)}
W2 = W | {"u": values(6, 3, 1, 1, seed=3)}


@pytest.mark.parametrize("ir", [3, 4, 8, 10])
def test_a_bias_of_two_layers_is_cloned(ir):
    model = two_towers(W2, "w b", "u b", ir=ir)
    check_all(model)
    _, _, made = pruned(model)
    assert {"b@left", "b@right", "w", "u"} <= set(made.removed)
    assert made.renamed == {(0, 2): "b@left", (3, 2): "b@right"}


def test_the_original_of_clones_leaves_with_the_clean_up():
    graph, _, made = pruned(two_towers(W2, "w b", "u b", ir=3))
    finish(made.model, graph, {"made": "by us"})
    assert "b" not in arrays(made.model)
    assert "b" not in {i.name for i in made.model.graph.input}
    assert {e.key: e.value for e in made.model.metadata_props} == {"made": "by us"}


def test_one_weight_in_two_layers_loses_the_same_channels_for_both():
    model = two_towers(W, "w b", "w b")
    check_all(model)
    _, network, made = pruned(model)
    assert [g.makers for g in network.groups] == [("left", "right")]
    assert made.renamed == {}


def test_a_weight_that_another_node_needs_whole_stays_whole():
    model = two_towers(W2, "w b", "u")
    model.graph.node.append(node("ReduceSum", "w", "z", name="sum", keepdims=0))
    model.graph.node.append(node("Add", "y1 z", "y3"))
    with_output(model, "y3", ["N", 4, 4, 4])
    check_all(model)


def test_a_siamese_net_with_one_weight_throughout():
    model = two_towers(W, "w b", "w b")
    model.graph.node[5].input[1] = "v1"
    check_all(model)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_only_one_user_is_cut(share):
    graph, network, _ = pruned(two_towers(W2, "w b", "u b"))
    left = network.groups[0].name
    made = cut(graph, network, network.alive({left: np.arange(3)}))
    check(graph.model, made)
    assert list(made.removed) == ["w", "b@left", "v1"]
    assert np.array_equal(arrays(made.model)["b"], W["b"])


@pytest.mark.parametrize("names", [("", ""), ("a2", "right"), ("x", "w"), ("a/b:0", "größe/卷积")])
def test_names_of_nodes_may_be_anything(names):
    model = two_towers(W2, "w b", "u b", names=names)
    check_all(model)
    graph, network, _ = pruned(model)
    assert len({layer.name for layer in network.layers}) == len(network.layers)
    assert len({g.name for g in network.groups}) == len(network.groups)
    assert len({graph.label(i) for i in range(len(graph.nodes))}) == len(graph.nodes)


def test_two_nodes_with_one_name_are_told_apart():
    """ONNX allows it, and ONNX Runtime refuses it; whoever prunes for another runtime gets the right weights."""
    model = two_towers(W2, "w b", "u b", names=("same", "same"))
    _, network, made = pruned(model)
    assert [layer.name for layer in network.layers if layer.weight in "wu"] == ["a1", "a2"]
    assert {"b@a1", "b@a2"} <= set(made.removed)
    for n in made.model.graph.node:
        n.name = ""
    for n in model.graph.node:
        n.name = ""
    check(model, made)


def test_names_that_look_like_our_clones():
    model = two_towers(W2 | {"b@left": values(3), "w@left": values(2)}, "w b", "u b")
    check_all(model)
    _, _, made = pruned(model)
    assert np.array_equal(arrays(made.model)["b@left"], values(3))
    assert "b@left#2" in arrays(made.model)


def constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, "value"))


@pytest.mark.parametrize("shared", [True, False])
def test_weights_in_constant_nodes(shared):
    made_by = [constant("w", W["w"]), constant("b", W["b"]), constant("u", W2["u"])]
    model = two_towers({}, "w b", "w b" if shared else "u b", *made_by)
    check_all(model)


def test_one_constant_node_alone_is_cut_in_place():
    model = two_towers({"u": W2["u"]}, "w", "u", constant("w", W["w"]))
    _, _, made = pruned(model)
    assert list(made.model.graph.node[0].attribute[0].t.dims) == [3, 3, 1, 1]
    check_all(model)


def test_identity_chains():
    chain = [node("Identity", "w", "w_"), node("Identity", "w_", "w__"), node("Identity", "b", "b_")]
    check_all(two_towers(W2, "w__ b_", "w_ b", *chain))
    check_all(two_towers(W2, "w__ b_", "u b", *chain))


def test_a_cast_weight():
    half_precision = {"w": W["w"].astype(np.float16)}
    model = two_towers(half_precision | {"u": W2["u"]}, "w_", "u", node("Cast", "w", "w_", to=TensorProto.FLOAT))
    check_all(model)
    assert arrays(pruned(model)[2].model)["w"].dtype == np.float16


def with_output(model: onnx.ModelProto, name: str, shape) -> onnx.ModelProto:
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


@pytest.mark.parametrize("alias", [False, True])
def test_a_weight_that_is_an_output_stays_whole(alias):
    extra = [node("Identity", "w", "w_")] if alias else []
    model = with_output(two_towers(W2, "w b", "u", *extra), "w_" if alias else "w", [6, 3, 1, 1])
    check_all(model)
    _, _, made = pruned(model)
    assert np.array_equal(run(made.model, feeds(model, 1))[2], W["w"])


# Known at run time alone.
TRUE = [node("ReduceL1", "x", "size", keepdims=0), node("Cast", "size", "c", to=TensorProto.BOOL)]


@pytest.mark.parametrize("alias", [False, True])
def test_a_weight_read_inside_a_subgraph_stays_whole(alias):
    name = "w_" if alias else "w"

    def branch(label, op):
        out = helper.make_tensor_value_info(f"{label}_out", TensorProto.FLOAT, None)
        return helper.make_graph([node(op, name, f"{label}_out")], label, [], [out])

    choice = helper.make_node("If", ["c"], ["z"], name="choice", then_branch=branch("t", "Relu"), else_branch=branch("e", "Neg"))
    extra = [node("Identity", "w", "w_"), *TRUE, choice]
    model = with_output(two_towers(W2, "w b", "u", *extra), "z", [6, 3, 1, 1])
    check_all(model)
    assert np.array_equal(run(pruned(model)[2].model, feeds(model, 1))[2], np.maximum(W["w"], 0))


def test_a_tensor_read_inside_a_subgraph_is_pinned():
    out = helper.make_tensor_value_info("t_out", TensorProto.FLOAT, None)
    body = [helper.make_graph([node(op, "r1", "t_out")], "t", [], [out]) for op in ("Relu", "Neg")]
    choice = helper.make_node("If", ["c"], ["z"], name="choice", then_branch=body[0], else_branch=body[1])
    model = two_towers(W2, "w b", "u")
    model.graph.node.insert(2, choice)
    for made in reversed(TRUE):
        model.graph.node.insert(0, made)
    with_output(model, "z", ["N", 6, 4, 4])
    _, network, _ = pruned(model)
    assert [g.name for g in network.groups] == ["right"]
    assert any(p.tensor == "r1" and "subgraph" in p.reason for p in network.pins)
    check_all(model)


def test_a_sizes_constant_read_inside_a_subgraph_stays_whole():
    out = helper.make_tensor_value_info("t_out", TensorProto.INT64, None)
    body = [helper.make_graph([node(op, "to", "t_out")], "t", [], [out]) for op in ("Abs", "Neg")]
    choice = helper.make_node("If", ["c"], ["z"], then_branch=body[0], else_branch=body[1])
    nodes = [*TRUE, choice, node("Conv", "x w", "a", name="first"), node("Reshape", "a to", "f")]
    nodes.append(node("Gemm", "f v", "y", name="last", transB=1))
    weights = {"w": W["w"], "to": np.array([-1, 96]), "v": values(4, 96)}
    model = net(nodes, weights, {"x": ["N", 3, 4, 4]})
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.INT64, [2]))
    check(model, pruned(model)[2])
    assert run(pruned(model)[2].model, feeds(model, 1))[1].tolist() == [1, 96]


def test_a_weight_behind_a_shared_transpose():
    nodes = [
        node("Transpose", "w", "wt", perm=[1, 0]),
        node("MatMul", "x wt", "h1", name="one"),
        node("MatMul", "x wt", "h2", name="two"),
        node("MatMul", "h1 v", "y1"),
        node("MatMul", "h2 v", "y2"),
    ]
    model = net(nodes, {"w": values(7, 5), "v": values(7, 4)}, {"x": ["N", 5]}, ["y1", "y2"])
    check_all(model)


def test_a_user_that_loses_nothing_reads_the_whole():
    model = two_towers(W2, "w b", "u")
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 6]))
    model.graph.node.append(node("Add", "z b", "y3", name="plain"))
    check_all(with_output(model, "y3", ["N", 6]))


def test_a_reading_weight_that_is_an_output_stays_whole():
    check_all(with_output(two_towers(W2, "w b", "u"), "v1", [4, 6, 1, 1]))


def test_tied_weights_of_an_autoencoder():
    """One matrix, read as it is by one layer and transposed by the other."""
    nodes = [node("Gemm", "x w", "h", name="encode", transB=1), node("Relu", "h", "r"), node("Gemm", "r w", "y", name="decode")]
    model = net(nodes, {"w": values(7, 5)}, {"x": ["N", 5]})
    check_all(model)
    _, _, made = pruned(model)
    assert len(made.removed) == 1


def test_a_per_channel_constant_used_before_and_behind_a_layer():
    nodes = [
        node("Conv", "x w", "a", name="first"),
        node("Mul", "a s", "m"),
        node("Conv", "m v", "b", name="mid"),
        node("Mul", "b s", "n"),
        node("Conv", "n u", "y", name="last"),
    ]
    weights = {"w": values(6, 3, 1, 1), "s": values(1, 6, 1, 1), "v": values(6, 6, 1, 1), "u": values(4, 6, 1, 1)}
    check_all(net(nodes, weights, {"x": ["N", 3, 4, 4]}))


def test_batch_norms_that_share_their_parameters():
    nodes = [
        node("Conv", "x w", "a", name="first"),
        node("BatchNormalization", "a s z z s", "m"),
        node("Conv", "m v", "b", name="mid"),
        node("BatchNormalization", "b s z z s", "n"),
        node("Conv", "n u", "y", name="last"),
    ]
    weights = {
        "w": values(6, 3, 1, 1),
        "s": values(6, low=0.5, high=2),
        "z": values(6),
        "v": values(6, 6, 1, 1),
        "u": values(4, 6, 1, 1),
    }
    check_all(net(nodes, weights, {"x": ["N", 3, 4, 4]}))


@pytest.mark.parametrize("ir", [3, 8])
def test_shapes_recorded_for_parameters(ir):
    """value_info of a weight that one user sees cut stays that of the whole weight."""
    infos = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("w_", [6, 3, 1, 1]), ("b_", [6]), ("r1", ["N", 6, 4, 4]))
    ]
    extra = [node("Identity", "w", "w_"), node("Identity", "b", "b_")]
    for second in ("u b", "w b_"):
        model = two_towers(W2, "w_ b_", second, *extra, ir=ir, value_info=infos)
        check_all(model)


def test_overridable_initializers_follow():
    """IR 4 and later: an initializer that is listed as an input may be fed by name; its declared shape follows the cut."""
    model = two_towers(W2, "w b", "u")
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 3, 1, 1]))
    check_all(model)
    _, _, made = pruned(model)
    given = feeds(model, 1)
    small = arrays(made.model)["w"]
    np.testing.assert_array_equal(session(made.model).run(None, given | {"w": small})[0], run(made.model, given)[0])


def test_a_layer_whose_weight_is_an_input():
    nodes = [node("Conv", "x w", "a", name="first"), node("Conv", "a k", "y", name="fed")]
    model = net(nodes, {"w": W["w"]}, {"x": ["N", 3, 4, 4], "k": [4, 6, 1, 1]})
    graph, _ = prepare(model)
    network = find(graph)
    assert network.groups == ()
    assert [layer.name for layer in network.layers] == ["first"]


def test_an_axis_with_a_name_loses_it_with_its_channels():
    """ONNX Runtime takes axes of one name for equally long, also '4*N' of two attentions that keep different heads."""
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", "C", 4, 4]) for n in ("r1", "r2")]
    graph, network, _ = pruned(two_towers(W2, "w b", "u b", value_info=infos))
    made = cut(graph, network, network.alive({network.groups[0].name: np.arange(3)}))
    check(graph.model, made)
    named = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in made.model.graph.value_info}
    assert named == {"r1": ["N", 0, 4, 4], "r2": ["N", "C", 4, 4]}
