"""Models as they come: old and new opsets and IR versions, half precision, open axes, several inputs and outputs, odd parts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError, UsageError
from onnxprune.graph.find import find
from onnxprune.graph.load import load
from onnxprune.graph.prepare import prepare
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.finish import finish
from onnxprune.rewrite.prove import check_valid
from tests.graph.nets import arrays, check, conv_net, feeds, masked, net, node, pruned, run, values

BN = {"g": values(6, low=0.5, high=2), "be": values(6), "mu": values(6), "var": values(6, low=0.5, high=2)}
BLOCK = [
    node("BatchNormalization", "a g be mu var", "n", name="norm"),
    node("Relu", "n", "r"),
    node("Conv", "r w3", "c", name="mid", pads=[1] * 4),
    node("Add", "c n", "s"),
    node("MaxPool", "s", "b", kernel_shape=[2, 2]),
]


def block(**fields) -> onnx.ModelProto:
    return conv_net(BLOCK, BN | {"w3": values(6, 6, 3, 3)}, **fields)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 18, 21, 22, 23])
@pytest.mark.parametrize("ir", [3, 8, 10])
def test_opsets_and_ir_versions(opset, ir):
    model = block(opset=opset, ir=ir)
    _, network, made = pruned(model)
    assert {g.name: g.size for g in network.groups} == {"first": 6}
    check(model, made)
    assert made.model.ir_version == ir
    assert made.model.opset_import[0].version == opset
    assert [n.op_type for n in made.model.graph.node] == [n.op_type for n in model.graph.node]


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.checker.check_model(model, full_check=True)
    return model


def test_half_precision_stays_half():
    model = in_half(block())
    _, _, made = pruned(model)
    check(model, made, tolerance=1e-2)
    assert {v.dtype.name for v in arrays(made.model).values()} == {"float16"}


def test_brain_floats_stay_brain_floats():
    model = block(opset=22, ir=10)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    _, network, made = pruned(model)
    assert [g.size for g in network.groups] == [6]
    onnx.checker.check_model(made.model, full_check=True)
    kept = np.delete(arrays(model)["w1"], made.removed["w1"]["0"], axis=0)
    assert arrays(made.model)["w1"].tobytes() == kept.tobytes()


def test_open_batch_and_positions():
    model = block(size=("H", "W"))
    _, _, made = pruned(model)
    for size in (9, 14):
        check(model, made, open_size=size)


def test_every_axis_without_a_name():
    model = block(size=(None, None))
    check(model, pruned(model)[2])


def test_given_sizes_take_the_place_of_open_ones():
    graph, _ = prepare(block(size=("H", "W")), {"x": (2, 3, 16, 12)})
    assert graph.shapes["a"] == (2, 6, 16, 12)
    with pytest.raises(UsageError, match="does not fit"):
        prepare(block(), {"x": (2, 4, 8, 8)})
    with pytest.raises(UsageError, match="no input 'z'"):
        prepare(block(), {"z": (1,)})


def test_several_inputs_and_outputs():
    nodes = [
        node("Conv", "x w1", "a", name="first"),
        node("Conv", "z w3", "c", name="other"),
        node("Add", "a c", "s"),
        node("Relu", "s", "r"),
        node("Conv", "r w2", "y1", name="one"),
        node("GlobalAveragePool", "r", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w4", "y2", name="two"),
    ]
    weights = {"w1": values(6, 3, 1, 1), "w3": values(6, 2, 1, 1), "w2": values(4, 6, 1, 1), "w4": values(6, 5)}
    model = net(nodes, weights, {"x": ["N", 3, 4, 4], "z": ["N", 2, 4, 4]}, ["y1", "y2"])
    _, network, made = pruned(model)
    assert {g.name: (g.size, g.readers) for g in network.groups} == {"first": (6, ("one", "two"))}
    check(model, made)


def test_a_stream_that_is_an_output_itself_is_pinned():
    model = conv_net([node("Relu", "a", "b")])
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 6, 8, 8]))
    _, network, made = pruned(model)
    assert network.groups == ()
    assert made.removed == {}
    assert ("b", "graph output 'b'") in [(p.tensor, p.reason) for p in network.pins]


def test_a_model_without_layers():
    graph, _ = prepare(net([node("Relu", "x", "y")], {"idle": values(3)}, {"x": ["N", 3]}))
    network = find(graph)
    assert (network.layers, network.groups, network.pins, network.channel_count) == ((), (), (), 0)
    assert network.cost().macs == 0
    assert network.cost().parameters == 3
    assert cut(graph, network, network.alive({})).removed == {}


def test_unused_zero_sized_and_scalar_initializers_stay():
    extra = {"unused": values(6, 6), "empty": np.empty((0, 3), np.float32), "number": np.float32(2)}
    model = conv_net([node("Mul", "a number", "b")], extra)
    graph, _, made = pruned(model)
    check(model, made)
    finish(made.model, graph, {})
    stored = arrays(made.model)
    assert all(np.array_equal(stored[name], value) for name, value in extra.items())


def test_everything_around_the_weights_stays_bit_for_bit():
    model = block(
        value_info=[
            helper.make_tensor_value_info("n", TensorProto.FLOAT, ["N", 6, 8, 8], "normed"),
            helper.make_tensor_value_info("a", 1, None),
        ]
    )
    model.doc_string, model.producer_name, model.domain, model.model_version = "doc", "us", "org.test", 7
    model.metadata_props.add(key="k", value="v")
    model.graph.doc_string = "graph doc"
    model.graph.metadata_props.add(key="g", value="v")
    model.graph.quantization_annotation.add(tensor_name="a").quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="mu")
    for n in model.graph.node:
        n.doc_string = f"doc of {n.name}"
        n.metadata_props.add(key="n", value="v")
        for attribute in n.attribute:
            attribute.doc_string = "attr"
    for t in model.graph.initializer:
        t.doc_string = f"doc of {t.name}"
        t.metadata_props.add(key="t", value="v")
    _, _, made = pruned(model)
    after = onnx.ModelProto.FromString(made.model.SerializeToString())
    assert after.graph.value_info[0].type.tensor_type.shape.dim[1].dim_value == 3
    after.graph.value_info[0].type.tensor_type.shape.dim[1].dim_value = 6
    expected = onnx.ModelProto.FromString(model.SerializeToString())
    for t in [*after.graph.initializer, *expected.graph.initializer]:
        t.ClearField("raw_data")
        t.ClearField("dims")
    assert after.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


def custom(domain: str, **fields) -> onnx.ModelProto:
    nodes = [
        node("Conv", "x w1", "a", name="first"),
        node("Strange", "a", "o", name="odd", domain=domain),
        node("Conv", "o w2", "c", name="mid"),
    ]
    nodes += [node("Relu", "c", "r"), node("Conv", "r w3", "y", name="last")]
    weights = {"w1": values(6, 3, 1, 1), "w2": values(8, 6, 1, 1), "w3": values(4, 8, 1, 1)}
    return net(nodes, weights, {"x": ["N", 3, 4, 4]}, imports={domain: 1}, **fields)


def test_a_custom_operator_of_unknown_shape_pins_what_is_around_it():
    _, network, made = pruned(custom("my.own"))
    assert made.removed == {}
    reasons = {p.tensor: p.reason for p in network.pins}
    assert "Strange has no rule" in reasons["a"]


def test_behind_a_custom_operator_of_declared_shape_life_goes_on():
    declared = [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1, 6, 4, 4])]
    _, network, made = pruned(custom("my.own", value_info=declared))
    assert [g.name for g in network.groups] == ["mid"]
    assert set(made.removed) == {"w2", "w3"}


def test_a_function_of_the_models_own():
    body = helper.make_function(
        "my.own", "Strange", ["i"], ["o"], [node("Tanh", "i", "t"), node("Neg", "t", "o")], [helper.make_opsetid("", 17)]
    )
    model = custom("my.own", functions=[body])
    onnx.checker.check_model(model, full_check=True)
    _, network, made = pruned(model)
    assert [g.name for g in network.groups] == ["mid"]
    check(model, made)
    assert made.model.functions[0].SerializeToString() == body.SerializeToString()


def test_sparse_weights_are_made_dense_and_pruned_like_any_other():
    model = block()
    dense = np.zeros((6, 3, 3, 3), np.float32)
    dense.reshape(-1)[[5, 40, 77]] = (1, 2, 3)
    held = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w1")
    sparse = onnx.SparseTensorProto(
        values=held, indices=numpy_helper.from_array(np.array([5, 40, 77]), "w1_at"), dims=dense.shape
    )
    del model.graph.initializer[0]
    model.graph.sparse_initializer.append(sparse)
    file = load(model)
    graph, _ = prepare(file.model)
    network = find(graph)
    assert np.array_equal(graph.array("w1"), dense)
    (group,) = (g for g in network.groups if "w1" in {network.slots[m.slot].parameter for m in g.members})
    made = cut(graph, network, network.alive({group.name: np.arange(group.size - 1)}))
    assert made.removed["w1"] == {"0": [group.size - 1]}
    assert np.isfinite(run(made.model, feeds(model, 1))[0]).all()


def test_a_sparse_weight_elsewhere_does_no_harm():
    model = block()
    model.graph.node.append(node("MatMul", "rows sp", "y2", name="sparse layer"))
    model.graph.input.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["N", 5]))
    model.graph.output.append(helper.make_tensor_value_info("y2", TensorProto.FLOAT, ["N", 4]))
    held = numpy_helper.from_array(np.array([1, 2], np.float32), "sp")
    model.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=held, indices=numpy_helper.from_array(np.array([3, 9]), ""), dims=[5, 4])
    )
    _, _, made = pruned(model)
    given = feeds(model, 2)
    for got, expected in zip(run(made.model, given), run(masked(model, made.removed), given), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    warnings = check_valid(made.model, model)  # the checker knows no shapes of sparse weights
    assert all("the original fails" in w for w in warnings)


def test_the_count_of_groups_of_one_maker():
    """One layer whose channels go to two places makes two groups, with two names."""
    nodes = [
        node("Conv", "x w1", "a", name="first"),
        node("Pad", "a p", "q"),
        node("Conv", "x w3", "c", name="other"),
        node("Add", "q c", "s"),
        node("Conv", "s w2", "y", name="last"),
    ]
    weights = {
        "w1": values(6, 3, 1, 1),
        "p": np.array([0, 0, 0, 0, 0, 2, 0, 0]),
        "w3": values(8, 3, 1, 1),
        "w2": values(4, 8, 1, 1),
    }
    model = net(nodes, weights, {"x": ["N", 3, 4, 4]})
    _, network, made = pruned(model)
    assert {g.name: g.size for g in network.groups} == {"first": 6, "other": 2}
    check(model, made)


def test_an_input_of_length_zero_is_refused():
    model = net([node("Relu", "x", "y")], {}, {"x": [0, 3]})
    with pytest.raises(ModelError, match="length 0"):
        prepare(model)


def test_costs_are_those_of_the_smaller_model():
    model = block()
    graph, network, made = pruned(model)
    small, _ = prepare(made.model)
    kept = {g.name: 3 for g in network.groups}
    assert network.cost(kept) == find(small).cost()
    assert network.cost().parameters == sum(v.size for v in arrays(model).values())
    assert graph.shapes["y"] == small.shapes["y"]


def test_weights_behind_what_is_not_known_are_told_of():
    """They cannot be followed, and the reason says so: not that there were none."""
    model = helper.make_model(
        helper.make_graph(
            [node("Mystery", "x", "u", domain="mine"), node("MatMul", "u w1", "h"), node("MatMul", "h w2", "y")],
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(values(5, 7), "w1"), numpy_helper.from_array(values(7, 4), "w2")],
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)],
    )
    network = find(prepare(model)[0])
    assert not network.groups
    assert {p.tensor: p.count for p in network.pins} == {"w1": 5, "w2": 7}
    assert all("the shape of" in p.reason for p in network.pins)
