"""Parts of a model, run one after the other, give what the whole gives."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_nets import NETS, inputs_for

from onnxprune.calibration.segments import Parts, reads, segment
from onnxprune.devices import choose_device
from onnxprune.graph import load, prepare
from onnxprune.runtime import Session

CPU = choose_device("cpu")


def traced(model):
    shape = [d.dim_value or 1 for d in model.graph.input[0].type.tensor_type.shape.dim]
    return prepare(load(model).model, {"x": shape})[0]


def activations(graph):
    return [o for n in graph.nodes for o in n.output if o not in graph.constants]


@pytest.mark.parametrize("name", NETS)
def test_segments_end_to_end_equal_the_whole(name):
    """Cut anywhere, twice: what is needed later is carried along."""
    model = NETS[name]()
    graph, feeds = traced(model), {"x": inputs_for(model, 3)}
    parts = Parts(graph, graph.model)
    whole = Session(graph.model, CPU).run(feeds)
    names = activations(graph)
    for first, second in itertools.islice(itertools.combinations(range(1, len(names)), 2), 0, None, 7):
        at_hand = dict(feeds)
        for stop in (first, second, len(names)):
            wanted = names[:stop] if stop < len(names) else list(graph.outputs)
            part = segment(graph, at_hand, wanted)
            if part.nodes:
                at_hand |= Session(parts.model(part), CPU).run(at_hand)
        for output, value in whole.items():
            np.testing.assert_allclose(at_hand[output], value, rtol=1e-5, atol=1e-5)


def test_a_segment_takes_only_the_nodes_and_weights_it_needs():
    graph = traced(NETS["residual_without_norm"]())
    parts = Parts(graph, graph.model)
    names = activations(graph)
    conv = graph.nodes[graph.producer[names[4]]]
    source = conv.input[0]
    part = segment(graph, [source], [names[4]])
    assert (part.inputs, part.outputs) == ((source,), (names[4],))
    model = parts.model(part)
    assert [n.output[0] for n in model.graph.node] == [names[4]]
    assert {t.name for t in model.graph.initializer} == set(conv.input) - {source}
    Session(model, CPU)


def test_what_is_at_hand_is_not_computed():
    graph = traced(NETS["chain"]())
    names = activations(graph)
    assert segment(graph, [*graph.inputs, names[2]], [names[2]]).nodes == ()
    assert segment(graph, [*graph.inputs, names[2]], [names[2]]).outputs == ()
    assert len(segment(graph, [*graph.inputs], [names[2]]).nodes) == 3


def test_before_ir_4_the_weights_are_listed_as_inputs():
    graph = traced(NETS["old"]())
    model = Parts(graph, graph.model).model(segment(graph, graph.inputs, activations(graph)[:1]))
    assert model.ir_version == 3
    assert {t.name for t in model.graph.initializer} < {i.name for i in model.graph.input}


def with_subgraph():
    """The branches of an If read a tensor from outside."""
    branches = {}
    for key, op in (("then_branch", "Relu"), ("else_branch", "Neg")):
        inner = helper.make_node(op, ["c"], [f"{key}_out"])
        out = helper.make_tensor_value_info(f"{key}_out", TensorProto.FLOAT, None)
        branches[key] = helper.make_graph([inner], key, [], [out])
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["c"], name="mul"),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0, name="sum"),
        helper.make_node("Greater", ["s", "zero"], ["positive"], name="greater"),
        helper.make_node("If", ["positive"], ["y"], name="if", **branches),
    ]
    stored = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("two", 2), ("zero", 0))]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])], stored,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_subgraphs_bring_what_they_capture():
    graph = traced(with_subgraph())
    assert set(reads(graph, 3)) == {"positive", "c"}
    feeds = {"x": np.array([[1, -2, 3, 4]], np.float32)}
    parts = Parts(graph, graph.model)
    at_hand = feeds | Session(parts.model(segment(graph, feeds, ["c", "positive"])), CPU).run(feeds)
    got = Session(parts.model(segment(graph, at_hand, ["y"])), CPU).run(at_hand)["y"]
    np.testing.assert_array_equal(got, Session(graph.model, CPU).run(feeds)["y"])


def test_added_weights_are_seen_after_a_refresh():
    graph = traced(NETS["chain"]())
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    parts = Parts(graph, model)
    part = segment(graph, graph.inputs, activations(graph)[:1])
    parts.model(part)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(16, np.float32), "new"))
    model.graph.node[0].input[2] = "new"
    parts.refresh()
    assert "new" in {t.name for t in parts.model(part).graph.initializer}
