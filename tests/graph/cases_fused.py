"""Operators of ONNX Runtime's own that stay as they are (graph/unfuse.py writes the others as their parts)."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.graph.cases import CASES, Case, ints
from tests.graph.nets import net, node, values

MS = {"com.microsoft": 1, "com.microsoft.nchwc": 1}


def ms(op: str, inputs: str, outputs: str, domain: str = "com.microsoft", **attributes):
    return node(op, inputs, outputs, domain=domain, **attributes)


def foreign(name, nodes, weights, groups, pins=(), *, x=("N", 5, 8), y=("N", 5, 4), opset=17, **inputs) -> None:
    """A net of one chain, whose output shape has to be told to ONNX."""

    def build() -> Case:
        model = net(nodes, weights, {"x": list(x)} | inputs, opset=opset, ir=10, imports=MS, output_shape=list(y))
        return Case(model, groups, tuple(pins))

    CASES[name] = build


ENDS = {"w1": values(8, 6), "w2": values(6, 4, seed=2)}
FIRST, LAST = node("MatMul", "x w1", "a", name="first"), node("MatMul", "b w2", "y", name="last")
for op in ("Gelu", "QuickGelu", "FastGelu"):
    foreign(f"fused_{op}", [FIRST, ms(op, "a", "b"), LAST], ENDS, {"first": 6})
foreign("fused_FastGelu_bias", [FIRST, ms("FastGelu", "a c", "b"), LAST], ENDS | {"c": values(6)}, {"first": 6})
for turned in (0, 1):
    w1 = values(6, 8) if turned else values(8, 6)
    foreign(
        f"fused_matmul_weights_{turned}",
        [ms("FusedMatMul", "x w1", "a", name="first", transB=turned, alpha=0.5), node("Relu", "a", "b"), LAST],
        ENDS | {"w1": w1},
        {"first": 6},
    )
HEADS = [
    *[node("MatMul", f"x w{n}", n, name=n) for n in "qkv"],
    *[node("Reshape", f"{n} to", f"{n}r") for n in "qkv"],
    *[node("Transpose", f"{n}r", f"{n}t", perm=[0, 2, 1, 3]) for n in "qkv"],
]
HEAD_WEIGHTS = {f"w{n}": values(8, 24, seed=3) for n in "qkv"} | {
    "to": ints(0, 0, 4, 6),
    "back": ints(0, 0, 24),
    "wo": values(24, 4),
}
BACK = [node("Reshape", "at back", "h"), node("MatMul", "h wo", "y", name="out")]
foreign(
    "fused_matmul_scores",
    [
        *HEADS,
        ms("FusedMatMul", "qt kt", "s", transB=1, alpha=0.4),
        node("Softmax", "s", "p"),
        ms("FusedMatMul", "p vt", "a"),
        node("Transpose", "a", "at", perm=[0, 2, 1, 3]),
        *BACK,
    ],
    HEAD_WEIGHTS,
    {"q": 4},
)
foreign(
    "fused_matmul_of_batches",
    [
        FIRST,
        node("MatMul", "x w3", "o", name="other"),
        ms("FusedMatMul", "a o", "s", transA=1),
        node("Softmax", "s", "p"),
        ms("FusedMatMul", "a p", "b"),
        LAST,
    ],
    ENDS | {"w3": values(8, 6, seed=5)},
    {"first": 6},
    (("s", "normalises over"),),
)
foreign(
    "transpose_matmul",
    [FIRST, ms("TransposeMatMul", "a a", "y", transB=1, alpha=2.0)],
    {"w1": values(8, 6)},
    {"first": 6},
    y=("N", 5, 5),
)
EXPERTS = {"w1": values(8, 6), "wr": values(8, 3), "b1": values(3, 10), "b2": values(3, 6), "w2": values(6, 4, seed=2)}
ROUTED = [FIRST, node("MatMul", "x wr", "r3", name="router"), node("Reshape", "r3 rows", "r"), node("Reshape", "a wide", "ar")]


def experts(name, mix, weights, groups, pins=()) -> None:
    foreign(
        name,
        [*ROUTED, mix, node("MatMul", "b w2", "y", name="last")],
        EXPERTS | {"rows": ints(-1, 3), "wide": ints(-1, 6)} | weights,
        groups,
        pins,
        y=("M", 4),
    )


KEPT = (("r", "keeps its experts"),)
experts(
    "experts",
    ms("MoE", "ar r f1 b1 f2 b2", "b", name="mix", k=2, activation_type="silu"),
    {"f1": values(3, 10, 6), "f2": values(3, 6, 10)},
    {"first": 6, "f1": 10, "f2": 6},
    KEPT,
)
experts(
    "experts_of_pairs",
    ms("MoE", "ar r f1 - f2", "b", name="mix", k=1, activation_type="swiglu", swiglu_fusion=1),
    {"f1": values(3, 20, 6), "f2": values(3, 6, 10)},
    {"first": 6, "f1": 10, "f2": 6},
    KEPT,
)
experts(
    "experts_of_two_halves",
    ms("MoE", "ar r f1 - f2", "b", name="mix", k=1, activation_type="swiglu", swiglu_fusion=2),
    {"f1": values(3, 20, 6), "f2": values(3, 6, 10)},
    {},
    (("ar", "not followed"), ("f2", "not followed")),
)
HELD = {"w": values(32, 72), "b": values(72)}
BITS = {"K": 32, "N": 6, "block_size": 32}
PINNED = {
    "MatMulNBits": ("a p s", {"p": np.zeros((6, 1, 16), np.uint8), "s": values(6, 1)}, BITS | {"bits": 4}, "few bits"),
    "MatMulBnb4": ("a p s", {"p": np.zeros(96, np.uint8), "s": values(3)}, BITS | {"quant_type": 0}, "few bits"),
    "QMoE": ("a x p s - p s", {"p": np.zeros((2, 6, 3), np.uint8), "s": values(2, 6)}, {}, "few bits"),
    "QAttention": ("a w b s s", HELD | {"w": np.zeros((32, 72), np.int8), "s": np.float32(1)}, {}, "quantised"),
    "LongformerAttention": ("a w b x w b x", HELD, {"window": 2}, "two sets"),
    "PackedAttention": ("a w b x x", HELD, {}, "without padding"),
    "PackedMultiHeadAttention": ("a a a - x x", {}, {}, "without padding"),
    "DecoderMaskedMultiHeadAttention": ("a a a", {}, {}, "decode from a cache"),
    "DecoderMaskedSelfAttention": ("a w b x x x", HELD, {}, "decode from a cache"),
    "GatherND": ("a i", {"i": ints(0, 0).reshape(1, 2)}, {}, "gathers among"),
}
for op, (inputs, weights, attributes, words) in PINNED.items():
    foreign(
        f"pinned_{op}",
        [node("MatMul", "x w1", "a", name="first"), ms(op, inputs, "y", num_heads=4, **attributes)],
        {"w1": values(8, 32)} | weights,
        {},
        (("a", words),),
    )
CONV = {"w1": values(6, 3, 1, 1), "w2": values(8, 6, 3, 3), "w3": values(4, 8, 1, 1)}
CONV1, CONV3 = node("Conv", "x w1", "a", name="first"), node("Conv", "d w3", "y", name="last")
for op in ("NhwcConv", "NhwcFusedConv"):
    foreign(
        f"pinned_{op}",
        [CONV1, node("Transpose", "a", "at", perm=[0, 2, 3, 1]), ms(op, "at w2", "b", kernel_shape=[3, 3]),
         node("Transpose", "b", "d", perm=[0, 3, 1, 2]), CONV3],
        CONV,
        {},
        (("at", "channels last"), ("w2", "channels last")),
        x=("N", 3, 6, 6),
        y=("N", 4, 4, 4),
    )  # fmt: skip
for op in ("Conv", "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "Upsample"):
    given = {"kernel_shape": [3, 3]} if op in ("Conv", "AveragePool", "MaxPool") else {}
    foreign(
        f"blocked_{op}",
        [
            CONV1,
            ms("ReorderInput", "a", "r", "com.microsoft.nchwc"),
            ms(op, "r w2" if op == "Conv" else "r", "b", "com.microsoft.nchwc", **given),
            ms("ReorderOutput", "b", "d", "com.microsoft.nchwc", channels=8 if op == "Conv" else 6),
            CONV3,
        ],
        CONV | {"w3": values(4, 8 if op == "Conv" else 6, 1, 1)},
        {},
        (("a", "blocks for one processor"),),
        x=("N", 3, 6, 6),
        y=("N", 4, "H", "W"),
    )
foreign(
    "nhwc_max_pool",
    [
        CONV1,
        node("Mul", "a forty", "am"),
        node("Cast", "am", "ai", to=TensorProto.INT8),
        node("Transpose", "ai", "at", perm=[0, 2, 3, 1]),
        ms("NhwcMaxPool", "at", "b", kernel_shape=[2, 2]),
        node("Cast", "b", "bf", to=TensorProto.FLOAT),
        node("Transpose", "bf", "d", perm=[0, 3, 1, 2]),
        CONV3,
    ],
    CONV | {"w3": values(4, 6, 1, 1), "forty": np.float32(40)},
    {"first": 6},
    x=("N", 3, 6, 6),
    y=("N", 4, 5, 5),
)  # fmt: skip
foreign(
    "nhwc_max_pool_over_channels",
    [
        CONV1,
        node("Cast", "a", "ai", to=TensorProto.INT8),
        ms("NhwcMaxPool", "ai", "b", kernel_shape=[2, 2]),
        node("Cast", "b", "d", to=TensorProto.FLOAT),
        CONV3,
    ],
    CONV | {"w3": values(4, 5, 1, 1)},
    {},
    (("ai", "slides a window"),),
    x=("N", 3, 6, 6),
    y=("N", 4, 5, 6),
)
