"""Why channels may not go: the chain from a tensor to what pins its channels."""

from __future__ import annotations

import numpy as np
import pytest

import onnxprune
from onnxprune.errors import UnknownNameError
from onnxprune.graph.why import sentence
from tests.graph.cases import ints
from tests.graph.nets import net, node, values


def block():
    """x -> Conv a -> Relu -> Conv b; a second branch is added to what b makes, and the sum is an output."""
    nodes = [
        node("Conv", "x w1", "a", name="first"),
        node("Relu", "a", "r", name="act"),
        node("Conv", "r w2", "b", name="second"),
        node("Conv", "x w3", "c", name="beside"),
        node("Add", "b c", "s", name="sum"),
        node("Relu", "s", "y", name="last"),
    ]
    weights = {"w1": values(6, 3, 1, 1), "w2": values(4, 6, 1, 1), "w3": values(4, 3, 1, 1)}
    return net(nodes, weights, {"x": ["N", 3, 5, 5]})


def told(model, tensor, axis, **more):
    found = onnxprune.explain(model, tensor, **more)
    story = next(s for s in found.axes if s.axis == axis)
    return [sentence(found, cause) for cause in story.causes]


@pytest.mark.parametrize(
    ("tensor", "axis", "chain"),
    [
        ("w2", 0, "weight 'w2' -> Conv second makes 4 channels -> Add sum (tied with 'c') -> Relu last -> graph output 'y'"),
        ("w3", 0, "weight 'w3' -> Conv beside makes 4 channels -> Add sum (tied with 'b') -> Relu last -> graph output 'y'"),
        ("c", 1, "activation 'c' -> Add sum (tied with 'b') -> Relu last -> graph output 'y'"),
        ("y", 1, "activation 'y' -> graph output 'y'"),
    ],
)
def test_chains(tensor, axis, chain):
    assert told(block(), tensor, axis) == [chain]


def test_what_can_go_says_in_which_group():
    found = onnxprune.explain(block(), "w1")
    assert [(s.axis, s.length, s.channels, s.groups, s.causes) for s in found.axes] == [(0, 6, 6, (("first", "channel", 6),), ())]
    assert onnxprune.explain(block(), "r").axes[0].groups == (("first", "channel", 6),)


def test_a_layer_stands_for_its_weight():
    assert onnxprune.explain(block(), "second") == onnxprune.explain(block(), "w2")


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="no tensor or layer 'secnd'; did you mean 'second'"):
        onnxprune.explain(block(), "secnd")


def test_inputs_and_constants_carry_none():
    assert (onnxprune.explain(block(), "x").kind, onnxprune.explain(block(), "x").axes) == ("input", ())
    model = net([node("Add", "x k", "y")], {"k": np.float32(1)}, {"x": ["N", 3]})
    assert onnxprune.explain(model, "k").kind == "constant"


def test_backwards_to_what_was_found_out_before():
    nodes = [
        node("Conv", "x w1", "a", name="first"),
        node("LRN", "a", "n", name="lrn", size=3),
        node("Relu", "n", "r", name="act"),
        node("Conv", "r w2", "y", name="second"),
    ]
    model = net(nodes, {"w1": values(6, 3, 1, 1), "w2": values(4, 6, 1, 1)}, {"x": ["N", 3, 5, 5]})
    assert told(model, "w2", 1) == [
        "weight 'w2' -> Conv second reads 6 channels of 'r' -> made by Relu act of 'n' -> made by LRN lrn of 'a' -> "
        "'lrn' divides each channel by its neighbours (LRN)"
    ]
    assert told(model, "w1", 0) == [
        "weight 'w1' -> Conv first makes 6 channels -> 'lrn' divides each channel by its neighbours (LRN)"
    ]


def test_by_way_of_shape_arithmetic():
    nodes = [
        node("Conv", "x w1", "a", name="first"),
        node("Shape", "a", "sh", name="shape"),
        node("Slice", "sh zero two", "nc", name="take"),
        node("Cast", "nc", "f", to=1, name="cast"),
        node("ReduceProd", "f", "all", name="count", keepdims=0),
        node("Div", "a all", "d", name="divide"),
        node("Conv", "d w2", "y", name="second"),
    ]
    weights = {"w1": values(6, 3, 1, 1), "w2": values(4, 6, 1, 1), "zero": ints(0), "two": ints(2)}
    (chain,) = told(net(nodes, weights, {"x": ["N", 3, 5, 5]}), "w1", 0)
    assert chain.startswith("weight 'w1' -> Conv first makes 6 channels -> Shape shape -> Slice take -> Cast cast")
    assert chain.endswith("'count' computes with the size of these channels")


def test_unread_and_single_channels():
    nodes = [node("Conv", "x w1", "a", name="first"), node("ReduceSum", "a all", "y", name="add", keepdims=0)]
    model = net(nodes, {"w1": values(6, 3, 1, 1), "all": ints(2, 3)}, {"x": ["N", 3, 5, 5]})
    assert "graph output 'y'" in told(model, "w1", 0)[0]
    loose = net(
        [node("Conv", "x w1", "a", name="first"), node("Relu", "x", "y")], {"w1": values(6, 3, 1, 1)}, {"x": ["N", 3, 5, 5]}
    )
    assert told(loose, "w1", 0) == ["weight 'w1' -> Conv first makes 6 channels -> no layer reads these channels"]
    one = [node("Conv", "x w1", "a", name="first"), node("Conv", "a w2", "y", name="second")]
    single = net(one, {"w1": values(1, 3, 1, 1), "w2": values(4, 1, 1, 1)}, {"x": ["N", 3, 5, 5]})
    assert "all of it is one channel" in told(single, "w1", 0)[0]


def test_the_other_axis_of_a_split_and_the_nearest_first():
    nodes = [
        node("MatMul", "x w", "q", name="wide"),
        node("Reshape", "q to", "h", name="split"),
        node("LayerNormalization", "h g", "n", name="norm"),
        node("Reshape", "n back", "f", name="join"),
        node("MatMul", "f w2", "y", name="last"),
    ]
    weights = {"w": values(5, 12), "to": ints(0, 0, 4, 3), "back": ints(0, 0, 12), "w2": values(12, 2), "g": values(3)}
    model = net(nodes, weights, {"x": ["N", 7, 5]})
    first, *_ = told(model, "h", 3)
    assert first == "activation 'h' -> 'norm' normalises over these channels (LayerNormalization); --through-norms lets them go"
    assert onnxprune.explain(model, "h").axes[0].groups == (("wide", "neuron", 4),)


def test_long_chains_are_shortened():
    nodes = [node("MatMul", "x w", "t0", name="wide")]
    nodes += [node("Relu", f"t{i}", f"t{i + 1}", name=f"act{i}") for i in range(19)]
    model = net([*nodes, node("Relu", "t19", "y", name="end")], {"w": values(5, 4)}, {"x": ["N", 5]})
    (chain,) = told(model, "w", 1)
    assert "Relu act4 -> ... 9 more ... -> Relu act14" in chain
    assert len(onnxprune.explain(model, "w").axes[0].causes[0].steps) == 21
