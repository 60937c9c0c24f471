"""What the nets of the rule tests cannot show of recurrent layers: batch-wise layout, sizes, costs, scores and the report."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxprune
from onnxprune.graph.find import find
from onnxprune.graph.prepare import prepare
from onnxprune.rewrite.mask import masked_twin
from tests.graph.cases import CASES, ints
from tests.graph.cases_recurrent import GATES, OUT, UNITS, weights
from tests.graph.nets import half, net, node, pruned, values


def hidden_size(model: onnx.ModelProto) -> int:
    cell = next(n for n in model.graph.node if n.op_type in GATES)
    return next(helper.get_attribute_value(a) for a in cell.attribute if a.name == "hidden_size")


def big(op: str, units: int = 32) -> onnx.ModelProto:
    gates = GATES[op]
    stored = {"w": values(1, gates * units, 5), "r": values(1, gates * units, units), "b": values(1, 2 * gates * units)}
    nodes = [
        node("Transpose", "x", "xt", perm=[1, 0, 2]),
        node(op, "xt w r b", "h", name="cell", hidden_size=units),
        node("Squeeze", "h one", "s"),
        node("MatMul", "s w1", "t", name="middle"),
        node("Relu", "t", "u"),
        node("MatMul", "u w2", "yt", name="last"),
        node("Transpose", "yt", "y", perm=[1, 0, 2]),
    ]
    stored |= {"one": ints(1), "w1": values(units, 16), "w2": values(16, 3)}
    return net(nodes, stored, {"x": ["N", 4, 5]})


@pytest.mark.parametrize("op", GATES)
def test_batch_wise_layout(op):
    """ONNX Runtime has no kernel for layout 1, ONNX's reference does."""
    cell = node(op, "x w r b", "h", name="cell", hidden_size=UNITS, layout=1)
    nodes = [cell, node("Squeeze", "h two", "s"), node("MatMul", "s out", "y", name="last")]
    model = net(nodes, weights(op) | OUT | {"two": ints(2)}, {"x": [3, 4, 5]})
    graph, network, made = pruned(model)
    assert {g.name: g.size for g in network.groups} == {"cell": UNITS}
    twin = masked_twin(graph, network, network.alive(half(network, 0)))
    given = {"x": values(3, 4, 5)}
    (small,), (whole,) = (ReferenceEvaluator(m).run(None, given) for m in (made.model, twin))
    assert np.allclose(small, whole, atol=1e-5)


@pytest.mark.parametrize("op", GATES)
def test_hidden_size_follows(op):
    _, _, made = pruned(CASES[f"{op}_bidirectional"]().model)
    assert hidden_size(made.model) == UNITS // 2
    stored = {t.name: list(t.dims) for t in made.model.graph.initializer}
    assert stored["w"] == [2, GATES[op] * UNITS // 2, 5]
    assert stored["r"] == [2, GATES[op] * UNITS // 2, UNITS // 2]
    assert stored["b"] == [2, GATES[op] * UNITS]


def test_every_gate_keeps_the_same_units():
    model = CASES["LSTM_forward"]().model
    _, _, made = pruned(model)
    whole, cut = (next(numpy_helper.to_array(t) for t in m.graph.initializer if t.name == "r") for m in (model, made.model))
    gone = set(made.removed["r"]["2"])
    keep = [u for u in range(UNITS) if u not in gone]
    assert np.array_equal(cut.reshape(4, 3, 3), whole.reshape(4, UNITS, UNITS)[:, keep][:, :, keep])


def test_kind_and_multiplications():
    graph, _ = prepare(big("LSTM"), {"x": (2, 4, 5)})
    network = find(graph)
    group = network.group["cell"]
    assert group.kind == "recurrent"
    assert network.cost().macs == 4 * 2 * (4 * 32 * (5 + 32) + 32 * 16 + 16 * 3)
    assert network.cost({"cell": 8}).macs == 4 * 2 * (4 * 8 * (5 + 8) + 8 * 16 + 16 * 3)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("method", ["coreset-channel", "l1-channel", "random-channel"])
def test_the_whole_way(op, method):
    found = onnxprune.prune(big(op), method, 0.5, samples=64, latency=False)
    assert hidden_size(found.model) < 32
    assert found.report["repair"]["left_out"] == {"cell": f"{op} is not refitted"}
    assert {layer["layer"] for layer in found.report["repair"]["layers"]} == {"middle", "last"}
