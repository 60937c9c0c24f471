"""Operators that take some positions, repeat them or lay them out anew: Slice, Split, Gather, Expand, Tile, DepthToSpace."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from tests.graph.cases import CASES, dense, ints, simple
from tests.graph.nets import node, values

# The first 4 of 6 channels are read; nothing reads the others, so that they are no group.
HEAD = {"s": ints(0), "e": ints(4), "ax": ints(1)}
simple("slice_channels", [node("Slice", "a s e ax", "b")], HEAD, {"first": 4}, (("a", "no layer"),), reads=4)
simple("slice_attributes", [node("Slice", "a", "b", starts=[1], ends=[5], axes=[1])], {}, {"first": 4}, (("a", "no layer"),),
       reads=4, opset=9)  # fmt: skip
simple("slice_from_the_end", [node("Slice", "a s e ax", "b")], {"s": ints(-4), "e": ints(2**62), "ax": ints(-3)}, {"first": 4},
       (("a", "no layer"),), reads=4)  # fmt: skip
HALVES = {"z": ints(0), "h": ints(3), "all": ints(6), "ax": ints(1)}
simple(
    "slices_in_two_halves",
    [node("Slice", "a z h ax", "l"), node("Slice", "a h all ax", "r"), node("Sigmoid", "r", "g"), node("Mul", "l g", "b")],
    HALVES,
    {"first": 3},
    reads=3,
)
simple("slice_positions", [node("Slice", "a s e ax", "b")], {"s": ints(1, 2), "e": ints(7, 8), "ax": ints(2, 3)})
simple(
    "slice_every_second",
    [node("Slice", "a z all ax two", "l"), node("Slice", "a one all ax two", "r"), node("Mul", "l r", "b")],
    {"z": ints(0), "one": ints(1), "all": ints(6), "ax": ints(1), "two": ints(2)},
    {"first": 3},
    reads=3,
)
simple("slice_reversed", [node("Slice", "a s e ax st", "b")], {"s": ints(-1), "e": ints(-99), "ax": ints(1), "st": ints(-1)})
simple(
    "slice_of_every_third_from_the_second",
    [node("Slice", "a s e ax st", "b")],
    {"s": ints(1), "e": ints(6), "ax": ints(1), "st": ints(4)},
    {},
    (("a", "slice"),),
    reads=2,
)
for opset, given, extra, fields in (
    (11, "a", {}, {}),
    (11, "a", {}, {"split": [3, 3]}),
    (13, "a", {}, {}),
    (13, "a sp", {"sp": ints(3, 3)}, {}),
    (18, "a", {}, {"num_outputs": 2}),
):
    simple(
        f"split_{opset}_{'_'.join([*extra, *fields]) or 'even'}",
        [node("Split", given, "l r", axis=1, **fields), node("Sigmoid", "r", "g"), node("Mul", "l g", "b")],
        extra,
        {"first": 3},
        reads=3,
        opset=opset,
    )
simple(
    "split_unevenly",
    [node("Split", "a sp", "l r", axis=1), node("Conv", "l w", "lw", name="mid"), node("Concat", "lw r", "b", axis=1)],
    {"sp": ints(2, 4), "w": values(5, 2, 1, 1)},
    {"first": 2, "mid": 5, "first#2": 4},
    reads=9,
)
simple("split_positions", [node("Split", "a", "l r", axis=2), node("Add", "l r", "b")])
simple(
    "gather_a_permutation",
    [node("Gather", "a i", "b", axis=1)],
    {"i": ints(5, 0, 3, 1, -2, 2)},
)
simple(
    "gather_twice_the_same",
    [node("Gather", "a i", "b", axis=1)],
    {"i": ints(0, 0, 1, 2, 3, 4, 5)},
    {"first": 5},
    (("a", "one channel"),),
    reads=7,
)
simple(
    "gather_one_channel",
    [node("Gather", "a i", "c", axis=1), node("Unsqueeze", "c ax", "u"), node("Mul", "a u", "b")],
    {"i": np.array(2), "ax": ints(1)},
    {"first": 5},
    (("a", "picks this one"),),
    opset=13,
)
simple("gather_positions", [node("Gather", "a i", "b", axis=3)], {"i": ints(0, 2, 4)})
CASES["gather_from_a_table"] = dense(
    [
        node("Cast", "x", "i", to=7),
        node("Gather", "table i", "e", name="look"),
        node("MatMul", "e w", "h", name="mid"),
        node("MatMul", "h v", "y", name="last"),
    ],
    {"table": values(9, 8), "w": values(8, 6), "v": values(6, 4)},
    {"table": 8, "mid": 6},
)
simple("expand_positions", [node("GlobalAveragePool", "a", "g"), node("Expand", "g to", "q"), node("Add", "q a", "b")],
       {"to": ints(1, 1, 8, 8)})  # fmt: skip
simple("expand_states_channels", [node("GlobalAveragePool", "a", "g"), node("Expand", "g to", "q"), node("Add", "q a", "b")],
       {"to": ints(1, 6, 8, 8)})  # fmt: skip
simple(
    "expand_one_channel_over_all",
    [node("ReduceMean", "x", "m", axes=[1]), node("Expand", "m to", "q"), node("Add", "q a", "b")],
    {"to": ints(1, 6, 1, 1)},
    opset=13,
)
simple("tile_channels", [node("Tile", "a r", "b")], {"r": ints(1, 2, 1, 1)}, reads=12)
simple("tile_positions", [node("Tile", "a r", "b")], {"r": ints(1, 1, 2, 1)})
simple(
    "filled_with_zeros",
    [
        node("Shape", "x", "sh"),
        node("Gather", "sh zero", "n"),
        node("Concat", "n six ones", "to", axis=0),
        node("ConstantOfShape", "to", "q"),
        node("Add", "a q", "b"),
    ],
    {"zero": ints(0), "six": ints(6), "ones": ints(1, 1)},
)
simple(
    "filled_by_the_number_of_channels",
    [
        node("Flatten", "a", "f"),
        node("Shape", "f", "sh"),
        node("ConstantOfShape", "sh", "o", value=numpy_helper.from_array(np.ones(1, np.float32))),
        node("ReduceSum", "o one", "s"),
        node("Add", "f s", "b"),
    ],
    {"one": ints(1)},
    {},
    (("o", "reduces these channels to one"),),
    reads=6,
    size=(1, 1),
    reader="Gemm",
)
simple("depth_to_space", [node("DepthToSpace", "a", "b", blocksize=2)], {}, {"first": 3}, channels=12, reads=3)  # fmt: skip
simple("depth_to_space_columns_first", [node("DepthToSpace", "a", "b", blocksize=2, mode="CRD")], {}, {"first": 3},
       channels=12, reads=3)  # fmt: skip
simple("space_to_depth", [node("SpaceToDepth", "a", "b", blocksize=2)], reads=24)
simple("cumsum_positions", [node("CumSum", "a one", "b")], {"one": np.array(2)})
simple("cumsum_channels", [node("CumSum", "a one", "b")], {"one": np.array(1)}, {}, (("a", "works along"),))
simple("trilu_positions", [node("Trilu", "a", "b")])
simple(
    "trilu_channels",
    [node("Transpose", "a", "t", perm=[0, 2, 1, 3]), node("Trilu", "t", "u"), node("Transpose", "u", "b", perm=[0, 2, 1, 3])],
    {},
    {},
    (("t", "works along"),),
)
simple("picked_by_index", [node("GatherND", "a i", "c", batch_dims=0), node("Unsqueeze", "c ax", "u"), node("Mul", "a u", "b")],
       {"i": ints(0, 2).reshape(1, 2), "ax": ints(0)}, {}, (("a", "picks positions"),))  # fmt: skip
for name, middle, weights, opset in (
    ("GatherElements", [node("GatherElements", "a i", "b", axis=1)], {"i": np.zeros((1, 6, 8, 8), np.int64)}, 17),
    ("Scatter", [node("Scatter", "a i u", "b", axis=1)], {"i": np.zeros((1, 6, 8, 8), np.int64), "u": values(1, 6, 8, 8)}, 9),
    (
        "ScatterElements",
        [node("ScatterElements", "a i u", "b", axis=1)],
        {"i": np.zeros((1, 6, 8, 8), np.int64), "u": values(1, 6, 8, 8)},
        17,
    ),
    ("ScatterND", [node("ScatterND", "a i u", "b")], {"i": np.zeros((1, 2), np.int64), "u": values(1, 8, 8)}, 17),
):
    simple(f"picked_by_{name}", middle, weights, {}, (("a", "picks positions"),), opset=opset)
simple("scattered_elsewhere_by_stored_indices", [node("ScatterElements", "a i u", "b", axis=2)],
       {"i": np.zeros((1, 6, 8, 8), np.int64), "u": values(1, 6, 8, 8)})  # fmt: skip
simple(
    "gathered_elsewhere_by_stored_indices",
    [node("GatherElements", "a i", "b", axis=2)],
    {"i": np.zeros((1, 6, 8, 8), np.int64)},
    {},
    (("a", "picks by index for each of these channels"),),
)
# What torch.gather with expanded indices becomes: the best of some positions, all channels of them.
BEST = [
    node("MatMul", "x w1", "h", name="one"),
    node("ReduceSum", "x last", "s", keepdims=1),
    node("TopK", "s k", "best at", axis=1),
]
for picked_name, middle, found, pins in (
    (
        "for_every_channel",
        [*BEST, node("Expand", "at to", "i"), node("GatherElements", "h i", "p", axis=-2)],
        {"one": 7, "two": 6},
        (),
    ),
    (
        "of_indices_that_channels_make",
        [
            node("MatMul", "x w1", "h", name="one"),
            node("MatMul", "x w0", "z", name="zero"),
            node("ArgMax", "z", "i", axis=1),
            node("GatherElements", "h i", "p", axis=1),
        ],
        {"one": 7, "two": 6},
        (),
    ),
):
    CASES[f"gathered_{picked_name}"] = dense(
        [*middle, node("MatMul", "p w2", "q", name="two"), node("Relu", "q", "r"), node("MatMul", "r w3", "y", name="three")],
        {
            "w0": values(5, 7), "w1": values(5, 7), "w2": values(7, 6), "w3": values(6, 4), "last": ints(2), "k": ints(2),
            "to": ints(1, 1, 7),
        },
        found,
        pins,
        shape=("N", 3, 5),
    )  # fmt: skip
MESSAGES = {
    "w1": values(5, 7), "w2": values(7, 6), "w3": values(6, 4), "from": ints(0, 1, 2, 3, 1), "to": ints(3, 3, 0, 1, 2),
    "ax": ints(1), "pairs": ints(0, 1, 2, 3, 1).reshape(5, 1), "ends": ints(3, 3, 0, 1, 2).reshape(5, 1),
    "zeros": np.zeros((4, 7), np.float32),
}  # fmt: skip
NODES = [node("MatMul", "x w1", "h", name="one"), node("Shape", "h", "sh"), node("ConstantOfShape", "sh", "z")]
SPREAD = [node("Gather", "h from", "m"), node("Unsqueeze", "to ax", "t"), node("Shape", "m", "ms"), node("Expand", "t ms", "i")]
for sent_name, middle in (
    ("elements", [*NODES, *SPREAD, node("ScatterElements", "z i m", "p", axis=0, reduction="add")]),
    ("elements_to_stored_zeros", [*NODES, *SPREAD, node("ScatterElements", "zeros i m", "p", axis=0, reduction="add")]),
    ("slices", [*NODES, node("GatherND", "h pairs", "m"), node("ScatterND", "z ends m", "p", reduction="add")]),
):  # a graph network: the features of a node are summed up from those of its neighbours
    CASES[f"scattered_{sent_name}"] = dense(
        [*middle, node("MatMul", "p w2", "q", name="two"), node("Relu", "q", "r"), node("MatMul", "r w3", "y", name="three")],
        MESSAGES,
        {"one": 7, "two": 6},
        shape=(4, 5),
        opset=18,
    )
simple(
    "scattered_into_what_carries_none",
    [node("Mul", "x zero", "c"), node("ScatterND", "c i a", "b")],
    {"zero": np.zeros((1, 1, 1, 1), np.float32), "i": ints(0).reshape(1, 1)},
    {},
    (("a", "which carries no channels"),),
    channels=3,
)
simple(
    "reverse_sequence",
    [
        node("Transpose", "a", "t", perm=[2, 3, 0, 1]),
        node("ReverseSequence", "t n", "r", batch_axis=1, time_axis=0),
        node("Transpose", "r", "b", perm=[2, 3, 0, 1]),
    ],
    {"n": ints(1, 2, 3, 4, 5, 6, 7, 8)},
)
CHANNEL_SHUFFLE = [
    node("Reshape", "m to", "r"),
    node("Transpose", "r", "t", perm=[0, 2, 1, 3, 4]),
    node("Reshape", "t back", "s"),
]
simple(
    "shuffle_between_grouped_convolutions",
    [node("Conv", "a w", "m", name="mid", group=2), *CHANNEL_SHUFFLE, node("Conv", "s v", "b", name="end", group=2)],
    {"w": values(12, 3, 1, 1), "v": values(8, 6, 1, 1), "to": ints(0, 2, 6, 8, 8), "back": ints(0, 12, 8, 8)},
    {"first": 3, "mid": 3, "end": 4},
    reads=8,
)
