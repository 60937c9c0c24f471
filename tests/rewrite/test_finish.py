"""Reweighing multiplies what reads a channel, and nothing else; the last touches are written down and what is idle leaves."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from onnxprune.contract import ChannelPlan
from onnxprune.graph.find import find
from onnxprune.graph.prepare import prepare
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.finish import finish, reweigh
from tests.graph.nets import arrays, conv_net, feeds, masked, net, node, run, values


def plans_of(network, keep: dict[str, list[int]] | None = None) -> dict[str, ChannelPlan]:
    """Half of every group stays (or what `keep` says), with factors that differ from group to group."""
    plans = {}
    for number, group in enumerate(network.groups):
        kept = torch.tensor((keep or {}).get(group.name, list(range(0, group.size, 2))))
        plans[group.name] = ChannelPlan(kept, 1.5 + number + torch.arange(len(kept)) / 10)
    return plans


def reweighed(model: onnx.ModelProto, keep=None):
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    graph, _ = prepare(copy)
    network = find(graph)
    plans = plans_of(network, keep)
    made = cut(graph, network, network.alive({name: plan.keep.numpy() for name, plan in plans.items()}))
    removed = {name: dict(axes) for name, axes in made.removed.items()}
    reweigh(made, graph, network, plans)
    return graph, network, plans, made, removed


def expected(model: onnx.ModelProto, network, plans, removed) -> onnx.ModelProto:
    """The masked original with the factors in the masks instead of ones: who reads a channel reads it so many times larger."""
    reads = {}
    for group in network.groups:
        for name in group.readers:
            reads[network.layer[name].output] = plans[group.name].scale.numpy()
            if network.layer[name].weight not in removed:
                removed.setdefault(f"{network.layer[name].weight}@{name}", {})
    twin = masked(model, removed)
    tensors = {t.name: t for t in twin.graph.initializer}
    for number, n in enumerate(model.graph.node):
        if f"mask_{number}" in tensors and n.output[0] in reads:
            mask = numpy_helper.to_array(tensors[f"mask_{number}"]).copy()
            mask[mask == 1] = reads[n.output[0]]
            tensors[f"mask_{number}"].CopyFrom(numpy_helper.from_array(mask, f"mask_{number}"))
    return twin


def check_reweighed(model: onnx.ModelProto, keep=None):
    graph, network, plans, made, removed = reweighed(model, keep)
    onnx.checker.check_model(made.model, full_check=True)
    given = feeds(model, 3)
    twin = expected(model, network, plans, removed)
    before = run(made.model, given)
    for got, wanted in zip(before, run(twin, given), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    finish(made.model, graph, {})
    assert all(np.array_equal(a, b) for a, b in zip(run(made.model, given), before, strict=True))
    return made


def towers(first: str, second: str, weights: dict, *extra) -> onnx.ModelProto:
    nodes = [
        *extra,
        node("Conv", "x w", "a1", name="left"),
        node("Relu", "a1", "r1"),
        node("Conv", f"r1 {first}", "y1", name="read left"),
    ]
    nodes += [
        node("Conv", "x u", "a2", name="right"),
        node("Relu", "a2", "r2"),
        node("Conv", f"r2 {second}", "y2", name="read right"),
    ]
    own = {"w": values(6, 3, 1, 1), "u": values(6, 3, 1, 1, seed=1)} | weights
    return net(nodes, own, {"x": ["N", 3, 4, 4]}, ["y1", "y2"])


V = {"v": values(4, 6, 1, 1)}


def test_one_reader():
    made = check_reweighed(conv_net([node("Relu", "a", "b")]))
    assert set(made.removed) == {"w1", "b1", "w2"}


def test_a_chain_of_groups():
    model = conv_net([node("Relu", "a", "r"), node("Conv", "r w", "b", name="mid")], {"w": values(6, 6, 3, 3)})
    check_reweighed(model)


def test_two_layers_that_read_with_one_weight_share_it_still():
    made = check_reweighed(towers("v", "v", V))
    assert set(arrays(made.model)) == {"w", "u", "v"}


def test_two_readers_of_one_group_with_one_weight_share_it_still():
    nodes = [node("Conv", "x w", "a", name="first"), node("Conv", "a v", "y1"), node("Relu", "a", "r"), node("Conv", "r v", "y2")]
    made = check_reweighed(net(nodes, {"w": values(6, 3, 1, 1)} | V, {"x": ["N", 3, 4, 4]}, ["y1", "y2"]))
    assert set(arrays(made.model)) == {"w", "v"}


def test_tied_weights_change_for_the_reader_alone():
    nodes = [node("Gemm", "x w", "h", name="encode", transB=1), node("Relu", "h", "r"), node("Gemm", "r w", "y", name="decode")]
    made = check_reweighed(net(nodes, {"w": values(7, 5)}, {"x": ["N", 5]}))
    assert np.array_equal(arrays(made.model)["w"], values(7, 5)[::2])
    assert made.removed["w@decode"] == made.removed["w"] == {"0": [1, 3, 5]}


def test_behind_a_transpose():
    nodes = [
        node("Transpose", "w", "wt"),
        node("Transpose", "v", "vt"),
        node("MatMul", "x wt", "h", name="one"),
        node("MatMul", "h vt", "y", name="two"),
    ]
    check_reweighed(net(nodes, {"w": values(7, 5), "v": values(4, 7)}, {"x": ["N", 5]}))


def test_a_weight_that_is_an_output_stays_as_it_was():
    model = towers("v", "k", V | {"k": values(4, 6, 1, 1, seed=4)})
    model.graph.output.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, [4, 6, 1, 1]))
    made = check_reweighed(model)
    assert np.array_equal(arrays(made.model)["v"], V["v"])


def test_a_weight_in_a_constant_node():
    constant = helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(V["v"], "value"))
    check_reweighed(towers("v", "k", {"k": values(4, 6, 1, 1, seed=4)}, constant))


def test_depthwise_layers_are_passed_by():
    made = check_reweighed(conv_net([node("Conv", "a w", "b", name="mid", group=6)], {"w": values(6, 1, 3, 3)}))
    assert np.array_equal(arrays(made.model)["w"], values(6, 1, 3, 3)[::2])


def test_provenance_replaces_what_an_earlier_run_left():
    model = conv_net([node("Relu", "a", "b")])
    model.metadata_props.add(key="ours", value="old")
    model.metadata_props.add(key="theirs", value="kept")
    graph, _ = prepare(model)
    finish(model, graph, {"ours": "new", "more": "too"})
    assert [(e.key, e.value) for e in model.metadata_props] == [("ours", "new"), ("theirs", "kept"), ("more", "too")]
