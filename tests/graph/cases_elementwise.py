"""Operators that work position by position."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.graph.cases import CASES, Case, dense, simple
from tests.graph.nets import net, node, values

UNARY_PLAIN = (
    "Abs",
    "Asinh",
    "Atan",
    "Ceil",
    "Celu",
    "Cos",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Neg",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Cosh",
    "Softplus",
    "Softsign",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
)
UNARY_OF_SHARES = ("Acos", "Asin", "Atanh", "Log", "Reciprocal", "Sqrt")
for op in UNARY_PLAIN:
    simple(f"unary_{op}", [node(op, "a", "b")])
for op in UNARY_OF_SHARES:
    simple(
        f"unary_{op}", [node("Sigmoid", "a", "s"), node("Mul", "s almost", "m"), node(op, "m", "b")], {"almost": np.float32(0.9)}
    )
simple("unary_Acosh", [node("Exp", "a", "e"), node("Add", "e one", "s"), node("Acosh", "s", "b")], {"one": np.float32(1)})
simple("unary_Gelu", [node("Gelu", "a", "b")], opset=20)
simple("unary_Mish", [node("Mish", "a", "b")], opset=18)
simple("unary_Cast", [node("Cast", "a", "d", to=TensorProto.DOUBLE), node("Cast", "d", "b", to=TensorProto.FLOAT)])
simple("unary_IsNaN", [node("IsNaN", "a", "q"), node("Not", "q", "n"), node("Cast", "n", "b", to=TensorProto.FLOAT)])
simple("unary_IsInf", [node("IsInf", "a", "q"), node("Cast", "q", "c", to=TensorProto.FLOAT), node("Add", "c a", "b")])
simple(
    "unary_BitwiseNot",
    [node("Cast", "a", "i", to=TensorProto.INT32), node("BitwiseNot", "i", "n"), node("Cast", "n", "b", to=TensorProto.FLOAT)],
    opset=18,
)
simple("clip_attribute", [node("Clip", "a", "b", min=0.0, max=0.4)], opset=7)
simple("clip_inputs", [node("Clip", "a lo hi", "b")], {"lo": np.float32(0), "hi": np.float32(0.4)})
simple("clip_no_lower_limit", [node("Clip", "a - hi", "b")], {"hi": np.float32(0.4)})
simple("dropout_7", [node("Dropout", "a", "b", ratio=0.3)], opset=7)
simple(
    "dropout_13_with_mask",
    [node("Dropout", "a r", "d mask"), node("Cast", "mask", "c", to=TensorProto.FLOAT), node("Mul", "d c", "b")],
    {"r": np.float32(0.3)},
    opset=13,
)

FLOAT_PAIRS = ("Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum")
CONSTANTS = {
    "c11": values(6, 1, 1, low=1, high=2),
    "1c11": values(1, 6, 1, 1, low=1, high=2),
    "scalar": np.float32(1.5),
    "one": values(1, low=1, high=2),
    "chw": values(6, 8, 8, low=1, high=2),
    "hw": values(8, 8, low=1, high=2),
}
for op in FLOAT_PAIRS:
    for form, constant in CONSTANTS.items():
        start = [node("Abs", "a", "s")]
        simple(f"{op}_constant_{form}", [*start, node(op, "s c", "b")], {"c": constant})
    simple(
        f"{op}_constant_first", [node("Sigmoid", "a", "s"), node("Exp", "s", "e"), node(op, "c e", "b")], {"c": CONSTANTS["c11"]}
    )
    simple(
        f"{op}_two_activations",
        [node("Conv", "x w3", "p", name="other"), node("Exp", "p", "o"), node("Abs", "a", "s"), node(op, "s o", "b")],
        {"w3": values(6, 3, 1, 1)},
        {"first": 6},
    )
simple("Mod_constant", [node("Mod", "a c", "b", fmod=1)], {"c": CONSTANTS["c11"]})
for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
    simple(
        f"{op}_constant",
        [node("Round", "a", "s"), node(op, "s c", "q"), node("Cast", "q", "f", to=TensorProto.FLOAT), node("Add", "f a", "b")],
        {"c": np.arange(6, dtype=np.float32).reshape(6, 1, 1) - 3},
    )
for op in ("And", "Or", "Xor"):
    simple(
        f"{op}_constant",
        [node("Greater", "a zero", "q"), node(op, "q c", "r"), node("Cast", "r", "b", to=TensorProto.FLOAT)],
        {"zero": np.float32(0), "c": np.array([1, 0, 1, 1, 0, 0], bool).reshape(6, 1, 1)},
    )
for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
    simple(
        f"{op}_constant",
        [
            node("Mul", "a ten", "t"),
            node("Cast", "t", "i", to=TensorProto.INT32),
            node(op, "i c", "r"),
            node("Cast", "r", "b", to=TensorProto.FLOAT),
        ],
        {"ten": np.float32(10), "c": np.array([1, 2, 3, 4, 5, 6], np.int32).reshape(6, 1, 1)},
        opset=18,
    )
simple(
    "Where_mixed", [node("Greater", "a zero", "q"), node("Where", "q a c", "b")], {"zero": np.float32(0), "c": CONSTANTS["c11"]}
)
simple(
    "Where_constant_condition",
    [node("Where", "q a zero", "b")],
    {"zero": np.float32(0), "q": np.array([1, 0, 1, 1, 0, 1], bool).reshape(1, 6, 1, 1)},
)
simple(
    "Sum_of_three",
    [node("Conv", "x w3", "o", name="other"), node("Sum", "a o c", "b")],
    {"w3": values(6, 3, 1, 1), "c": CONSTANTS["c11"]},
    {"first": 6},
)
simple("Sum_of_one", [node("Sum", "a", "b")])
simple(
    "squeeze_and_excite",
    [
        node("GlobalAveragePool", "a", "g"),
        node("Conv", "g ws", "s", name="squeeze"),
        node("Relu", "s", "r"),
        node("Conv", "r we", "e", name="excite"),
        node("Sigmoid", "e", "gate"),
        node("Mul", "a gate", "b"),
    ],
    {"ws": values(3, 6, 1, 1), "we": values(6, 3, 1, 1)},
    {"first": 6, "squeeze": 3},
)
simple(
    "one_channel_gate",
    [node("Conv", "a wg", "g", name="gate"), node("Mul", "a g", "b")],
    {"wg": values(1, 6, 1, 1)},
    None,
    (("g", "broadcast over"),),
)
simple("prelu_per_channel", [node("PRelu", "a s", "b")], {"s": values(6, 1, 1)})
simple("prelu_shared_slope", [node("PRelu", "a s", "b")], {"s": values(1)})
CASES["activation_without_channels"] = lambda: Case(
    net(
        [node("Conv", "x w1", "a", name="first"), node("Mul", "a extra", "b"), node("Conv", "b w2", "y", name="last")],
        {"w1": values(6, 3, 1, 1), "w2": values(4, 6, 1, 1)},
        {"x": ["N", 3, 4, 4], "extra": ["N", 6, 1, 1]},
    ),
    {},
    (("extra", "carries no channels"),),
)
CASES["constant_added_to_rows"] = dense(
    [node("MatMul", "x w1", "h", name="one"), node("Mul", "h c", "t"), node("MatMul", "t w2", "y", name="two")],
    {"w1": values(5, 7), "c": values(3, 7), "w2": values(7, 4)},
    {"one": 7},
    shape=("N", 3, 5),
)
# What an activation is broadcast over brings the axis in: it is cut with the channels that it meets.
simple(
    "constant_over_a_broadcast_activation",
    [node("ReduceMean", "x", "m", axes=[1, 2, 3]), node("Mul", "m k", "mk"), node("Add", "a mk", "b")],
    {"k": values(6, 1, 1)},
)
