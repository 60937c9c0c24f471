"""Quantised layers that compute with integers, and the operators between them."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.graph.cases import CASES, dense, ints, simple
from tests.graph.cases_quantized import MS, NIL, ONE, UNIL, q8, q32, scales, zeros
from tests.graph.nets import node, values

# Products of integers. q is what 'first' makes, in uint8; i what the layer makes of it.
INTO, OUT_OF = node("QuantizeLinear", "a xs xz", "q"), node("DequantizeLinear", "i ys yz", "b")
ACT = {"xs": ONE, "xz": UNIL, "ys": np.float32(0.1), "yz": np.uint8(128)}
for name, scale, zero in (("per_tensor", ONE, np.int8(0)), ("per_channel", scales(8), np.zeros(8, np.int8))):
    simple(
        f"qlinear_conv_{name}",
        [INTO, node("QLinearConv", "q xs xz w s z ys yz c", "i", name="mid", pads=[1] * 4), OUT_OF],
        ACT | {"w": q8(8, 6, 3, 3), "s": scale, "z": zero, "c": q32(8)},
        {"first": 6, "mid": 8},
        reads=8,
    )
simple(
    "qlinear_conv_of_unsigned_weights",
    [INTO, node("QLinearConv", "q xs xz w s z ys yz", "i", name="mid"), OUT_OF],
    ACT | {"w": q8(8, 6, 3, 3, kind=np.uint8), "s": ONE, "z": np.uint8(131)},
    {"first": 6, "mid": 8},
    reads=8,
)
simple(
    "qlinear_conv_depthwise",
    [INTO, node("QLinearConv", "q xs xz w s z ys yz c", "i", name="mid", group=6), OUT_OF],
    ACT | {"w": q8(6, 1, 3, 3), "s": scales(6), "z": np.zeros(6, np.int8), "c": q32(6)},
    {"first": 6},
)
simple(
    "qlinear_conv_grouped",
    [INTO, node("QLinearConv", "q xs xz w s z ys yz", "i", name="mid", group=2), OUT_OF],
    ACT | {"w": q8(8, 3, 3, 3), "s": scales(8), "z": np.zeros(8, np.int8)},
    {"first": 3, "mid": 4},
    reads=8,
)
simple(
    "qlinear_conv_with_scales_made_at_run_time",
    [
        INTO,
        node("ReduceMax", "a", "m", keepdims=0),
        node("Mul", "s m", "sm"),
        node("QLinearConv", "q xs xz w sm z ys yz", "i", name="mid"),
        OUT_OF,
    ],
    ACT | {"w": q8(8, 6, 3, 3), "s": ONE, "z": np.int8(0)},
    {},
    (("w", "from the graph"), ("a", "reduces")),
    reads=8,
)
FLAT = [node("Flatten", "a", "f"), node("QuantizeLinear", "f xs xz", "q")]
for name, scale, zero in (("per_tensor", ONE, NIL), ("per_channel", scales(8), zeros(8))):
    simple(
        f"qlinear_matmul_{name}",
        [*FLAT, node("QLinearMatMul", "q xs xz w s z ys yz", "i", name="mid"), OUT_OF],
        ACT | {"w": q8(24, 8), "s": scale, "z": zero},
        {"first": 6, "mid": 8},
        size=(2, 2),
        reader="Gemm",
        reads=8,
    )
CASES["qlinear_matmul_from_the_left"] = dense(
    [
        node("Gemm", "x w0", "g", name="first", transA=1),
        node("MatMul", "v x", "h", name="top"),
        node("QuantizeLinear", "h xs xz", "q"),
        node("QLinearMatMul", "w s z q xs xz ys yz", "i", name="mid"),
        node("DequantizeLinear", "i ys yz", "b"),
        node("MatMul", "u b", "y", name="last"),
    ][1:],
    ACT | {"v": values(6, 4), "w": q8(7, 6, kind=np.uint8), "s": ONE, "z": np.uint8(130), "u": values(3, 7)},
    {"top": 6, "mid": 7},
    shape=("N", 4, 5),
)
CASES["qlinear_matmul_of_two_activations"] = dense(
    [
        node("MatMul", "x w0", "g", name="left"),
        node("MatMul", "x w1", "h", name="right"),
        node("Transpose", "h", "t", perm=[0, 2, 1]),
        node("QuantizeLinear", "g xs xz", "q"),
        node("QuantizeLinear", "t xs xz", "p"),
        node("QLinearMatMul", "q xs xz p xs xz ys yz", "i", name="mid"),
        node("DequantizeLinear", "i ys yz", "y"),
    ],
    ACT | {"w0": values(5, 6), "w1": values(5, 6, seed=1)},
    {"left": 6},
    shape=("N", 4, 5),
)
MEASURE = node("DynamicQuantizeLinear", "a", "q qs qz")
BACK = [node("Cast", "i", "j", to=TensorProto.FLOAT), node("Mul", "qs s", "qss"), node("Mul", "j qss", "b")]
for name, zero in (("per_tensor", np.uint8(125)), ("without_zero_point", None)):
    simple(
        f"conv_integer_{name}",
        [MEASURE, node("ConvInteger", "q w qz z" if zero is not None else "q w qz", "i", name="mid", pads=[1] * 4), *BACK],
        {"w": q8(8, 6, 3, 3, kind=np.uint8), "s": ONE} | ({} if zero is None else {"z": zero}),
        {"first": 6, "mid": 8},
        reads=8,
    )
simple(
    "conv_integer_grouped",
    [MEASURE, node("ConvInteger", "q w qz z", "i", name="mid", group=2), *BACK],
    {"w": q8(8, 3, 3, 3, kind=np.uint8), "s": ONE, "z": np.uint8(125)},
    {"first": 3, "mid": 4},
    reads=8,
)
SPREAD = [node("Flatten", "a", "f"), node("DynamicQuantizeLinear", "f", "q qs qz")]
for name, scale, zero in (("per_tensor", ONE, NIL), ("per_channel", scales(8), zeros(8))):
    simple(
        f"matmul_integer_{name}",
        [*SPREAD, node("MatMulInteger", "q w qz z", "i", name="mid"), *BACK],
        {"w": q8(24, 8), "s": scale, "z": zero},
        {"first": 6, "mid": 8},
        size=(2, 2),
        reader="Gemm",
        reads=8,
    )
    simple(
        f"matmul_integer_to_float_{name}",
        [*SPREAD, node("MatMulIntegerToFloat", "q w qs s qz z c", "b", name="mid", domain="com.microsoft")],
        {"w": q8(24, 8), "s": scale, "z": zero, "c": values(8)},
        {"first": 6, "mid": 8},
        size=(2, 2),
        reader="Gemm",
        reads=8,
        imports=MS,
    )
    simple(
        f"dynamic_quantize_matmul_{name}",
        [node("Flatten", "a", "f"), node("DynamicQuantizeMatMul", "f w s z c", "b", name="mid", domain="com.microsoft")],
        {"w": q8(24, 8), "s": scale, "z": zero, "c": values(8)},
        {"first": 6, "mid": 8},
        size=(2, 2),
        reader="Gemm",
        reads=8,
        imports=MS,
    )
    for transposed in (0, 1):
        simple(
            f"qgemm_{name}_{transposed}",
            [
                *FLAT,
                node("QGemm", "q xs xz w s z c ys yz", "i", name="mid", transB=transposed, alpha=1.5, domain="com.microsoft"),
                OUT_OF,
            ],
            ACT | {"w": q8(*((8, 24) if transposed else (24, 8))), "s": scale, "z": zero, "c": q32(8)},
            {"first": 6, "mid": 8},
            size=(2, 2),
            reader="Gemm",
            reads=8,
            imports=MS,
        )
simple(
    "contrib_quantize_and_dequantize",
    [
        node("QuantizeLinear", "a s z", "q", axis=1, domain="com.microsoft"),
        node("DequantizeLinear", "q s z", "b", axis=1, domain="com.microsoft"),
    ],
    {"s": ONE, "z": UNIL},
    imports=MS,
)
simple(
    "contrib_qlinear_conv",
    [INTO, node("QLinearConv", "q xs xz w s z ys yz c", "i", name="mid", domain="com.microsoft"), OUT_OF],
    ACT | {"w": q8(8, 6, 3, 3), "s": scales(8), "z": np.zeros(8, np.int8), "c": q32(8)},
    {"first": 6, "mid": 8},
    reads=8,
    imports=MS,
)
for op in ("QLinearAdd", "QLinearMul"):
    simple(
        f"{op}_of_two_layers",
        [
            INTO,
            node("Conv", "x w", "d", name="side", pads=[1] * 4),
            node("QuantizeLinear", "d xs xz", "p"),
            node(op, "q xs xz p xs xz ys yz", "i", domain="com.microsoft"),
            OUT_OF,
        ],
        ACT | {"w": values(6, 3, 3, 3)},
        imports=MS,
    )
    simple(
        f"{op}_of_a_constant",
        [INTO, node(op, "q xs xz w s z ys yz", "i", domain="com.microsoft"), OUT_OF],
        ACT | {"w": q8(6, 1, 1, kind=np.uint8), "s": ONE, "z": UNIL},
        imports=MS,
    )
simple(
    "QLinearConcat_of_two_layers",
    [
        INTO,
        node("Conv", "x w", "d", name="side", pads=[1] * 4),
        node("QuantizeLinear", "d xs xz", "p"),
        node("QLinearConcat", "ys yz q xs xz p xs xz", "i", axis=1, domain="com.microsoft"),
        OUT_OF,
    ],
    ACT | {"w": values(5, 3, 3, 3)},
    {"first": 6, "side": 5},
    reads=11,
    imports=MS,
)
for op, attributes in (
    ("QLinearLeakyRelu", {"alpha": 0.1}),
    ("QLinearSigmoid", {}),
    ("QLinearAveragePool", {"kernel_shape": [2, 2]}),
    ("QLinearGlobalAveragePool", {"channels_last": 0}),
):
    simple(f"{op}_", [INTO, node(op, "q xs xz ys yz", "i", domain="com.microsoft", **attributes), OUT_OF], ACT, imports=MS)
simple(
    "QLinearSoftmax_over_channels",
    [INTO, node("QLinearSoftmax", "q xs xz ys yz", "i", domain="com.microsoft", axis=1, opset=13), OUT_OF],
    ACT,
    {},
    (("q", "normalises over"),),
    imports=MS,
)
simple(
    "QLinearGlobalAveragePool_of_channels_last",
    [
        node("Transpose", "a", "t", perm=[0, 2, 3, 1]),
        node("QuantizeLinear", "t xs xz", "q"),
        node("QLinearGlobalAveragePool", "q xs xz ys yz", "i", domain="com.microsoft", channels_last=1),
        node("DequantizeLinear", "i ys yz", "d"),
        node("Transpose", "d", "b", perm=[0, 3, 1, 2]),
    ],
    ACT,
    {},
    (("q", "is not known"),),
    imports=MS,
)

# Recurrent layers whose weights ONNX Runtime quantised.
UNITS = 6
for name, scale, zero in (
    ("per_tensor", scales(1), np.zeros(1, np.int8)),
    ("per_channel", scales(24).reshape(1, 24), np.zeros((1, 24), np.int8)),
):
    CASES[f"dynamic_quantize_lstm_{name}"] = dense(
        [
            node("MatMul", "x w0", "u", name="first"),
            node(
                "DynamicQuantizeLSTM", "u w r b - - - - s z s2 z2", "h", name="cell", hidden_size=UNITS, domain="com.microsoft"
            ),
            node("Squeeze", "h one", "t"),
            node("MatMul", "t out", "y", name="last"),
        ],
        {
            "w0": values(5, 5), "w": q8(1, 5, 24), "r": q8(1, UNITS, 24), "b": values(1, 48), "s": scale, "z": zero,
            "s2": scale * np.float32(0.5), "z2": zero, "one": ints(1), "out": values(UNITS, 3),
        },
        {"first": 5, "cell": UNITS},
        shape=(4, "N", 5),
        imports=MS,
    )  # fmt: skip
