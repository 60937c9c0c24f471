"""Quantised layers: weights of integers behind DequantizeLinear, and activations on their way through integers."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.graph.cases import CASES, dense, simple
from tests.graph.nets import node, values

MS = {"com.microsoft": 1}


def q8(*shape: int, seed: int = 0, kind: type = np.int8) -> np.ndarray:
    low = 0 if kind is np.uint8 else -128
    return np.random.default_rng([seed, *shape]).integers(low, low + 256, shape).astype(kind)


def q32(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, length]).integers(-4000, 4000, length).astype(np.int32)


def scales(length: int, seed: int = 0) -> np.ndarray:
    return values(length, seed=seed, low=0.005, high=0.02)


def zeros(length: int, seed: int = 0, kind: type = np.int8) -> np.ndarray:
    return np.random.default_rng([seed, length, 7]).integers(-9, 9, length).astype(np.int8).view(kind) // (
        1 if kind is np.int8 else 2
    )


ONE, NIL, UNIL = np.float32(0.02), np.int8(3), np.uint8(120)


# Weights (and biases) behind DequantizeLinear; the layers compute with floats.
for name, scale, zero in (
    ("per_tensor", ONE, NIL),
    ("per_channel", scales(8), zeros(8)),
):
    simple(
        f"dequantised_conv_{name}",
        [node("DequantizeLinear", "w s z", "wf", axis=0), node("Conv", "a wf", "b", name="mid", pads=[1] * 4)],
        {"w": q8(8, 6, 3, 3), "s": scale, "z": zero},
        {"first": 6, "mid": 8},
        reads=8,
    )
simple(
    "dequantised_conv_without_zero_point",
    [node("DequantizeLinear", "w s", "wf", axis=0), node("Conv", "a wf", "b", name="mid")],
    {"w": q8(8, 6, 1, 1), "s": scales(8)},
    {"first": 6, "mid": 8},
    reads=8,
)
BIAS = {"c": q32(8), "cs": scales(8, 3) * np.float32(0.01), "cz": np.zeros(8, np.int32)}
simple(
    "dequantised_conv_with_bias",
    [
        node("DequantizeLinear", "w s z", "wf", axis=0),
        node("DequantizeLinear", "c cs cz", "cf", axis=0),
        node("Conv", "a wf cf", "b", name="mid"),
    ],
    {"w": q8(8, 6, 3, 3), "s": scales(8), "z": zeros(8)} | BIAS,
    {"first": 6, "mid": 8},
    reads=8,
)
simple(
    "dequantised_conv_transpose",
    [node("DequantizeLinear", "w s z", "wf", axis=1), node("ConvTranspose", "a wf", "b", name="mid")],
    {"w": q8(6, 8, 3, 3), "s": scales(8), "z": zeros(8)},
    {"first": 6, "mid": 8},
    reads=8,
)
simple(
    "dequantised_conv_depthwise",
    [node("DequantizeLinear", "w s z", "wf", axis=0), node("Conv", "a wf", "b", name="mid", group=6)],
    {"w": q8(6, 1, 3, 3), "s": scales(6), "z": zeros(6)},
    {"first": 6},
)
simple(
    "dequantised_conv_grouped",
    [node("DequantizeLinear", "w s z", "wf", axis=0), node("Conv", "a wf", "b", name="mid", group=2)],
    {"w": q8(8, 3, 3, 3), "s": scales(8), "z": zeros(8)},
    {"first": 3, "mid": 4},
    reads=8,
)
simple(
    "dequantised_convs_share_scales",
    [
        node("DequantizeLinear", "w s z", "wf", axis=0),
        node("Conv", "a wf", "m", name="mid"),
        node("DequantizeLinear", "w9 s z", "wf9", axis=0),
        node("Conv", "m wf9", "b", name="third"),
    ],
    {"w": q8(8, 6, 1, 1), "s": scales(8), "z": zeros(8), "w9": q8(8, 8, 1, 1, seed=9)},
    {"first": 6, "mid": 8, "third": 8},
    reads=8,
)
CASES["dequantised_gemm"] = dense(
    [
        node("DequantizeLinear", "w s z", "wf", axis=0),
        node("Gemm", "x wf", "h", name="mid", transB=1),
        node("DequantizeLinear", "v t u", "vf", axis=0),
        node("Gemm", "h vf", "y", name="last", transB=1),
    ],
    {"w": q8(7, 5), "s": scales(7), "z": zeros(7), "v": q8(3, 7), "t": scales(3), "u": zeros(3)},
    {"mid": 7},
)
CASES["dequantised_matmul_transposed"] = dense(
    [
        node("DequantizeLinear", "w s z", "wt", axis=0),
        node("Transpose", "wt", "wf"),
        node("MatMul", "x wf", "h", name="mid"),
        node("DequantizeLinear", "v t u", "vf", axis=1),
        node("MatMul", "h vf", "y", name="last"),
    ],
    {"w": q8(7, 5), "s": scales(7), "z": zeros(7), "v": q8(7, 3), "t": scales(3), "u": zeros(3)},
    {"mid": 7},
)
CASES["dequantised_in_blocks"] = dense(
    [
        node("MatMul", "x w0", "g", name="first"),
        node("DequantizeLinear", "w s z", "wf", axis=0, block_size=2),
        node("MatMul", "g wf", "h", name="mid"),
        node("MatMul", "h w9", "y", name="last"),
    ],
    {"w0": values(5, 6), "w": q8(6, 7), "s": values(3, 7, low=0.005, high=0.02), "z": q8(3, 7, seed=2), "w9": values(7, 3)},
    {"mid": 7},
    (("w", "in blocks of these channels"),),
    opset=21,
    ir=10,
)

simple(
    "dequantised_bias_of_two_layers",
    [
        node("DequantizeLinear", "c cs cz", "cf", axis=0),
        node("Conv", "a w cf", "m", name="mid"),
        node("Conv", "m w9 cf", "b", name="third"),
    ],
    {"w": values(8, 6, 1, 1), "w9": values(8, 8, 1, 1)} | BIAS,
    {"mid": 8, "first": 6},
    reads=8,
)
simple(
    "equal_biases_dequantised_apart",
    [
        node("DequantizeLinear", "c cs cz", "cf", axis=0),
        node("DequantizeLinear", "c cs cz", "cf9", axis=0),
        node("Conv", "a w cf", "m", name="mid"),
        node("Conv", "m w9 cf9", "b", name="third"),
    ],
    {"w": values(8, 6, 1, 1), "w9": values(8, 8, 1, 1)} | BIAS,
    {"first": 6, "mid": 8, "third": 8},
    reads=8,
)
simple(
    "dequantised_weight_as_output",
    [node("DequantizeLinear", "w s z", "wf", axis=0), node("Conv", "a wf", "b", name="mid")],
    {"w": q8(8, 6, 1, 1), "s": scales(8), "z": zeros(8)},
    {},
    (("wf", "read outside the graph"),),
    reads=8,
    outputs=("y", "wf"),
)
simple(
    "integers_that_stand_for_two_weights",
    [
        node("DequantizeLinear", "w s", "wf"),
        node("DequantizeLinear", "w s9", "wf9"),
        node("Conv", "a wf", "m", name="mid"),
        node("Conv", "m wf9", "b", name="third"),
    ],
    {"w": q8(6, 6, 1, 1), "s": ONE, "s9": np.float32(0.03)},
    {},
    (("w", "stand for other numbers elsewhere"),),
)
CASES["embedding_of_integers"] = dense(
    [
        node("Cast", "x", "ids", to=TensorProto.INT64),
        node("Gather", "table ids", "q"),
        node("DequantizeLinear", "q s z", "e"),
        node("MatMul", "e w", "y", name="last"),
    ],
    {"table": q8(9, 6), "s": ONE, "z": NIL, "w": values(6, 3)},
    {"table": 6},
)

# Activations on their way through integers.
for name, scale, zero in (("one_scale", ONE, NIL), ("scale_per_channel", scales(6), zeros(6))):
    simple(
        f"activation_quantised_with_{name}",
        [node("QuantizeLinear", "a s z", "q", axis=1), node("Relu", "a", "r"), node("DequantizeLinear", "q s z", "b", axis=1)],
        {"s": scale, "z": zero},
    )
simple(
    "activation_quantised_along_positions",
    [node("QuantizeLinear", "a s z", "q", axis=2), node("DequantizeLinear", "q s z", "b", axis=2)],
    {"s": scales(8), "z": zeros(8)},
)
simple(
    "activation_quantised_in_blocks_of_channels",
    [
        node("QuantizeLinear", "a s z", "q", axis=1, block_size=2),
        node("DequantizeLinear", "q s z", "b", axis=1, block_size=2),
    ],
    {"s": values(1, 3, 8, 8, low=0.005, high=0.02), "z": q8(1, 3, 8, 8)},
    {},
    (("s", "blocks of these channels"),),
    opset=21,
    ir=10,
)
