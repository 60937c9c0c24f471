"""No input is further off than the propagation says: every rule alone, and whole networks, on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import find, load, prepare
from onnxprune.testing import tiny_network
from onnxprune.theory.guarantee import _Bounded, bounds
from onnxprune.theory.propagation import Propagation
from onnxprune.theory.theorems import Norms

MODELS = Path(__file__).parents[2] / "samples" / "models"


def model(nodes, stored, inputs, outputs, opset=17):
    rng = np.random.default_rng(1)
    tensors = [
        numpy_helper.from_array(v if isinstance(v, np.ndarray) else rng.standard_normal(v).astype(np.float32), n)
        for n, v in stored.items()
    ]
    values = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in each.items()] for each in (inputs, outputs)]
    made = helper.make_model(
        helper.make_graph(nodes, "net", *values, tensors), opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    )
    made = onnx.shape_inference.infer_shapes(made)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(made, x):
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def thinned(made, plans):
    """The model with the weights of these layers changed: weight name -> array."""
    copy = onnx.ModelProto()
    copy.CopyFrom(made)
    for tensor in copy.graph.initializer:
        if tensor.name in plans:
            tensor.CopyFrom(numpy_helper.from_array(plans[tensor.name].astype(np.float32), tensor.name))
    return copy


def inputs(shape, radius, count, seed=0):
    x = np.random.default_rng(seed).standard_normal((count, *shape))
    return (radius * x / np.linalg.norm(x.reshape(count, -1), axis=1).reshape(-1, *[1] * len(shape))).astype(np.float32)


def floats(*values):
    return np.array(values, np.float32)


# What stands behind a layer 'a' of shape (1, 4, 6, 6): nodes from a to y, and what they store.
def node(op, *read, **attributes):
    return [helper.make_node(op, read, ["y"], **attributes)], {}


RULES = {
    "Relu": node("Relu", "a"),
    "LeakyRelu": node("LeakyRelu", "a", alpha=1.5),
    "Elu": node("Elu", "a", alpha=2.0),
    "Selu": node("Selu", "a"),
    "Sigmoid": node("Sigmoid", "a"),
    "HardSigmoid": node("HardSigmoid", "a", alpha=0.4, beta=0.7),
    "HardSwish": node("HardSwish", "a"),
    "Softplus": node("Softplus", "a"),
    "Tanh": node("Tanh", "a"),
    "Cos": node("Cos", "a"),
    "Erf": node("Erf", "a"),
    "Softmax": node("Softmax", "a", axis=1),
    "Clip": (node("Clip", "a", "low", "high")[0], {"low": floats(0.3).reshape(()), "high": floats(0.9).reshape(())}),
    "Clip from below": (node("Clip", "a", "low")[0], {"low": floats(-0.3).reshape(())}),
    "Add": (node("Add", "a", "c")[0], {"c": (4, 1, 1)}),
    "Add of itself": node("Add", "a", "a"),
    "Add with broadcast": (
        [helper.make_node("GlobalAveragePool", ["a"], ["g"]), helper.make_node("Add", ["g", "a"], ["y"])], {},
    ),
    "Sub": (node("Sub", "c", "a")[0], {"c": (4, 1, 1)}),
    "Mul": (node("Mul", "a", "c")[0], {"c": (4, 1, 1)}),
    "Mul that widens": (node("Mul", "a", "c")[0], {"c": (3, 4, 1, 1)}),
    "Div": (node("Div", "a", "c")[0], {"c": (4, 1, 1)}),
    "Mul of itself": node("Mul", "a", "a"),
    "Mul of two": ([helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["y"])], {}),
    "excite": ([helper.make_node("GlobalAveragePool", ["a"], ["g"]), helper.make_node("Mul", ["a", "g"], ["y"])], {}),
    "BatchNormalization": (
        node("BatchNormalization", "a", "g", "b", "m", "v")[0], {"g": (4,), "b": (4,), "m": (4,), "v": floats(1, 2, 0.5, 0.1)},
    ),
    "Concat": ([helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Concat", ["a", "r", "a"], ["y"], axis=1)], {}),
    "MaxPool": node("MaxPool", "a", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "MaxPool, dilated": node("MaxPool", "a", kernel_shape=[2, 2], strides=[2, 2], dilations=[2, 2]),
    "AveragePool": node("AveragePool", "a", kernel_shape=[2, 2]),
    "AveragePool, padded": node("AveragePool", "a", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "GlobalAveragePool": node("GlobalAveragePool", "a"),
    "GlobalMaxPool": node("GlobalMaxPool", "a"),
    "ReduceMean": node("ReduceMean", "a", axes=[1], keepdims=0),
    "ReduceSum": (node("ReduceSum", "a", "axes")[0], {"axes": np.array([2, 3])}),
    "Flatten": node("Flatten", "a"),
    "Transpose": node("Transpose", "a", perm=[0, 2, 3, 1]),
    "Pad": (node("Pad", "a", "pads")[0], {"pads": np.array([0, 0, 1, 2, 0, 0, 3, 0])}),
    "Pad by shape arithmetic": (
        [
            helper.make_node("Shape", ["a"], ["s"]),
            helper.make_node("Sub", ["s", "s"], ["none"]),
            helper.make_node("Concat", ["none", "ends"], ["pads"], axis=0),
            helper.make_node("Pad", ["a", "pads"], ["y"]),
        ],
        {"ends": np.array([0, 0, 1, 1])},
    ),
    "Split": ([helper.make_node("Split", ["a"], ["y", "z"], axis=1)], {}),
}  # fmt: skip


# Bounded by the worst place, the steepest slope or the largest constant, which no one input has everywhere.
LOOSE = {"Mul of two", "Mul that widens", "excite", "Softmax", "HardSwish", "AveragePool, padded"}


def extreme_inputs(radius):
    """(1, 4, 6, 6) of this norm: all in one place, all in one channel, everywhere alike, and at random; of either sign."""
    found = []
    for place in [(0, 0, 0), (0, 1, 1), (0, 2, 3), (0, 5, 5), (1, 2, 2)]:
        x = np.zeros((4, 6, 6))
        x[place] = 1
        found.append(x)
    channel = np.zeros((4, 6, 6))
    channel[0] = 1
    found += [channel, np.ones((4, 6, 6)), *np.random.default_rng(0).standard_normal((10, 4, 6, 6))]
    return [(sign * radius * x / np.linalg.norm(x)).astype(np.float32)[None] for x in found for sign in (1, -1)]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_holds_for_sizes_and_errors(name):
    """Behind a layer that passes its input on, and, pruned, loses a channel: nothing but the rule is between bound and truth."""
    nodes, stored = RULES[name]
    first = helper.make_node("Conv", ["x", "w"], ["a"], name="layer")
    weight = np.diag([0.9, 1, 1, 1]).reshape(4, 4, 1, 1).astype(np.float32)
    made = model([first, *nodes], {"w": weight, **stored}, {"x": [1, 4, 6, 6]}, {"y": None})
    thin = np.diag([0, 1, 1, 1]).reshape(4, 4, 1, 1)
    graph, _ = prepare(load(made).model)
    network = find(graph)
    norms = _Bounded(graph, network, list(network.layers), 2.0).norms("layer", 13)
    assert (norms.full, norms.pruned, norms.gone) == pytest.approx((1, 1, 0.9))
    reach = Propagation(graph, network, {"layer": norms}, 2.0)
    assert "y" in reach.reaches, reach.reasons
    found, pruned, nearest = reach.reaches["y"], thinned(made, {"w": thin}), 0.0
    for x in extreme_inputs(2.0):
        a, b = run(made, x), run(pruned, x)
        assert np.linalg.norm(a) <= found.size * (1 + 1e-5)
        assert np.linalg.norm(b - a) <= found.error * (1 + 1e-5)
        nearest = max(nearest, np.linalg.norm(a) / found.size)
    assert nearest > (0.02 if name in LOOSE else 0.6), "a bound that is never near could be anything"


@pytest.mark.parametrize(
    ("nodes", "stored"),
    [
        node("LpNormalization", "a"),
        node("Exp", "a"),
        (node("Div", "c", "a")[0], {"c": (4, 1, 1)}),
        (node("Pad", "a", "pads", mode="reflect")[0], {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    ],
)
def test_what_has_no_rule_has_a_reason_that_is_passed_on(nodes, stored):
    first = helper.make_node("Conv", ["x", "w"], ["a"], name="layer")
    last = helper.make_node("Relu", ["y"], ["z"])
    made = model([first, *nodes, last], {"w": (4, 2, 3, 3), **stored}, {"x": [1, 2, 6, 6]}, {"z": None})
    graph, _ = prepare(load(made).model)
    reach = Propagation(graph, find(graph), {"layer": Norms(1, 1, 1)}, 1.0)
    assert "a" in reach.reaches
    assert reach.reasons["z"] == reach.reasons["y"] == f"nothing is known of 'y' ({nodes[0].op_type})"


@pytest.mark.parametrize("name", ["lenet300", "cnn", "tiny"])
@pytest.mark.parametrize("ratio", [0.05, 0.6])
def test_whole_networks_are_never_further_off(name, ratio):
    made = tiny_network() if name == "tiny" else onnx.load(MODELS / f"digits_{name}.onnx")
    found = bounds(made, ratio=ratio, radius=3.0)
    weights = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    plans = {}
    for row in found.layers:
        value = weights[row.layer.weight].copy()
        value.ravel()[np.argsort(np.abs(value).ravel(), kind="stable")[: row.goes]] = 0
        plans[row.layer.weight] = value
    assert sum(row.goes > 0 for row in found.layers) == len(found.layers) - 2
    (output,) = found.error
    pruned = thinned(made, plans)
    for x in inputs(_shape(made), 3.0, 20):
        a, b = run(made, x[None]), run(pruned, x[None])
        assert np.linalg.norm(a) <= found.size[output]
        assert 0 < np.linalg.norm(a - b) <= found.error[output]


def _shape(made):
    return tuple(d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim[1:])
