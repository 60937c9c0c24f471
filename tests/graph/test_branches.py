"""An If whose condition is known becomes the branch that is taken; one that is asked at run time stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.prepare import prepare
from tests.graph.nets import check, conv_net, node, pruned, run, values


def branch(nodes, output, weights=None) -> onnx.GraphProto:
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    return helper.make_graph(nodes, "branch", [], outputs, [numpy_helper.from_array(v, k) for k, v in (weights or {}).items()])


def asking(condition) -> onnx.ModelProto:
    """Behind 'first', a Conv with weights of the branch, or nothing; names inside are used outside too."""
    yes = branch([node("Conv", "a w2", "c", name="first", pads=[1] * 4), node("Relu", "c", "r")], "r", {"w2": values(6, 6, 3, 3)})
    no = branch([node("Identity", "a", "r")], "r")
    model = conv_net(
        [*condition, node("If", "yes", "d", then_branch=yes, else_branch=no), node("Reshape", "d same", "b")],
        {
            "zero": np.array([0]),
            "one": np.array([1]),
            "two": np.array([2]),
            "three": np.array([3]),
            "same": np.array([0, 6, 8, 8]),
        },
    )
    del model.graph.value_info[:]
    model.graph.output[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 4, 8, 8]))
    return model


FLAG = [node("Constant", "", "yes", value=numpy_helper.from_array(np.array(True)))]
LENGTH = [node("Shape", "a", "sh"), node("Slice", "sh two three", "n"), node("Greater", "n one", "yes")]
SMALL = [node("Shape", "a", "sh"), node("Slice", "sh two three", "n"), node("Less", "n one", "yes")]
BATCH = [node("Shape", "a", "sh"), node("Slice", "sh zero one", "n"), node("Greater", "n one", "yes")]


@pytest.mark.parametrize(("condition", "sizes"), [(FLAG, [6, 6]), (LENGTH, [6, 6]), (SMALL, [6])])
def test_the_branch_that_is_taken_in_every_run(condition, sizes):
    model = asking(condition)
    graph, network, made = pruned(model)
    assert not any(n.op_type == "If" for n in graph.nodes)
    assert [g.size for g in network.groups] == sizes
    onnx.checker.check_model(graph.model, full_check=True)
    x = {"x": values(3, 3, 8, 8)}
    np.testing.assert_allclose(run(graph.model, x)[0], run(model, x)[0], rtol=1e-5, atol=1e-6)
    check(graph.model, made)


def test_a_condition_of_the_batch_is_asked_at_run_time():
    model = asking(BATCH)
    graph, _ = prepare(model)
    assert any(n.op_type == "If" for n in graph.nodes)
