"""Attention as one node, of ONNX and of ONNX Runtime."""

from __future__ import annotations

import numpy as np

from tests.graph.cases import CASES, Case, ints
from tests.graph.nets import net, node, values

MS = {"com.microsoft": 1}


def attention(
    name, middle, groups, pins=(), *, weights=None, widths=(24, 24, 24), reads=24, opset=17, inputs=None, made="qkv", batch="N"
) -> None:
    """x (N, 5, 8) -> MatMul q, k, v -> the nodes of `middle` make h -> MatMul out -> y"""
    layers = [node("MatMul", f"x w{n}", n, name=n) for n in made[: len(widths)]]
    stored = {f"w{n}": values(8, width, seed=3) for n, width in zip(made, widths, strict=False)}
    stored |= {"wo": values(reads, 4, seed=2)} | (weights or {})

    def build() -> Case:
        nodes = [*layers, *middle, node("MatMul", "h wo", "y", name="out")]
        given = {"x": [batch, 5, 8]} | (inputs or {})
        imports = None if opset >= 23 else MS
        model = net(nodes, stored, given, opset=opset, ir=10, imports=imports, output_shape=[batch, 5, 4])
        return Case(model, groups, tuple(pins))

    CASES[f"attention_node_{name}"] = build


attention("onnx", [node("Attention", "q k v", "h", q_num_heads=4, kv_num_heads=4)], {"q": 4}, opset=23)
attention(
    "onnx_grouped",
    [node("Attention", "q k v", "h", q_num_heads=6, kv_num_heads=3, is_causal=1)],
    {"q": 3},
    widths=(24, 12, 12),
    opset=23,
)
attention(
    "onnx_values_of_another_width",
    [node("Attention", "q k v - - -", "h", q_num_heads=4, kv_num_heads=2)],
    {"q": 2},
    widths=(24, 12, 6),
    reads=12,
    opset=24,
)
SPLIT = [
    *[node("Reshape", f"{n} to", f"{n}r") for n in "qkv"],
    *[node("Transpose", f"{n}r", f"{n}t", perm=[0, 2, 1, 3]) for n in "qkv"],
]
BACK = [node("Transpose", "a", "at", perm=[0, 2, 1, 3]), node("Reshape", "at back", "h")]
attention(
    "onnx_four_axes",
    [*SPLIT, node("Attention", "qt kt vt mask", "a"), *BACK],
    {"q": 4},
    weights={"to": ints(0, 0, 4, 6), "back": ints(0, 0, 24), "mask": values(1, 4, 5, 5)},
    opset=23,
)
attention(
    "onnx_bias_of_every_head",
    [
        node("MatMul", "x wm", "m", name="bias"),
        node("Transpose", "m", "mt", perm=[0, 2, 1]),
        node("Unsqueeze", "mt ax", "mu"),
        node("Add", "mu rows", "mask"),
        node("Attention", "q k v mask", "h", q_num_heads=4, kv_num_heads=4),
    ],
    {"q": 4},
    weights={"wm": values(8, 4), "ax": ints(2), "rows": values(5, 1)},
    opset=23,
)
attention(
    "onnx_mask_for_all_heads",
    [node("Attention", "q k v mask", "h", q_num_heads=4, kv_num_heads=4)],
    {"q": 4},
    weights={"mask": values(5, 5)},
    opset=23,
)
attention(
    "onnx_mask_from_outside",
    [node("Attention", "q k v mask", "h", q_num_heads=4, kv_num_heads=4)],
    {},
    (("mask", "carries no channels"),),
    inputs={"mask": ["N", 4, 5, 5]},
    opset=23,
)
attention(
    "onnx_cache",
    [node("Attention", "q k v - pk pv", "h nk nv", q_num_heads=4, kv_num_heads=4)],
    {},
    (("pk", "holds those of earlier steps"),),
    inputs={"pk": ["N", 4, 3, 6], "pv": ["N", 4, 3, 6]},
    opset=23,
)
attention(
    "onnx_keys_from_outside",
    [node("Attention", "q ext ext", "h", q_num_heads=4, kv_num_heads=4)],
    {},
    (("ext", "carries no channels"),),
    widths=(24,),
    inputs={"ext": ["N", 7, 24]},
    opset=23,
)
attention(
    "onnx_learned_queries",
    [node("Attention", "lq k v", "h", q_num_heads=4, kv_num_heads=4)],
    {"k": 4},
    weights={"lq": values(1, 5, 24)},
    made="kv",
    batch=1,
    opset=23,
)
# (N, 5) numbers 0 to 4, and (N) numbers 4: positions and lengths that follow the batch.
PLACES = [
    node("ReduceMax", "x", "xm", axes=[2], keepdims=0),
    node("Mul", "xm nought", "xz"),
    node("Cast", "xz", "zeros", to=7),
    node("Add", "zeros steps", "at"),
]
LENGTHS = [
    *PLACES,
    node("ReduceMax", "at", "last", axes=[1], keepdims=0),
    node("Cast", "last", "lengths", to=6),
]
STEPS = {"nought": np.float32(0), "steps": np.arange(5)}
ROTATION = STEPS | {"cos": values(9, 3), "sin": values(9, 3), "al": ints(2)}
attention(
    "onnx_rotated",
    [
        node("ReduceMax", "x al", "xm", keepdims=0),
        *PLACES[1:],
        *[node("RotaryEmbedding", f"{n} cos sin at", f"{n}e", num_heads=c) for n, c in (("q", 4), ("k", 2))],
        node("Attention", "qe ke v", "h", q_num_heads=4, kv_num_heads=2),
    ],
    {"q": 2},
    widths=(24, 12, 12),
    weights=ROTATION,
    opset=23,
)


def ms(op: str, inputs: str, outputs: str = "h", **attributes):
    return node(op, inputs, outputs, domain="com.microsoft", **attributes)


attention("multi_head", [ms("MultiHeadAttention", "q k v", num_heads=4)], {"q": 4})
attention(
    "multi_head_bias_and_relative_positions",
    [ms("MultiHeadAttention", "q k v b - mask", num_heads=4)],
    {"q": 4},
    weights={"b": values(60), "mask": values(1, 4, 5, 5)},
    widths=(24, 24, 12),
    reads=12,
)
attention(
    "multi_head_cross",
    [
        *[node("Reshape", f"{n} to", f"{n}r") for n in "kv"],
        *[node("Transpose", f"{n}r", f"{n}t", perm=[0, 2, 1, 3]) for n in "kv"],
        ms("MultiHeadAttention", "q kt vt", num_heads=4, scale=0.3),
    ],
    {"q": 4},
    weights={"to": ints(0, 0, 4, 6)},
)
attention(
    "multi_head_cache",
    [ms("MultiHeadAttention", "q k v - - - pk pv", "h nk nv", num_heads=4)],
    {},
    (("pk", "earlier steps"),),
    inputs={"pk": ["N", 4, 3, 6], "pv": ["N", 4, 3, 6]},
)
attention(
    "multi_head_bias_computed",
    [
        node("ReduceMean", "x", "xs", axes=[0, 1, 2], keepdims=0),
        node("Add", "b xs", "bx"),
        ms("MultiHeadAttention", "q k v bx", num_heads=4),
    ],
    {},
    (("bx", "computed at run time"),),
    weights={"b": values(72)},
)
attention(
    "grouped_query",
    [*LENGTHS, ms("GroupQueryAttention", "q k v - - lengths total", num_heads=6, kv_num_heads=3)],
    {"q": 3},
    widths=(48, 24, 24),
    reads=48,
    weights=STEPS | {"total": np.array(5, np.int32)},
)
attention(
    "grouped_query_packed_and_rotated",
    [*LENGTHS, ms("GroupQueryAttention", "q - - - - lengths total cos sin", num_heads=4, kv_num_heads=2, do_rotary=1)],
    {"q": 2},
    widths=(128,),
    reads=64,
    weights=STEPS | {"total": np.array(5, np.int32), "cos": values(9, 8), "sin": values(9, 8)},
)
attention(
    "grouped_query_sinks",
    [*LENGTHS, ms("GroupQueryAttention", "q k v - - lengths total - - - - sink", num_heads=4, kv_num_heads=2)],
    {"q": 2},
    widths=(32, 16, 16),
    reads=32,
    weights=STEPS | {"total": np.array(5, np.int32), "sink": values(4)},
)
attention(
    "grouped_query_cache",
    [*LENGTHS, ms("GroupQueryAttention", "q k v pk pv lengths total", "h nk nv", num_heads=4, kv_num_heads=2)],
    {},
    (("pk", "earlier steps"),),
    widths=(32, 16, 16),
    reads=32,
    inputs={"pk": ["N", 2, 3, 8], "pv": ["N", 2, 3, 8]},
    weights=STEPS | {"total": np.array(8, np.int32)},
)
attention(
    "rotary_of_onnx_runtime",
    [
        *PLACES,
        *[ms("RotaryEmbedding", f"{n} at cos sin", f"{n}e") for n in "qk"],
        ms("MultiHeadAttention", "qe ke v", num_heads=4),
    ],
    {"q": 4},
    widths=(32, 32, 32),
    reads=32,
    weights=STEPS | {"cos": values(9, 4), "sin": values(9, 4)},
)
attention(
    "rotary_of_half_the_width",
    [
        *PLACES,
        *[ms("RotaryEmbedding", f"{n} at cos sin", f"{n}e", num_heads=4, rotary_embedding_dim=4) for n in "qk"],
        ms("MultiHeadAttention", "qe ke v", num_heads=4),
    ],
    {"q": 4},
    widths=(32, 32, 32),
    reads=32,
    weights=STEPS | {"cos": values(9, 2), "sin": values(9, 2)},
)
# The rotation alone keeps the widths: the scores would let them go.
attention(
    "rotary_before_plain_scores",
    [
        *PLACES,
        *[ms("RotaryEmbedding", f"{n} at cos sin", f"{n}e") for n in "qk"],
        *[node("Reshape", f"{n}e to", f"{n}r") for n in "qk"],
        node("Transpose", "qr", "qt", perm=[0, 2, 1, 3]),
        node("Transpose", "kr", "kt", perm=[0, 2, 3, 1]),
        node("MatMul", "qt kt", "s"),
        node("ReduceMean", "s", "sm", axes=[3], keepdims=0),
        node("Transpose", "sm", "h", perm=[0, 2, 1]),
    ],
    {"q": 4},
    widths=(32, 32),
    reads=4,
    weights=STEPS | {"cos": values(9, 4), "sin": values(9, 4), "to": ints(0, 0, 4, 8)},
)
# The packed form: its own weights make the heads, and read the channels of the layer before.
for _name, _sizes, _given in (("packed", (24, 24, 24), {}), ("packed_sizes", (24, 24, 12), {"qkv_hidden_sizes": [24, 24, 12]})):
    attention(
        _name,
        [ms("Attention", "q w b", num_heads=4, name="self", **_given)],
        {"q": 12, "w": 4},
        widths=(12,),
        reads=_sizes[2],
        weights={"w": values(12, sum(_sizes)), "b": values(sum(_sizes))},
    )
attention(
    "packed_masked",
    [ms("Attention", "q w b - - mask", num_heads=4, unidirectional=1)],
    {"q": 12, "w": 4},
    widths=(12,),
    weights={"w": values(12, 72), "b": values(72), "mask": values(1, 4, 5, 5)},
)
attention(
    "packed_cache",
    [ms("Attention", "q w b - past", "h present", num_heads=4)],
    {"q": 12},
    (("past", "earlier steps"),),
    widths=(12,),
    weights={"w": values(12, 72), "b": values(72)},
    inputs={"past": [2, 1, 4, 3, 6]},
    batch=1,
)
attention(
    "packed_weights_from_outside",
    [ms("Attention", "q w b", num_heads=4)],
    {},
    (("q", "computed at run time"),),
    widths=(12,),
    weights={"b": values(72)},
    inputs={"w": [12, 72]},
)
