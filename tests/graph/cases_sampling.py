"""Sampling, ranking, and operators that nothing passes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.graph.cases import CASES, dense, ints, simple
from tests.graph.nets import node, values

FLOAT = TensorProto.FLOAT
GRID = [node("Slice", "x zero two one", "xs"), node("Transpose", "xs", "g", perm=[0, 2, 3, 1])]
simple("grid_sample", [*GRID, node("GridSample", "a g", "b")], {"zero": ints(0), "one": ints(1), "two": ints(2)}, opset=16)
simple(
    "grid_sample_of_channels",
    [node("Slice", "a zero two one", "as"), node("Transpose", "a", "at", perm=[0, 2, 3, 1]), node("GridSample", "x at", "b")],
    {"zero": ints(0), "one": ints(1), "two": ints(2)},
    {},
    (("at", "samples positions"),),
    channels=2,
    reads=3,
    opset=16,
)
simple(
    "grid_sample_along_channels",
    [*GRID, node("Transpose", "a", "at", perm=[0, 2, 1, 3]), node("GridSample", "at g", "b")],
    {"zero": ints(0), "one": ints(1), "two": ints(2)},
    {},
    (("at", "samples positions"),),
    reads=8,
    opset=16,
)
BOXES = {"rois": values(3, 4, low=0, high=4), "which": ints(0, 0, 0)}
simple("roi_align", [node("RoiAlign", "a rois which", "b", output_height=2, output_width=2)], BOXES, opset=16)
simple(
    "max_roi_pool",
    [node("MaxRoiPool", "a rois", "b", pooled_shape=[2, 2])],
    {"rois": np.array([[0, 0, 0, 4, 4], [0, 1, 1, 5, 5]], np.float32)},
)
HALVES = {"kernel_shape": [2, 2], "strides": [2, 2]}
simple(
    "max_unpool",
    [node("MaxPool", "a", "p idx", **HALVES), node("MaxUnpool", "p idx", "b", **HALVES)],
    {},
    {},
    (("p", "indices that count"),),
)  # fmt: skip
simple(
    "dft_of_positions",
    [node("Unsqueeze", "a last", "u"), node("DFT", "u", "f", axis=2), node("ReduceMean", "f", "b", axes=[4], keepdims=0)],
    {"last": ints(4)},
)
simple(
    "dft_of_channels",
    [node("Unsqueeze", "a last", "u"), node("DFT", "u", "f", axis=1), node("ReduceMean", "f", "b", axes=[4], keepdims=0)],
    {"last": ints(4)},
    {},
    (("u", "transforms"),),
)
simple(
    "dft_20",
    [node("Unsqueeze", "a last", "u"), node("DFT", "u - three", "f"), node("ReduceMean", "f last", "b", keepdims=0)],
    {"last": ints(4), "three": np.array(3)},
    opset=20,
)
simple("center_crop_pad", [node("CenterCropPad", "a to", "b", axes=[2, 3])], {"to": ints(6, 10)}, opset=18)
simple(
    "center_crop_pad_channels",
    [node("CenterCropPad", "a to", "b", axes=[-3])],
    {"to": ints(4)},
    {},
    (("a", "crops or pads"),),
    reads=4,
    opset=18,
)
COLUMNS = [node("Reshape", "a rows", "r"), node("Col2Im", "r image block", "b")]
simple(
    "col2im",
    COLUMNS,
    {"rows": ints(0, 12, 9), "image": ints(4, 4), "block": ints(2, 2)},
    {"first": 3},
    channels=12,
    reads=3,
    size=(3, 3),
    opset=18,
)
OFFSETS = [node("Conv", "x wo", "o", name="offsets")]
DEFORM = {"wo": values(18, 3, 3, 3), "w": values(7, 6, 3, 3), "bd": values(7)}
simple(
    "deform_conv",
    [*OFFSETS, node("DeformConv", "a w o bd", "b", name="bend")],
    DEFORM,
    {"first": 6, "w": 7},
    (("o", "samples positions"),),
    reads=7,
    opset=19,
)
simple(
    "deform_conv_in_groups",
    [*OFFSETS, node("DeformConv", "a w o", "b", name="bend", group=2)],
    DEFORM | {"w": values(8, 3, 3, 3)},
    {},
    (("o", "samples positions"), ("a", "keeps its groups")),
    reads=8,
    opset=19,
)
simple(
    "deform_conv_of_computed_weights",
    [*OFFSETS, node("ReduceMean", "x ax", "xs", keepdims=0), node("Add", "w xs", "wx"), node("DeformConv", "a wx o", "b")],
    DEFORM | {"ax": ints(0, 1, 2, 3)},
    {},
    (("wx", "computed at run time"),),
    reads=7,
    opset=19,
)

simple("top_k_positions", [node("TopK", "a three", "b idx")], {"three": ints(3)})
simple(
    "top_k_places",
    [node("TopK", "a three", "v idx", axis=2), node("Cast", "idx", "f", to=FLOAT), node("Add", "v f", "b")],
    {"three": ints(3)},
)
simple("top_k_channels", [node("TopK", "a three", "b idx", axis=1)], {"three": ints(3)}, {}, (("a", "ranks"),), reads=3)
CASES["one_hot"] = dense(
    [
        node("MatMul", "x w1", "h", name="one"),
        node("Cast", "h", "i", to=TensorProto.INT64),
        node("OneHot", "i four bounds", "o", axis=1),
        node("MatMul", "o w2", "y", name="two"),
    ],
    {"w1": values(5, 7, low=0, high=3), "four": np.array(4), "bounds": np.array([0, 1], np.float32), "w2": values(7, 4)},
    {"one": 7},
)
simple(
    "compress",
    [node("Compress", "a which", "c"), node("ReduceMean", "c", "m", axes=[0], keepdims=0), node("Add", "a m", "b")],
    {"which": np.array([1, 0, 1, 1, 0, 0], bool)},
    {},
    (("a", "lists what it finds"),),
)


def body(op: str, source: str, inputs=(), outputs=1) -> onnx.GraphProto:
    """A subgraph that captures `source`."""
    found = [helper.make_tensor_value_info(f"{op}{i}", FLOAT, None) for i in range(outputs)]
    return helper.make_graph([node(op, source, f"{op}{i}") for i in range(outputs)], op, list(inputs), found)


YES = {"yes": np.array(True), "three": np.array(3)}
simple(
    "if_captures",
    [node("ReduceMax", "x", "m", keepdims=0), node("Cast", "m", "c", to=TensorProto.BOOL),
     node("If", "c", "b", then_branch=body("Relu", "a"), else_branch=body("Neg", "a"))],
    {},
    {},
    (("a", "inside a subgraph"),),
)  # fmt: skip
LOOP = helper.make_graph(
    [node("Identity", "go", "on"), node("Relu", "now", "then"), node("Add", "then a", "next")],
    "loop",
    [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("now", FLOAT, None),
    ],
    [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", FLOAT, None)],
)
simple(
    "loop_carries",
    [node("Conv", "x w3", "o", name="other"), node("Loop", "three yes o", "b", body=LOOP)],
    YES | {"w3": values(6, 3, 3, 3)},
    {},
    (("o", "runs a subgraph"), ("a", "inside a subgraph")),
    size=(8, 8),
)
SCAN = helper.make_graph(
    [node("Add", "sum row", "total"), node("Identity", "total", "out")],
    "scan",
    [helper.make_tensor_value_info(n, FLOAT, ["N", 6, 8]) for n in ("sum", "row")],
    [helper.make_tensor_value_info(n, FLOAT, ["N", 6, 8]) for n in ("total", "out")],
)
simple(
    "scan_carries",
    [
        node("ReduceMax", "a", "s", axes=[2], keepdims=0),
        node("Scan", "s a", "t b", body=SCAN, num_scan_inputs=1, scan_input_axes=[2], scan_output_axes=[2]),
    ],
    {},
    {},
    (("s", "runs a subgraph"), ("a", "runs a subgraph")),
)
simple(
    "sequence",
    [node("SequenceConstruct", "a a", "s"), node("ConcatFromSequence", "s", "b", axis=1)],
    {},
    {},
    (("a", "in a sequence"),),
    reads=12,
)
simple("bernoulli", [node("Sigmoid", "a", "p"), node("Bernoulli", "p", "b")], {}, {}, (("p", "random"),), opset=15)
simple("random_like", [node("RandomNormalLike", "a", "r"), node("Add", "a r", "b")], {}, {}, (("a", "random"),))
simple(
    "non_zero",
    [
        node("NonZero", "a", "i"),
        node("Cast", "i", "f", to=FLOAT),
        node("ReduceMean", "f", "m", axes=[0, 1], keepdims=0),
        node("Add", "a m", "b"),
    ],
    {},
    {},
    (("a", "lists what it finds"),),
)  # fmt: skip
