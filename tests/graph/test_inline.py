"""Functions of the model become the nodes inside them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune.errors import ModelError
from onnxprune.graph.inline import inline
from onnxprune.graph.load import load
from tests.graph.nets import check, net, node, pruned, run, values

BLOCK = [node("MatMul", "x w", "t", name="mm"), node("Relu", "t", "y", name="act")]


def block(opset: int = 17) -> onnx.FunctionProto:
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in BLOCK]
    nodes[0].metadata_props.add(key="from", value="torch")
    return helper.make_function("own", "Block", ["x", "w"], ["y"], nodes, [helper.make_opsetid("", opset)])


def two(function, opset=17, **fields):
    return net(
        [
            node("Block", "x w1", "a", name="one", domain="own"),
            node("Block", "a w2", "t", name="two", domain="own"),
            node("MatMul", "t w3", "y", name="last"),
        ],
        {"w1": values(8, 6), "w2": values(6, 7), "w3": values(7, 4)},
        {"x": ["N", 8]},
        opset=opset,
        imports={"own": 1},
        functions=[function],
        output_shape=["N", 4],
        **fields,
    )


def test_channels_inside_functions_can_go():
    model = two(block())
    file = load(model)
    assert not file.model.functions
    assert "functions" in file.notes[0]
    names = [n.name for n in file.model.graph.node]
    assert len(set(names)) == len(names)
    assert [p.value for n in file.model.graph.node for p in n.metadata_props] == ["torch", "torch"]
    x = values(3, 8)
    assert np.array_equal(run(file.model, {"x": x})[0], run(model, {"x": x})[0])
    _, network, made = pruned(file.model)
    assert sorted(g.size for g in network.groups) == [6, 7]
    check(file.model, made)


def test_functions_of_another_opset_are_taken_over():
    for written in (13, 18, 21):
        model = two(block())
        model.functions[0].opset_import[0].version = written
        file = load(model)
        assert not file.model.functions
        assert {o.domain: o.version for o in file.model.opset_import}[""] == 17


def test_a_function_that_cannot_be_converted_stays_and_is_pinned():
    model = two(block())
    model.functions[0].node[1].op_type, model.functions[0].opset_import[0].version = "Gelu", 20
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    assert inline(copy) == 0
    assert copy.SerializeToString() == model.SerializeToString()
    _, network, _ = pruned(copy)
    assert not network.groups
    with pytest.raises(ModelError, match="not valid"):
        load(model)


def test_a_local_twin_of_a_fused_operator_is_taken_by_its_body():
    """The model's own definition counts, not ONNX Runtime's."""
    twin = helper.make_function("com.microsoft", "BiasGelu", ["A", "B"], ["C"], [node("Add", "A B", "S"), node("Relu", "S", "C")],
                                [helper.make_opsetid("", 17)])  # fmt: skip
    model = net(
        [
            node("MatMul", "x w1", "a", name="first"),
            node("BiasGelu", "a c", "b", domain="com.microsoft"),
            node("MatMul", "b w2", "y", name="last"),
        ],
        {"w1": values(8, 6), "c": values(6), "w2": values(6, 4)},
        {"x": ["N", 8]},
        imports={"com.microsoft": 1},
        functions=[twin],
        output_shape=["N", 4],
    )
    file = load(model)
    assert [n.op_type for n in file.model.graph.node] == ["MatMul", "Add", "Relu", "MatMul"]
    _, network, made = pruned(file.model)
    assert {g.name: g.size for g in network.groups} == {"first": 6}
    check(file.model, made)


def test_weights_are_the_very_same():
    model = two(block())
    file = load(model)
    for before, after in zip(model.graph.initializer, file.model.graph.initializer, strict=True):
        assert before.SerializeToString() == after.SerializeToString()
