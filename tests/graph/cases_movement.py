"""Operators that move data, and shape arithmetic."""

from __future__ import annotations

import numpy as np

from tests.graph.cases import CASES, Case, ints, simple, with_input
from tests.graph.nets import net, node, values

simple("pad_attribute_7", [node("Pad", "a", "b", pads=[0, 0, 1, 2, 0, 0, 1, 0])], opset=7)
simple("pad_input_13", [node("Pad", "a p", "b")], {"p": ints(0, 0, 1, 2, 0, 0, 1, 0)}, opset=13)
simple("pad_axes_18", [node("Pad", "a p - ax", "b")], {"p": ints(1, 2, 1, 0), "ax": ints(-1, 2)}, opset=18)
simple("pad_reflect", [node("Pad", "a p", "b", mode="reflect")], {"p": ints(0, 0, 1, 2, 0, 0, 1, 0)})
simple(
    "pad_reflect_channels",
    [node("Pad", "a p", "b", mode="reflect")],
    {"p": ints(0, 1, 0, 0, 0, 1, 0, 0)},
    {},
    (("a", "pads or crops"),),
    reads=8,
)
simple("crop_positions", [node("Pad", "a p", "b")], {"p": ints(0, 0, -1, 0, 0, 0, 0, -2)})
for form, weights, attributes, opset in (
    ("attribute", {}, {"pads": [0, 2, 0, 0, 0, 4, 0, 0]}, 7),
    ("input", {"p": ints(0, 2, 0, 0, 0, 4, 0, 0)}, {}, 13),
    ("axes", {"p": ints(2, 4), "ax": ints(1)}, {}, 18),
):
    given = {"attribute": "a", "input": "a p", "axes": "a p - ax"}[form]
    simple(
        f"option_a_shortcut_{form}",
        [node("Pad", given, "q", **attributes), node("Conv", "a w", "o", name="main"), node("Add", "q o", "b")],
        {"w": values(12, 6, 1, 1), **weights},
        {"first": 6, "main": 6},
        opset=opset,
        reads=12,
    )
simple("pad_channels_with_a_value", [node("Pad", "a p v", "b")], {"p": ints(0, 0, 0, 0, 0, 2, 0, 0), "v": np.float32(3)}, reads=8)
simple(
    "concat_channels",
    [node("Conv", "x w3", "o", name="other"), node("Concat", "a o a", "b", axis=1)],
    {"w3": values(5, 3, 1, 1)},
    {"first": 6, "other": 5},
    reads=17,
)
simple(
    "concat_positions",
    [node("Conv", "x w3", "o", name="other"), node("Concat", "a o", "b", axis=-1)],
    {"w3": values(6, 3, 1, 1)},
    {"first": 6},
)
simple("concat_with_the_input", [node("Concat", "x a", "b", axis=1)], {}, {"first": 6}, (), reads=9)
CASES["concat_constants"] = lambda: Case(
    net(
        [
            node("Conv", "x w1", "a", name="first"),
            node("Concat", "z a z", "q", axis=1),
            node("Conv", "x w3", "o", name="other"),
            node("Add", "q o", "b"),
            node("Conv", "b w2", "y", name="last"),
        ],
        {"w1": values(6, 3, 1, 1), "z": values(2, 3, 4, 4), "w3": values(12, 3, 1, 1), "w2": values(4, 12, 1, 1)},
        {"x": [2, 3, 4, 4]},
    ),
    {"first": 6, "other": 3, "other#2": 3},
)
CASES["concat_constant_along_positions"] = lambda: Case(
    net(
        [node("Conv", "x w1", "a", name="first"), node("Concat", "a c", "b", axis=2), node("Conv", "b w2", "y", name="last")],
        {"w1": values(6, 3, 1, 1), "c": values(2, 6, 2, 4), "w2": values(4, 6, 1, 1)},
        {"x": [2, 3, 4, 4]},
    ),
    {"first": 6},
)
simple("flatten_spatial", [node("Flatten", "a", "b")], reads=6 * 16, reader="Gemm", size=(4, 4))
for form, target in {"minus_one": (0, -1), "literal": (-1, 96), "batch_minus_one": (-1, 96)}.items():
    simple(f"reshape_{form}", [node("Reshape", "a to", "b")], {"to": ints(*target)}, reads=96, reader="Gemm", size=(4, 4))
simple(
    "reshape_to_rows",
    [node("Reshape", "a to", "r"), node("Tanh", "r", "t"), node("Reshape", "t back", "b")],
    {"to": ints(0, 6, -1), "back": ints(-1, 6, 4, 4)},
    size=(4, 4),
)
simple(
    "reshape_shared_target",
    [
        node("Reshape", "a to", "r"),
        node("Conv", "x w3", "o", name="other"),
        node("Reshape", "o to", "s"),
        node("Concat", "r s", "c", axis=1),
        node("Unsqueeze", "c ax", "b"),
    ],
    {"to": ints(-1, 6, 16), "w3": values(6, 3, 1, 1), "ax": ints(3)},
    {"first": 6, "other": 6},
    reads=12,
    size=(4, 4),
)
simple(
    "reshape_splits",
    [node("Reshape", "a to", "r"), node("Transpose", "r", "t", perm=[0, 2, 1, 3, 4]), node("Reshape", "t back", "b")],
    {"to": ints(0, 2, 3, 8, 8), "back": ints(0, 6, 8, 8)},
    {"first": 3},
)
SHAPE_OF_A = [
    node("Shape", "a", "sh"),
    node("Gather", "sh zero", "n"),
    node("Gather", "sh one", "c"),
    node("Unsqueeze", "n ax0", "n1"),
    node("Unsqueeze", "c ax0", "c1"),
]
SHAPE_WEIGHTS = {"zero": np.array(0), "one": np.array(1), "ax0": ints(0), "m1": ints(-1)}
simple(
    "reshape_target_from_batch",
    [*SHAPE_OF_A, node("Concat", "n1 m1", "to", axis=0), node("Reshape", "a to", "b")],
    SHAPE_WEIGHTS,
    reads=96,
    reader="Gemm",
    size=(4, 4),
)
simple(
    "reshape_target_from_channels",
    [
        *SHAPE_OF_A,
        node("Concat", "n1 c1 m1", "to", axis=0),
        node("Reshape", "a to", "r"),
        node("Softmax", "r", "s"),
        node("Concat", "n1 c1 four four", "back", axis=0),
        node("Reshape", "s back", "b"),
    ],
    SHAPE_WEIGHTS | {"four": ints(4)},
    size=(4, 4),
)
simple(
    "reshape_target_of_a_pooled_gate",
    [
        *SHAPE_OF_A,
        node("GlobalAveragePool", "a", "g"),
        node("Concat", "n1 c1", "to", axis=0),
        node("Reshape", "g to", "r"),
        node("Gemm", "r ws", "s", name="squeeze"),
        node("Gemm", "s we", "e", name="excite"),
        node("Concat", "n1 c1 ones ones", "back", axis=0),
        node("Reshape", "e back", "gate"),
        node("Mul", "a gate", "b"),
    ],
    SHAPE_WEIGHTS | {"ws": values(6, 3), "we": values(3, 6), "ones": ints(1)},
    {"first": 6, "squeeze": 3},
    (),
    size=(4, 4),
)
simple(
    "reshape_target_computed",
    [*SHAPE_OF_A, node("Mul", "c1 sixteen", "k"), node("Concat", "n1 k", "to", axis=0), node("Reshape", "a to", "b")],
    SHAPE_WEIGHTS | {"sixteen": ints(16)},
    reads=96,
    reader="Gemm",
    size=(4, 4),
)
simple(
    "channel_size_in_arithmetic",
    [*SHAPE_OF_A, node("Cast", "c1", "f", to=1), node("Sqrt", "f", "q"), node("Div", "a q", "b")],
    SHAPE_WEIGHTS,
    size=(4, 4),
)
simple(
    "whole_size_in_arithmetic",
    [node("Size", "a", "sh"), node("Cast", "sh", "f", to=1), node("Div", "a f", "b")],
    {},
    {},
    (("a", "size"),),
    size=(4, 4),
)
simple(
    "batch_size_in_arithmetic",
    [*SHAPE_OF_A, node("Cast", "n1", "f", to=1), node("Div", "a f", "b")],
    SHAPE_WEIGHTS,
    None,
    (),
    size=(4, 4),
)
simple("channel_size_unread", [*SHAPE_OF_A, node("Relu", "a", "b")], SHAPE_WEIGHTS, None, (), size=(4, 4))
simple(
    "resize_sizes_from_the_graph",
    [
        node("Shape", "a", "sh"),
        node("Slice", "sh i0 i2 i0", "nc"),
        node("Concat", "nc hw", "sz", axis=0),
        node("Resize", "a - - sz", "b"),
    ],
    {"i0": ints(0), "i2": ints(2), "hw": ints(10, 12)},
    None,
    (),
    size=(4, 4),
)
CASES["reshape_target_is_an_input"] = lambda: Case(
    with_input(
        net(
            [
                node("Shape", "x", "to"),
                node("Conv", "x w1", "a", name="first"),
                node("Reshape", "a to", "r"),
                node("Relu", "r", "y"),
            ],
            {"w1": values(6, 3, 1, 1)},
            {"x": ["N", 3, 4, 4]},
        ),
        "to",
        4,
    ),
    {},
    (("a", "not known"),),
)
simple("squeeze_11", [node("GlobalMaxPool", "a", "g"), node("Squeeze", "g", "b", axes=[2, 3])], opset=11, reader="Gemm")
simple("squeeze_13", [node("GlobalMaxPool", "a", "g"), node("Squeeze", "g ax", "b")], {"ax": ints(-1, -2)}, reader="Gemm")
simple("unsqueeze_11", [node("Unsqueeze", "a", "u", axes=[2]), node("Squeeze", "u", "b", axes=[2])], opset=11)
simple("unsqueeze_13", [node("Unsqueeze", "a ax", "u"), node("Relu", "u", "v"), node("Squeeze", "v ax", "b")], {"ax": ints(1)})
simple(
    "transpose_to_channels_last",
    [
        node("Transpose", "a", "t", perm=[0, 2, 3, 1]),
        node("Mul", "t c", "m"),
        node("MatMul", "m w", "d", name="dense"),
        node("Transpose", "d", "b", perm=[0, 3, 1, 2]),
    ],
    {"c": values(6), "w": values(6, 8)},
    {"first": 6, "dense": 8},
    reads=8,
)
simple(
    "slice_positions",
    [node("Slice", "a s e ax st", "b")],
    {"s": ints(1, 0), "e": ints(7, 99), "ax": ints(2, 3), "st": ints(1, 2)},
)
simple("slice_positions_9", [node("Slice", "a", "b", starts=[1], ends=[7], axes=[3])], opset=9)
simple(
    "flatten_channels_last",
    [node("Transpose", "a", "t", perm=[0, 2, 3, 1]), node("Flatten", "t", "b")],
    reads=96,
    reader="Gemm",
    size=(4, 4),
)
simple(
    "reshape_target_from_another_layer",
    [
        *SHAPE_OF_A,
        node("Conv", "x w3", "o", name="other"),
        node("GlobalAveragePool", "o", "g"),
        node("Concat", "n1 c1", "to", axis=0),
        node("Reshape", "g to", "r"),
        node("Gemm", "r ws", "s", name="squeeze"),
        node("Unsqueeze", "s ax2", "u"),
        node("Mul", "a u", "b"),
    ],
    SHAPE_WEIGHTS | {"w3": values(6, 3, 1, 1), "ws": values(6, 1), "ax2": ints(2, 3)},
    {"first": 6, "other": 6},
    (("s", "drops"),),
    size=(4, 4),
)
