"""Shape arithmetic is made plain in one go, however long the chain, and a second time changes nothing."""

from __future__ import annotations

import onnx
import pytest

from onnxprune.graph.find import find
from onnxprune.graph.prepare import prepare
from tests.graph.cases import ints
from tests.graph.nets import check, feeds, net, node, pruned, run, values


def shuffles(count: int) -> onnx.ModelProto:
    """Channel shuffles as exporters write them: groups of 2, their width computed from the shape of what comes in."""
    nodes, x = [node("Conv", "x w", "a0", name="first")], "a0"
    for i in range(count):
        nodes += [
            node("Shape", x, f"s{i}"),
            node("Gather", f"s{i} zero", f"n{i}"),
            node("Gather", f"s{i} one", f"c{i}"),
            node("Div", f"c{i} two", f"h{i}"),
            node("Concat", f"n{i} two h{i} size", f"to{i}", axis=0),
            node("Reshape", f"{x} to{i}", f"r{i}"),
            node("Transpose", f"r{i}", f"t{i}", perm=[0, 2, 1, 3, 4]),
            node("Concat", f"n{i} c{i} size", f"back{i}", axis=0),
            node("Reshape", f"t{i} back{i}", f"b{i}"),
            node("Relu", f"b{i}", f"a{i + 1}"),
        ]
        x = f"a{i + 1}"
    nodes.append(node("Conv", f"{x} u", "y", name="last"))
    weights = {"w": values(8, 3, 1, 1), "u": values(4, 8, 1, 1), "zero": ints(0), "one": ints(1)}
    return net(nodes, weights | {"two": ints(2), "size": ints(4, 4)}, {"x": ["N", 3, 4, 4]})


def halves(count: int) -> onnx.ModelProto:
    """Each half of the channels, its bound computed from the shape of what comes in: inference has to be told to see further."""
    nodes, x = [node("Conv", "x w", "a0", name="first")], "a0"
    for i in range(count):
        nodes += [
            node("Shape", x, f"s{i}"),
            node("Gather", f"s{i} one", f"c{i}"),
            node("Div", f"c{i} two", f"h{i}"),
            node("Slice", f"{x} zero h{i} one", f"l{i}"),
            node("Slice", f"{x} h{i} c{i} one", f"r{i}"),
            node("Concat", f"r{i} l{i}", f"a{i + 1}", axis=1),
        ]
        x = f"a{i + 1}"
    nodes.append(node("Conv", f"{x} u", "y", name="last"))
    weights = {"w": values(8, 3, 1, 1), "u": values(4, 8, 1, 1), "zero": ints(0), "one": ints(1), "two": ints(2)}
    return net(nodes, weights, {"x": ["N", 3, 4, 4]})


@pytest.mark.parametrize("model", [shuffles(12), halves(12)])
def test_a_long_chain_is_made_plain_at_once(model):
    graph, _ = prepare(model)
    first = len(graph.nodes), [(g.name, g.size) for g in find(graph).groups]
    assert not any(n.op_type == "Div" for n in graph.nodes)
    graph, _ = prepare(model)
    assert (len(graph.nodes), [(g.name, g.size) for g in find(graph).groups]) == first


def test_lengths_that_are_repeated_once_are_known_beside_an_unknown_batch():
    """ONNX's inference knows nothing of a Tile until it knows all of how often it repeats."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n"),
        node("Concat", "n one one", "times", axis=0),
        node("Tile", "tokens times", "t"),
        node("Shape", "t", "st"),
        node("Gather", "st two", "width"),
        node("Div", "width two", "half"),
        node("Concat", "n four two half", "to", axis=0),
        node("Reshape", "t to", "y"),
    ]
    weights = {"tokens": values(1, 4, 6), "zero": ints(0), "one": ints(1), "two": ints(2), "four": ints(4)}
    model = net(nodes, weights, {"x": ["N", 24]}, output_shape=["N", 4, 2, 3])
    before = [run(model, feeds(model, batch))[0] for batch in (1, 3)]
    prepare(model)
    assert [n.op_type for n in model.graph.node] == ["Shape", "Gather", "Concat", "Tile", "Concat", "Reshape"]
    for batch, expected in zip((1, 3), before, strict=True):
        assert (run(model, feeds(model, batch))[0] == expected).all()


def test_shuffles_of_computed_width_can_be_cut():
    model = shuffles(2)
    _, network, made = pruned(model)
    assert [(g.name, g.size) for g in network.groups] == [("first", 2)]
    check(model, made)
