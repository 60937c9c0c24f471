"""Pools, Resize and reductions."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.graph.cases import CASES, Case, dense, ints, simple
from tests.graph.nets import net, node, values

for op in ("AveragePool", "LpPool", "MaxPool"):
    simple(f"pool_{op}", [node(op, "a", "b", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0])])
for op in ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"):
    simple(f"pool_{op}", [node(op, "a", "b")])
simple("pool_1d", [node("MaxPool", "a", "b", kernel_shape=[2])], size=(9,))
simple("pool_3d", [node("AveragePool", "a", "b", kernel_shape=[2, 2, 2])], size=(5, 5, 5))
simple("max_pool_indices_unread", [node("MaxPool", "a", "b idx", kernel_shape=[2, 2])])
simple(
    "max_pool_indices_read",
    [node("MaxPool", "a", "p idx", kernel_shape=[2, 2]), node("Cast", "idx", "f", to=TensorProto.FLOAT), node("Add", "p f", "b")],
    {},
    {},
    (("idx", "indices"),),
)
for opset in (18, 13):
    axes = {"axes": [2, 3]} if opset < 18 else {}
    extra = {"ax": ints(2, 3)} if opset >= 18 else {}
    for op in (
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSumSquare",
    ):
        simple(f"{op}_{opset}", [node(op, "a ax" if extra else "a", "b", **axes)], extra, opset=opset)
simple("ReduceSum_13", [node("ReduceSum", "a ax", "b")], {"ax": ints(-1)}, opset=13)
simple("ReduceLogSum_13", [node("Exp", "a", "e"), node("ReduceLogSum", "e", "b", axes=[2])], opset=13)
simple("reduce_without_keepdims", [node("ReduceMean", "a", "b", axes=[2, 3], keepdims=0)], reader="Gemm")
simple(
    "reduce_over_channels",
    [node("ReduceMean", "a", "m", axes=[1]), node("Sub", "a m", "b")],
    {},
    {},
    (("a", "reduces these channels"),),
)
simple("reduce_over_all", [node("ReduceMax", "a", "m"), node("Div", "a m", "b")], {}, {}, (("a", "reduces these channels"),))
# A product summed up is a MatMul: the scores of two towers, a weighted sum over channels.
CASES["sum_of_products"] = dense(
    [
        node("MatMul", "x w1", "u", name="one"),
        node("Tanh", "u", "v"),
        node("MatMul", "x w2", "w", name="two"),
        node("Mul", "v w", "p"),
        node("ReduceSum", "p last", "y", keepdims=1),
    ],
    {"w1": values(5, 7), "w2": values(5, 7, seed=1), "last": ints(-1)},
    {"one": 7},
)
CASES["sum_of_weighted_channels"] = dense(
    [
        node("MatMul", "x w1", "u", name="one"),
        node("Tanh", "u", "v"),
        node("Mul", "v g", "p"),
        node("ReduceSum", "p last", "y", keepdims=0),
    ],
    {"w1": values(5, 7), "g": values(7), "last": ints(-1)},
    {"one": 7},
)
simple("sum_of_squares", [node("Mul", "a a", "p"), node("ReduceSum", "p ax", "b")], {"ax": ints(1)}, {},
       (("p", "reduces these channels"),), reads=1)  # fmt: skip
simple("reduce_over_nothing", [node("ReduceSum", "a", "b", noop_with_empty_axes=1)], opset=13)
simple(
    "argmax_over_channels",
    [node("ArgMax", "a", "i", axis=1), node("Cast", "i", "f", to=1), node("Mul", "a f", "b")],
    {},
    {},
    (("a", "ArgMax"),),
)
simple("argmin_over_positions", [node("ArgMin", "a", "i", axis=3), node("Cast", "i", "b", to=1)])
simple("resize_scales", [node("Resize", "a - sc", "b", mode="nearest")], {"sc": np.array([1, 1, 2, 2], np.float32)})
simple(
    "resize_empty_roi",
    [node("Resize", "a roi sc", "b", mode="linear")],
    {"roi": np.empty(0, np.float32), "sc": np.array([1, 1, 1.5, 2], np.float32)},
    opset=11,
)
simple("resize_10", [node("Resize", "a sc", "b")], {"sc": np.array([1, 1, 2, 2], np.float32)}, opset=10)
simple("resize_axes_18", [node("Resize", "a - sc", "b", axes=[2, 3])], {"sc": np.array([2, 2], np.float32)}, opset=18)
simple("resize_sizes_axes_18", [node("Resize", "a - - sz", "b", axes=[3, 2])], {"sz": ints(12, 16)}, opset=18)
simple("upsample_7", [node("Upsample", "a", "b", scales=[1.0, 1.0, 2.0, 2.0])], opset=7)
simple("upsample_9", [node("Upsample", "a sc", "b")], {"sc": np.array([1, 1, 2, 2], np.float32)}, opset=9)
simple(
    "resize_along_channels",
    [node("Resize", "a - sc", "b", mode="nearest")],
    {"sc": np.array([1, 2, 1, 1], np.float32)},
    {},
    (("a", "resizes along"),),
    reads=12,
)
CASES["resize_sizes_at_fixed_batch"] = lambda: Case(
    net(
        [node("Conv", "x w1", "a", name="first"), node("Resize", "a - - sz", "b"), node("Conv", "b w2", "y", name="last")],
        {"w1": values(6, 3, 1, 1), "sz": ints(2, 6, 8, 9), "w2": values(4, 6, 1, 1)},
        {"x": [2, 3, 4, 4]},
    ),
    {"first": 6},
)
CASES["reduce_in_front_of_the_channels"] = dense(
    [
        node("MatMul", "x w1", "h", name="one"),
        node("ReduceMax", "h", "m", axes=[1], keepdims=0),
        node("MatMul", "m w2", "y", name="two"),
    ],
    {"w1": values(5, 7), "w2": values(7, 4)},
    {"one": 7},
    shape=("N", 3, 5),
)
