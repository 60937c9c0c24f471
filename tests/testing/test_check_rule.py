"""What check_rule says to somebody who wrote a rule of their own."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import NothingToPruneError
from onnxprune.graph import labels
from onnxprune.graph.rules import stand_ins
from onnxprune.testing import check_rule


def inverse_net():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Inverse", ["a"], ["b"], domain="com.microsoft"),
        helper.make_node("MatMul", ["b", "v"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 4]) for name in "xy"]
    stored = [numpy_helper.from_array(np.eye(4, dtype=np.float32), name) for name in "wv"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph(nodes, "net", values[:1], values[1:], stored), opset_imports=opsets, ir_version=8)


@pytest.fixture
def inverse():
    """inverse(shape=...): the rule of an operator that ONNX does not know, gone after the test."""
    rules, shapes = dict(labels.OPERATORS), dict(labels.STAND_INS)

    def register(**more):
        @labels.rule("Inverse", domain="com.microsoft", **more)
        def flows(flow, index):
            flow.pin_all("a", "inverts all of them at once")

    yield register
    for registry, before in ((labels.OPERATORS, rules), (labels.STAND_INS, shapes)):
        registry.clear()
        registry.update(before)


def test_a_rule_without_a_shape_is_told_that_it_needs_one(inverse):
    inverse()
    with pytest.raises(NothingToPruneError, match="does not know operator Inverse, so that its rule needs a shape="):
        check_rule(inverse_net())


def test_with_a_shape_the_rule_is_asked(inverse):
    inverse(shape=stand_ins.like())
    with pytest.raises(NothingToPruneError, match="inverts all of them at once"):
        check_rule(inverse_net())
