"""Normalisations."""

from __future__ import annotations

import numpy as np

from tests.graph.cases import CASES, Case, ints, simple
from tests.graph.nets import net, node, values

BN = {"g": values(6, low=0.5, high=2), "be": values(6), "mu": values(6), "var": values(6, low=0.5, high=2)}
for opset in (7, 9, 14, 15):
    simple(f"batch_norm_{opset}", [node("BatchNormalization", "a g be mu var", "b", epsilon=1e-3)], BN, opset=opset)
simple(
    "batch_norm_training",
    [node("BatchNormalization", "a g be mu var", "b m2 v2", training_mode=1)],
    BN,
    {},
    (("a", "statistics at run time"),),
    opset=15,
)
simple("lrn", [node("LRN", "a", "b", size=3)], {}, {}, (("a", "neighbours"),))
simple("lrn_of_itself", [node("LRN", "a", "b", size=1)])
simple("softmax_over_channels_13", [node("Softmax", "a", "b", axis=1)], {}, {}, (("a", "normalises over"),), opset=13)
simple("softmax_over_positions_13", [node("Softmax", "a", "b", axis=-1)], opset=13)
simple("softmax_11_flattens", [node("Softmax", "a", "b", axis=1)], {}, {}, (("a", "normalises over"),), opset=11)
simple("softmax_11_behind_the_channels", [node("Softmax", "a", "b", axis=2)], opset=11)
simple("log_softmax_over_channels", [node("LogSoftmax", "a", "b", axis=-3)], {}, {}, (("a", "LogSoftmax"),), opset=13)
simple("hardmax_over_positions", [node("Hardmax", "a", "b", axis=3)], opset=13)
simple("softmax_11_from_the_batch_on", [node("Softmax", "a", "b", axis=0)], {}, {}, (("a", "normalises over"),), opset=11)

# Over channels: pinned. The channels of another axis go, and the parameters follow them.
POSITIONS = {"g": values(8, low=0.5, high=2), "be": values(8)}
CHANNELS = {"g": values(6, low=0.5, high=2), "be": values(6), "two": np.float32(2), "eps": np.float32(0.1), "one": np.float32(1)}
OVER = "'norm' normalises over these channels"
TURN, TURN_BACK = node("Transpose", "a", "t", perm=[0, 2, 3, 1]), node("Transpose", "n", "b", perm=[0, 3, 1, 2])


def norm(op: str, inputs: str, outputs: str = "n", **attributes):
    return node(op, inputs, outputs, name="norm", **attributes)


def last(name: str, nodes, reason: str = OVER, **fields) -> None:
    """Nodes that make n of t, whose 6 channels lie last and are pinned."""
    simple(name, [TURN, *nodes, TURN_BACK], CHANNELS, {}, (("t", reason),), **fields)


last("layer_norm_over_channels", [norm("LayerNormalization", "t g be")])
last("rms_norm_over_channels", [norm("RMSNormalization", "t g", axis=-1)], opset=23)
last("lp_norm_over_channels", [norm("LpNormalization", "t", axis=-1)])
simple("layer_norm_over_positions", [norm("LayerNormalization", "a g be", "b")], POSITIONS)
simple("layer_norm_without_bias", [norm("LayerNormalization", "a g", "b", axis=3)], POSITIONS)
simple("rms_norm_over_positions", [norm("RMSNormalization", "a g", "b")], POSITIONS, opset=23)
simple("lp_norm_over_positions", [node("LpNormalization", "a", "b", axis=2)])
simple("mean_variance_norm_over_positions", [node("MeanVarianceNormalization", "a", "b")], opset=12)
simple("mean_variance_norm", [norm("MeanVarianceNormalization", "a", "b", axes=[1, 2, 3])], {}, {}, (("a", "no stored scale"),))
simple(
    "layer_norm_statistics",
    [norm("LayerNormalization", "a g be", "n m i"), node("Add", "n m", "q"), node("Mul", "q i", "b")],
    POSITIONS,
)
simple(
    "layer_norm_over_channels_and_positions",
    [norm("LayerNormalization", "a g be", "b", axis=1)],
    {"g": values(6, 8, 8), "be": values(6, 8, 8)},
    {},
    (("a", OVER),),
)
CASES["layer_norm_within_heads"] = lambda: Case(
    net(
        [
            node("MatMul", "x w", "q", name="wide"),
            node("Reshape", "q to", "h"),
            norm("LayerNormalization", "h g be"),
            node("Reshape", "n back", "f"),
            node("MatMul", "f w2", "y", name="last"),
        ],
        {
            "w": values(5, 12),
            "to": ints(0, 0, 4, 3),
            "back": ints(0, 0, 12),
            "w2": values(12, 2),
            "g": values(3),
            "be": values(3),
        },
        {"x": ["N", 7, 5]},
    ),
    {"wide": 4},
)
PER_CHANNEL, PER_GROUP = ({"g": values(n, low=0.5, high=2), "be": values(n, seed=1)} for n in (6, 3))
IN_GROUPS = ("a", OVER)
for groups in (3, 6):
    grouped = [norm("GroupNormalization", "a g be", "b", num_groups=groups)]
    simple(f"group_norm_of_{groups}", grouped, PER_CHANNEL, {"first": groups}, opset=21)
simple(
    "group_norm_of_one_group", [norm("GroupNormalization", "a g be", "b", num_groups=1)], PER_CHANNEL, {}, (IN_GROUPS,), opset=21
)
simple("instance_norm", [norm("InstanceNormalization", "a g be", "b")], PER_CHANNEL)
SPELLED_GROUPS = [
    node("Reshape", "a to", "r"),
    norm("InstanceNormalization", "r g be", "i"),
    node("Shape", "a", "s"),
    node("Reshape", "i s", "u"),
    node("Mul", "u gamma", "q"),
    node("Add", "q beta", "b"),
]
AFFINE = {"gamma": values(6, 1, 1, low=0.5, high=2), "beta": values(6, 1, 1)}
simple("group_norm_spelled", SPELLED_GROUPS, PER_GROUP | AFFINE | {"to": ints(0, 3, -1)}, {"first": 3}, size=(4, 4))
simple(
    "group_norm_spelled_of_one_group",
    SPELLED_GROUPS,
    {"g": np.ones(1, np.float32), "be": np.zeros(1, np.float32), "to": ints(0, 1, -1)} | AFFINE,
    {},
    (("r", OVER),),
    size=(4, 4),
)


def mean(opset: int, inputs: str, outputs: str, name: str = "norm", **attributes):
    """ReduceMean over the last axis, as the opset spells it."""
    if opset < 18:
        return node("ReduceMean", inputs, outputs, name=name, axes=[-1], **attributes)
    return node("ReduceMean", f"{inputs} minus", outputs, name=name, **attributes)


def centred(opset: int):
    return [mean(opset, "t", "m", "mean"), node("Sub", "t m", "d")]


def spelled(opset: int, x: str, root, square=None):
    """From x to n, by way of the mean square s of it plus epsilon."""
    squared = node("Pow", f"{x} two", "sq") if square is None else square
    return [squared, mean(opset, "sq", "v"), node("Add", "v eps", "s"), *root]


DIVIDE = [node("Sqrt", "s", "std"), node("Div", "d std", "z"), node("Mul", "z g", "zg"), node("Add", "zg be", "n")]
INVERT = [node("Sqrt", "s", "std"), node("Div", "one std", "i"), node("Mul", "t i", "z"), node("Mul", "g z", "n")]
RECIPROCAL = [node("Sqrt", "s", "std"), node("Reciprocal", "std", "i"), node("Mul", "t i", "z"), node("Mul", "g z", "n")]
# TensorFlow multiplies the scale to the deviation before it touches the channels.
TENSORFLOW = [
    node("Sqrt", "s", "std"),
    node("Reciprocal", "std", "i"),
    node("Mul", "i g", "ig"),
    node("Mul", "t ig", "xg"),
    node("Mul", "m ig", "mg"),
    node("Sub", "be mg", "shift"),
    node("Add", "xg shift", "n"),
]
BARE = [node("Sqrt", "s", "std"), node("Div", "d std", "n")]
SPELLED = {
    "layer_norm_spelled": [*centred(17), *spelled(17, "d", DIVIDE)],
    "layer_norm_spelled_tensorflow": [*centred(17), *spelled(17, "d", TENSORFLOW, node("Mul", "d d", "sq"))],
    "rms_norm_spelled_division": spelled(17, "t", INVERT),
    "rms_norm_spelled_reciprocal": spelled(17, "t", RECIPROCAL),
}
for name, nodes in SPELLED.items():
    simple(name, [TURN, *nodes, TURN_BACK], CHANNELS, {}, (("sq", OVER + " (ReduceMean); --through"),))
simple(
    "layer_norm_spelled_18",
    [TURN, *centred(18), *spelled(18, "d", DIVIDE), TURN_BACK],
    CHANNELS | {"minus": ints(-1)},
    {},
    (("t", "'mean' normalises over these channels (ReduceMean); --through"), ("sq", OVER + " (ReduceMean); --through")),
    opset=18,
)
simple(
    "layer_norm_spelled_without_a_scale",
    [TURN, *centred(17), *spelled(17, "d", BARE), TURN_BACK],
    CHANNELS,
    {},
    (("t", "no stored scale"), ("sq", "no stored scale")),
)
LENGTH = [norm("ReduceL2", "t", "l", axes=[-1]), node("Clip", "l eps", "c"), node("Div", "t c", "n")]
last("length_divided_by", LENGTH, OVER + " (ReduceL2); --through")
last("length_read_otherwise", [LENGTH[0], node("Sub", "t l", "n")], "reduces these channels to one (ReduceL2)")
last("mean_read_otherwise", [mean(17, "t", "m"), node("Sub", "t m", "n")], "reduces these channels to one (ReduceMean)")
