"""Sorting, folding and cleaning change what they should and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph import surgeon
from onnxprune.graph.load import load
from onnxprune.graph.prepare import prepare
from tests.graph.nets import arrays, feeds, net, node, run, session, values


def chain(length: int) -> onnx.ModelProto:
    nodes = [node("Relu" if i % 2 else "Tanh", f"t{i}", f"t{i + 1}", name=f"n{i}") for i in range(length)]
    return net(nodes, {}, {"t0": ["N", 3]}, [f"t{length}"])


def with_losses(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fill in everything that a round trip through graphsurgeon drops."""
    model.doc_string = "a model"
    model.metadata_props.add(key="made by", value="hand")
    model.graph.doc_string = "a graph"
    model.graph.metadata_props.add(key="graph", value="too")
    for number, n in enumerate(model.graph.node):
        n.doc_string = f"node {number}"
        n.metadata_props.add(key="line", value=str(number))
    annotation = model.graph.quantization_annotation.add(tensor_name=model.graph.node[0].output[0])
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    model.graph.value_info.append(helper.make_tensor_value_info(model.graph.node[0].output[0], TensorProto.FLOAT, None))
    return model


def test_a_shuffled_graph_is_sorted_and_keeps_everything():
    model = with_losses(chain(6))
    shuffled = onnx.ModelProto.FromString(model.SerializeToString())
    del shuffled.graph.node[:]
    shuffled.graph.node.extend([model.graph.node[i] for i in (3, 0, 5, 2, 4, 1)])
    file = load(shuffled)
    assert file.model.SerializeToString() == model.SerializeToString()
    assert "topological order" in file.notes[0]


def test_a_sorted_graph_is_not_touched():
    model = with_losses(chain(4))
    file = load(model)
    assert file.model.SerializeToString() == model.SerializeToString()
    assert file.notes == ()


def test_a_long_chain_in_reverse_is_no_cycle():
    model = chain(1500)
    nodes = list(model.graph.node)[::-1]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    surgeon.sort(model, "it")
    assert surgeon.is_sorted(model.graph)


def test_a_cycle_is_refused_in_one_line():
    model = chain(3)
    model.graph.node[0].input[0] = "t2"
    with pytest.raises(ModelError, match="cycle"):
        load(model)


def conditional() -> onnx.ModelProto:
    """An If whose branches read 'h' and the weight 'w', which the main graph makes."""

    def branch(name, op):
        shape = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        return helper.make_graph([node(op, "h w", f"{name}_out")], name, [], [shape])

    return net(
        [
            node("Relu", "x", "h", name="first"),
            node("ReduceMax", "h", "m", keepdims=0),
            node("Cast", "m", "c", to=TensorProto.BOOL),
            helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch("a", "Add"), else_branch=branch("b", "Mul")),
        ],
        {"w": values(3)},
        {"x": ["N", 3]},
    )


def test_what_a_subgraph_reads_counts_in_the_order():
    model = conditional()
    order = list(model.graph.node)
    wrong = onnx.ModelProto.FromString(model.SerializeToString())
    del wrong.graph.node[:]
    wrong.graph.node.extend([order[1], order[2], order[3], order[0]])
    assert not surgeon.is_sorted(wrong.graph)
    file = load(wrong)
    assert [n.op_type for n in file.model.graph.node].index("If") == 3
    assert np.array_equal(run(file.model, feeds(model, 2))[0], run(model, feeds(model, 2))[0])


def test_only_the_subgraph_out_of_order_is_seen():
    model = conditional()
    del model.graph.node[1:3]
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in (model.graph.node[1], model.graph.node[0])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert not surgeon.is_sorted(model.graph)
    surgeon.sort(model, "it")
    assert [n.op_type for n in model.graph.node] == ["Relu", "If"]


def test_clean_leaves_what_was_unused_before():
    model = net([node("Relu", "x", "y"), node("Tanh", "x", "idle")], {"unused": values(3), "gone": values(2)}, {"x": ["N", 3]})
    surgeon.clean(model, {"gone", "y"})
    assert list(arrays(model)) == ["unused"]
    assert [n.op_type for n in model.graph.node] == ["Relu", "Tanh"]


def test_clean_takes_the_listed_input_of_an_old_initializer_too():
    model = net([node("Relu", "x", "y")], {"gone": values(2)}, {"x": ["N", 3]}, ir=3)
    surgeon.clean(model, {"gone"})
    assert [i.name for i in model.graph.input] == ["x"]


def computed_weight(extra_output: bool = False) -> onnx.ModelProto:
    nodes = [
        node("Mul", "w two", "w2", name="scaled"),
        node("Split", "w2", "left right", axis=1),
        node("MatMul", "x left", "h", name="one"),
    ]
    nodes += (
        [node("Add", "h right", "s"), node("MatMul", "s w3", "y", name="two")]
        if extra_output
        else [node("MatMul", "h w3", "y", name="two")]
    )
    weights = {"w": values(5, 14), "two": np.float32(2), "w3": values(7, 4)}
    return net(
        nodes, weights, {"x": [5, 5]}, opset=13, value_info=[helper.make_tensor_value_info("h", TensorProto.FLOAT, [5, 7])]
    )


@pytest.mark.parametrize("both", [False, True])
def test_fold_keeps_both_outputs_of_a_node(both):
    model = with_losses(computed_weight(both))
    before = run(model, feeds(model, 5))[0]
    _, count = prepare(model)
    assert count >= 1 + both
    assert {"left", "right"} <= set(arrays(model)) if both else "left" in arrays(model)
    onnx.checker.check_model(model, full_check=True)
    assert "w2" not in arrays(model)
    np.testing.assert_allclose(run(model, feeds(model, 5))[0], before, rtol=1e-5)
    assert model.doc_string == "a model"
    assert {n.doc_string for n in model.graph.node} <= {"node 2", "node 3", "node 4"}
    assert len(model.graph.quantization_annotation) == 1


def test_fold_says_nothing_on_stdout(capfd):
    prepare(computed_weight())
    assert capfd.readouterr().out == ""


def test_random_constants_are_not_folded():
    nodes = [node("RandomNormalLike", "w", "noise"), node("MatMul", "x noise", "y")]
    model = net(nodes, {"w": values(5, 7)}, {"x": ["N", 5]})
    graph, count = prepare(model)
    assert count == 0
    assert "noise" not in graph.constants
    assert [n.op_type for n in model.graph.node] == ["RandomNormalLike", "MatMul"]


def test_quantised_weights_are_not_folded():
    nodes = [
        node("DequantizeLinear", "q s z", "w"),
        node("MatMul", "x w", "h", name="one"),
        node("MatMul", "h v", "y", name="two"),
    ]
    weights = {"q": np.arange(35, dtype=np.int8).reshape(5, 7), "s": np.float32(0.1), "z": np.int8(3), "v": values(7, 4)}
    model = net(nodes, weights, {"x": ["N", 5]})
    before = model.SerializeToString()
    assert prepare(model)[1] == 0
    assert model.SerializeToString() == before


def test_initializers_before_ir_4_are_listed_as_inputs():
    model = net([node("Relu", "x", "y")], {}, {"x": ["N", 3]}, ir=3)
    stored = surgeon.add_initializer(model, numpy_helper.from_array(values(2), "new"))
    assert stored is model.graph.initializer[-1] or stored.name == "new"
    assert [i.name for i in model.graph.input] == ["x", "new"]
    assert session(model) is not None


def test_folding_says_nothing(capfd):
    """ONNX Runtime, by which graphsurgeon folds, would warn that it has no kernel for CastLike."""
    model = net([node("CastLike", "w w", "cast"), node("MatMul", "x cast", "y")], {"w": values(5, 7)}, {"x": ["N", 5]})
    graph, count = prepare(model)
    assert count == 1
    assert "cast" in graph.parameters
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.parametrize(("kind", "rough"), [(np.float32, 1e-6), (np.float16, 1e-3)])
@pytest.mark.parametrize("portion", [1, 1 << 20])
def test_weights_are_folded_in_portions(monkeypatch, portion, kind, rough):
    """All that several weights share is there for each of them; half precision is rounded as ONNX Runtime does."""
    monkeypatch.setattr(surgeon, "PORTION", portion)
    nodes = []
    for name in "abc":
        nodes += [node("ReduceMean", f"w{name}", f"m{name}", axes=[0]), node("Sub", f"w{name} m{name}", f"c{name}")]
        nodes += [node("Mul", f"c{name} scale", f"f{name}"), node("MatMul", f"x f{name}", f"y{name}")]
    weights = {**{f"w{name}": values(5, 7).astype(kind) for name in "abc"}, "scale": values(7).astype(kind)}
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    model = net(nodes, weights, {"x": ["N", 5]}, ["ya", "yb", "yc"], kind=element)
    given = {"x": values(3, 5).astype(kind)}
    before = run(model, given)
    _, count = prepare(model)
    assert count == 3
    assert set(arrays(model)) == {"fa", "fb", "fc"}
    assert [n.op_type for n in model.graph.node] == ["MatMul"] * 3
    for got, expected in zip(run(model, given), before, strict=True):
        np.testing.assert_allclose(got, expected, rtol=rough, atol=rough)


def test_what_graphsurgeon_cannot_fold_stays_computed():
    nodes = [
        node("SplitToSequence", "w", "parts", axis=1),
        node("ConcatFromSequence", "parts", "whole", axis=1),
        node("MatMul", "x whole", "y"),
    ]
    graph, _ = prepare(net(nodes, {"w": values(5, 7)}, {"x": ["N", 5]}))
    assert "whole" in graph.constants
    assert "whole" not in graph.parameters
