"""Layers."""

from __future__ import annotations

import numpy as np

from tests.graph.cases import CASES, Case, dense, ints, simple
from tests.graph.nets import net, node, values

for rank, size in ((1, (9,)), (2, (9, 9)), (3, (5, 5, 5))):
    simple(
        f"conv_{rank}d_strided_dilated",
        [node("Conv", "a w b_", "b", name="mid", strides=[2] * rank, dilations=[2] * rank, pads=[2] * (2 * rank))],
        {"w": values(8, 6, *(3,) * rank), "b_": values(8)},
        {"first": 6, "mid": 8},
        size=size,
        reads=8,
    )
for pad_mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
    simple(
        f"conv_auto_pad_{pad_mode}",
        [node("Conv", "a w", "b", name="mid", strides=[2, 2], auto_pad=pad_mode)],
        {"w": values(8, 6, 3, 3)},
        {"first": 6, "mid": 8},
        reads=8,
    )
simple(
    "conv_grouped",
    [node("Conv", "a w b_", "b", name="mid", group=2)],
    {"w": values(8, 3, 3, 3), "b_": values(8)},
    {"first": 3, "mid": 4},
    reads=8,
)
simple(
    "conv_of_many_groups_loses_whole_ones",
    [node("Conv", "a w b_", "b", name="mid", group=6)],
    {"w": values(18, 2, 3, 3), "b_": values(18)},
    {"first": 6},
    reads=18,
    channels=12,
)
simple(
    "conv_transpose_of_many_groups_loses_whole_ones",
    [node("ConvTranspose", "a w b_", "b", name="mid", group=6)],
    {"w": values(12, 3, 3, 3), "b_": values(18)},
    {"first": 6},
    reads=18,
    channels=12,
)
simple(
    "conv_depthwise", [node("Conv", "a w b_", "b", name="mid", group=6)], {"w": values(6, 1, 3, 3), "b_": values(6)}, {"first": 6}
)
simple(
    "conv_depthwise_multiplier",
    [node("Conv", "a w b_", "b", name="mid", group=6)],
    {"w": values(12, 1, 3, 3), "b_": values(12)},
    {"first": 6},
    reads=12,
)
simple("conv_1d_depthwise", [node("Conv", "a w", "b", name="mid", group=6)], {"w": values(6, 1, 3)}, {"first": 6}, size=(9,))
simple(
    "conv_weight_behind_unsqueeze",
    [node("Unsqueeze", "w ax", "wu"), node("Conv", "a wu", "b", name="mid")],
    {"w": values(8, 6, 1), "ax": ints(3)},
    {"first": 6, "mid": 8},
    reads=8,
)
simple(
    "conv_weight_behind_reshape",
    [node("Reshape", "w to", "wu"), node("Conv", "a wu", "b", name="mid")],
    {"w": values(8, 6), "to": ints(8, 6, 1, 1)},
    {"first": 6, "mid": 8},
    reads=8,
)

simple(
    "conv_transpose",
    [node("ConvTranspose", "a w b_", "b", name="mid", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])],
    {"w": values(6, 8, 3, 3), "b_": values(8)},
    {"first": 6, "mid": 8},
    reads=8,
)
simple(
    "conv_transpose_auto_pad",
    [node("ConvTranspose", "a w", "b", name="mid", strides=[2, 2], auto_pad="SAME_UPPER")],
    {"w": values(6, 8, 3, 3)},
    {"first": 6, "mid": 8},
    reads=8,
)
simple(
    "conv_transpose_output_shape",
    [node("ConvTranspose", "a w", "b", name="mid", strides=[2, 2], output_shape=[15, 15])],
    {"w": values(6, 8, 3, 3)},
    {"first": 6, "mid": 8},
    reads=8,
)
simple(
    "conv_transpose_grouped",
    [node("ConvTranspose", "a w b_", "b", name="mid", group=2)],
    {"w": values(6, 4, 3, 3), "b_": values(8)},
    {"first": 3, "mid": 4},
    reads=8,
)
simple(
    "conv_transpose_depthwise",
    [node("ConvTranspose", "a w b_", "b", name="mid", group=6, strides=[2, 2])],
    {"w": values(6, 1, 3, 3), "b_": values(6)},
    {"first": 6},
)
simple(
    "conv_transpose_depthwise_multiplier",
    [node("ConvTranspose", "a w b_", "b", name="mid", group=6)],
    {"w": values(6, 2, 3, 3), "b_": values(12)},
    {"first": 6},
    reads=12,
)
simple(
    "conv_transpose_1d",
    [node("ConvTranspose", "a w", "b", name="mid", strides=[2])],
    {"w": values(6, 8, 3)},
    {"first": 6, "mid": 8},
    reads=8,
    size=(9,),
)


for t1, t2 in ((0, 1), (1, 0)):
    CASES[f"gemm_trans_{t1}_{t2}"] = dense(
        [
            node("Gemm", "x w1 b1", "h", name="one", transB=t1, alpha=0.5, beta=2.0),
            node("Tanh", "h", "t"),
            node("Gemm", "t w2 b2", "y", name="two", transB=t2),
        ],
        {"w1": values(*((7, 5) if t1 else (5, 7))), "b1": values(7), "w2": values(*((4, 7) if t2 else (7, 4))), "b2": values(4)},
        {"one": 7},
    )
for form, bias in {"scalar": values(), "one": values(1), "row": values(1, 7), "vector": values(7)}.items():
    CASES[f"gemm_bias_{form}"] = dense(
        [node("Gemm", "x w1 b1", "h", name="one"), node("Relu", "h", "t"), node("Gemm", "t w2", "y", name="two")],
        {"w1": values(5, 7), "b1": bias, "w2": values(7, 4)},
        {"one": 7},
    )
CASES["gemm_bias_of_another_layer"] = dense(
    [node("MatMul", "x w0", "c", name="zero"), node("Gemm", "x w1 c", "h", name="one"), node("Gemm", "h w2", "y", name="two")],
    {"w0": values(5, 7), "w1": values(5, 7), "w2": values(7, 4)},
    {"zero": 7},
)
CASES["gemm_transposed_input"] = lambda: Case(
    net(
        [node("MatMul", "x w1", "h", name="one"), node("Gemm", "h w2", "y", name="two", transA=1)],
        {"w1": values(5, 7), "w2": values(3, 4)},
        {"x": [3, 5]},
    ),
    {},
    (("h", "reads it transposed"),),
)
CASES["matmul_right"] = dense(
    [node("MatMul", "x w1", "h", name="one"), node("Relu", "h", "t"), node("MatMul", "t w2", "y", name="two")],
    {"w1": values(5, 7), "w2": values(7, 4)},
    {"one": 7},
    shape=("N", 3, 5),
)
CASES["matmul_left"] = dense(
    [node("MatMul", "w1 x", "h", name="one"), node("Relu", "h", "t"), node("MatMul", "w2 t", "y", name="two")],
    {"w1": values(7, 5), "w2": values(4, 7)},
    {"one": 7},
    shape=("N", 5, 3),
)
CASES["matmul_add_bias"] = dense(
    [
        node("MatMul", "x w1", "h", name="one"),
        node("Add", "b1 h", "s"),
        node("Relu", "s", "t"),
        node("MatMul", "t w2", "z", name="two"),
        node("Add", "z b2", "y"),
    ],
    {"w1": values(5, 7), "b1": values(7), "w2": values(7, 4), "b2": values(4)},
    {"one": 7},
)
CASES["matmul_weight_transposed_in_the_graph"] = dense(
    [
        node("Transpose", "w1", "w1t", perm=[1, 0]),
        node("MatMul", "x w1t", "h", name="one"),
        node("Transpose", "w2", "w2t"),
        node("MatMul", "h w2t", "y", name="two"),
    ],
    {"w1": values(7, 5), "w2": values(4, 7)},
    {"one": 7},
)
CASES["matmul_of_a_vector"] = lambda: Case(
    net(
        [
            node("ReduceMean", "x", "v", axes=[0], keepdims=0),
            node("MatMul", "v w1", "h", name="one"),
            node("MatMul", "h w2", "y", name="two"),
        ],
        {"w1": values(5, 7), "w2": values(7, 4)},
        {"x": ["N", 5]},
    ),
    {"one": 7},
)
CASES["matmul_of_two_activations"] = dense(
    [
        node("MatMul", "x w1", "q", name="q_"),
        node("MatMul", "x w2", "k", name="k_"),
        node("Transpose", "k", "kt", perm=[0, 2, 1]),
        node("MatMul", "q kt", "y", name="qk"),
    ],
    {"w1": values(5, 7), "w2": values(5, 7)},
    {"q_": 7},
    shape=("N", 3, 5),
)
HEADS = [
    node("MatMul", "x wq", "q", name="q_"),
    node("MatMul", "x wk", "k", name="k_"),
    node("MatMul", "x wv", "v", name="v_"),
    *(node("Reshape", f"{n} split", f"{n}s") for n in "qkv"),
    *(node("Transpose", f"{n}s", f"{n}h", perm=[0, 2, 1, 3]) for n in "qv"),
    node("Transpose", "ks", "kh", perm=[0, 2, 3, 1]),
    node("MatMul", "qh kh", "scores"),
    node("Softmax", "scores", "p", axis=-1),
    node("MatMul", "p vh", "c"),
    node("Transpose", "c", "ct", perm=[0, 2, 1, 3]),
    node("Reshape", "ct join", "o"),
    node("MatMul", "o wo", "y", name="out"),
]
HEAD_WEIGHTS = {n: values(8, 12) for n in ("wq", "wk", "wv")} | {"wo": values(12, 8), "join": ints(0, 0, 12)}
CASES["attention_heads"] = dense(HEADS, HEAD_WEIGHTS | {"split": ints(0, 0, 4, 3)}, {"q_": 4}, shape=("N", 5, 8))
CASES["attention_of_one_head_loses_width"] = dense(
    HEADS, HEAD_WEIGHTS | {"split": ints(0, 0, 1, 12)}, {"q_": 12, "v_": 12}, shape=("N", 5, 8)
)
# The same for three samples that lie behind the sequence: heads are the same channels in each, though they share an axis.
CASES["heads_of_several_samples"] = dense(
    [
        *(node("MatMul", f"x w{n}", n, name=f"{n}_") for n in "qkv"),
        *(node("Reshape", f"{n} split", f"{n}s") for n in "qkv"),
        *(node("Transpose", f"{n}s", f"{n}h", perm=[1, 0, 2]) for n in "qv"),
        node("Transpose", "ks", "kh", perm=[1, 2, 0]),
        node("MatMul", "qh kh", "scores"),
        node("Softmax", "scores", "p", axis=-1),
        node("MatMul", "p vh", "c"),
        node("Transpose", "c", "ct", perm=[1, 0, 2]),
        node("Reshape", "ct rows", "o"),
        node("MatMul", "o wo", "r", name="out"),
        node("Reshape", "r back", "u"),
        node("Add", "x u", "y"),
    ],
    HEAD_WEIGHTS | {"split": ints(5, -1, 3), "rows": ints(-1, 12), "back": ints(5, -1, 8)},
    {"q_": 4},
    (("x", "carries no channels"),),
    shape=(5, 3, 8),
)
# torch's MultiheadAttention: batch and heads share an axis, and the target of Reshape computes batch * heads.
CASES["heads_behind_the_batch"] = dense(
    [
        node("Shape", "x", "sh"),
        node("Gather", "sh zero", "n"),
        node("Mul", "n four", "nh"),
        node("Concat", "five nh three", "split", axis=0),
        node("Concat", "five n twelve", "join", axis=0),
        node("Transpose", "x", "xt", perm=[1, 0, 2]),
        *(node("MatMul", f"xt w{n}", n, name=f"{n}_") for n in "qkv"),
        *(node("Reshape", f"{n} split", f"{n}s") for n in "qkv"),
        *(node("Transpose", f"{n}s", f"{n}h", perm=[1, 0, 2]) for n in "qv"),
        node("Transpose", "ks", "kh", perm=[1, 2, 0]),
        node("MatMul", "qh kh", "scores"),
        node("Softmax", "scores", "p", axis=-1),
        node("MatMul", "p vh", "c"),
        node("Transpose", "c", "ct", perm=[1, 0, 2]),
        node("Reshape", "ct join", "o"),
        node("MatMul", "o wo", "y", name="out"),
    ],
    {n: values(8, 12) for n in ("wq", "wk", "wv")}
    | {"wo": values(12, 8), "zero": ints(0), "four": ints(4), "five": ints(5), "three": ints(3), "twelve": ints(12)},
    {"q_": 4},
    shape=("N", 5, 8),
)
# As DETR's decoder: queries that were learned, as many as are stated beside batch * heads. They may go, but for the output.
CASES["heads_of_learned_queries_behind_the_batch"] = dense(
    [
        node("Shape", "x", "sh"),
        node("Gather", "sh zero", "n"),
        node("Mul", "n four", "nh"),
        node("Concat", "six nh three", "split", axis=0),
        node("Concat", "five nh three", "split_k", axis=0),
        node("Concat", "six n twelve", "join", axis=0),
        node("Concat", "one n one", "times", axis=0),
        node("Tile", "learned times", "l"),
        node("Transpose", "x", "xt", perm=[1, 0, 2]),
        node("MatMul", "l wq", "q", name="q_"),
        *(node("MatMul", f"xt w{n}", n, name=f"{n}_") for n in "kv"),
        node("Reshape", "q split", "qs"),
        *(node("Reshape", f"{n} split_k", f"{n}s") for n in "kv"),
        *(node("Transpose", f"{n}s", f"{n}h", perm=[1, 0, 2]) for n in "qv"),
        node("Transpose", "ks", "kh", perm=[1, 2, 0]),
        node("MatMul", "qh kh", "scores"),
        node("Softmax", "scores", "p", axis=-1),
        node("MatMul", "p vh", "c"),
        node("Transpose", "c", "ct", perm=[1, 0, 2]),
        node("Reshape", "ct join", "o"),
        node("MatMul", "o wo", "y", name="out"),
    ],
    {n: values(8, 12) for n in ("wq", "wk", "wv")}
    | {"wo": values(12, 8), "learned": values(6, 1, 8), "zero": ints(0), "one": ints(1)}
    | {"four": ints(4), "five": ints(5), "six": ints(6), "three": ints(3), "twelve": ints(12)},
    {"q_": 4},
    shape=("N", 5, 8),
)
# As transformers exports grouped queries: keys are repeated by an Expand whose target runs through Where.
# Their number is read from a shape and multiplied by the repeats.
CASES["grouped_queries"] = dense(
    [
        node("MatMul", "x wq", "q", name="q_"),
        node("MatMul", "x wk", "k", name="k_"),
        node("Shape", "x", "sh"),
        node("Gather", "sh zero", "n"),
        node("Concat", "n five minus three", "split", axis=0),
        node("Reshape", "q split", "qs"),
        node("Reshape", "k split", "ks"),
        node("Transpose", "qs", "qh", perm=[0, 2, 1, 3]),
        node("Transpose", "ks", "kh", perm=[0, 2, 1, 3]),
        node("Shape", "kh", "ksh"),
        node("Gather", "ksh one", "kv"),
        node("Unsqueeze", "kh two", "ku"),
        node("Concat", "n kv two five three", "to", axis=0),
        node("Equal", "to minus", "open"),
        node("Where", "open ones to", "target"),
        node("Expand", "ku target", "ke"),
        node("Mul", "kv two", "heads"),
        node("Concat", "n heads five three", "back", axis=0),
        node("Reshape", "ke back", "kr"),
        node("Transpose", "kr", "kt", perm=[0, 1, 3, 2]),
        node("MatMul", "qh kt", "scores"),
        node("Transpose", "scores", "st", perm=[0, 2, 1, 3]),
        node("Reshape", "st join", "o"),
        node("MatMul", "o wo", "y", name="out"),
    ],
    {"wq": values(8, 24), "wk": values(8, 12), "wo": values(40, 8), "join": ints(0, 0, -1), "ones": ints(1, 1, 1, 1, 1)}
    | {"zero": ints(0), "one": ints(1), "two": ints(2), "three": ints(3), "five": ints(5), "minus": ints(-1)},
    {"q_": 4},
    shape=("N", 5, 8),
)
# One matrix makes queries, keys and values: their widths go together, and the product is read by a layer too.
CASES["one_matrix_for_attention_of_one_head"] = dense(
    [
        node("MatMul", "x wqkv", "m", name="qkv"),
        node("Reshape", "m split", "s"),
        node("Transpose", "s", "t", perm=[2, 0, 1, 3]),
        *(node("Gather", f"t {n}", n + "h", axis=0) for n in "qkv"),
        node("Transpose", "kh", "kt", perm=[0, 2, 1]),
        node("MatMul", "qh kt", "scores"),
        node("Softmax", "scores", "p", axis=-1),
        node("MatMul", "p vh", "c"),
        node("MatMul", "c wo", "y", name="out"),
    ],
    {"wqkv": values(8, 36), "split": ints(0, 0, 3, 12), "wo": values(12, 8), **{n: np.array(i) for i, n in enumerate("qkv")}},
    {"qkv": 12},
    shape=("N", 5, 8),
)
for spelled, (first, second) in {
    "dots": ("...i,ij->...j", "...j,kj->...k"), "no_output": ("abi,ij", "... j, j k"), "dots_alone": ("...i,ij", "abj,jk->abk"),
}.items():  # fmt: skip
    CASES[f"einsum_with_{spelled}"] = dense(
        [
            node("Einsum", "x w1", "h", name="one", equation=first),
            node("Tanh", "h", "t"),
            node("Einsum", "t w2", "y", name="two", equation=second),
        ],
        {"w1": values(5, 7), "w2": values(*((4, 7) if "kj" in second else (7, 4)))},
        {"w1": 7},
        shape=("N", 3, 5),
    )
CASES["einsum_of_a_diagonal"] = dense(
    [node("Einsum", "x w1", "h", name="one", equation="nii,ij->nj"), node("MatMul", "h w2", "y", name="two")],
    {"w1": values(5, 7), "w2": values(7, 4)},
    {},
    (("w1", "is not followed"),),
    shape=("N", 5, 5),
)
CASES["einsum_heads"] = dense(
    [
        node("Einsum", "x wq", "q", name="q_", equation="bsc,chd->bshd"),
        node("Einsum", "x wk", "k", name="k_", equation="bsc,chd->bshd"),
        node("Einsum", "q k", "p", equation="bshd,bthd->bhst"),
        node("Reshape", "p join", "r"),
        node("MatMul", "r wo", "y", name="out"),
    ],
    {"wq": values(8, 4, 3), "wk": values(8, 4, 3), "join": ints(0, 100), "wo": values(100, 8)},
    {"wq": 4, "wq#2": 3},
    shape=("N", 5, 8),
)
CASES["layers_of_constants_alone"] = dense(
    [node("MatMul", "c w0", "cw", name="zero"), node("Gemm", "x w1 cw", "h", name="one"), node("Gemm", "h w2", "y", name="two")],
    {"c": values(1, 3), "w0": values(3, 7), "w1": values(5, 7), "w2": values(7, 4)},
    {"one": 7},
)
CASES["gemm_of_a_constant_input"] = dense(
    [node("Gemm", "x w1", "h", name="one"), node("Gemm", "c w2 h", "y", name="two")],
    {"w1": values(5, 7), "c": values(1, 3), "w2": values(3, 7)},
    {},
)
# torch.mm becomes a Gemm with a C that does not count.
CASES["gemm_of_two_activations"] = dense(
    [
        node("MatMul", "x w1", "h", name="one"),
        node("MatMul", "x w2", "k", name="two"),
        node("Gemm", "h k none", "s", transB=1, alpha=0.5, beta=0.0),
        node("Relu", "s", "y"),
    ],
    {"w1": values(5, 7), "w2": values(5, 7, seed=1), "none": values(1)},
    {"one": 7},
    shape=(4, 5),
)
CASES["gemm_of_two_activations_and_a_third"] = dense(
    [
        node("MatMul", "x w1", "h", name="one"),
        node("MatMul", "x w2", "k", name="two"),
        node("Gemm", "x w0", "c", name="zero"),
        node("Gemm", "k h c", "s", transA=1),
        node("Gemm", "s w3", "y", name="three"),
    ],
    {"w0": values(5, 7, seed=2), "w1": values(5, 7), "w2": values(5, 4, seed=1), "w3": values(7, 3)},
    {"one": 7},
    (("c", "carries no channels"),),
    shape=(4, 5),
)
simple(
    "conv_bias_from_outside",
    [node("GlobalAveragePool", "x", "g"), node("ReduceMean", "g", "m", axes=[0, 2, 3], keepdims=0),
     node("Conv", "a w m", "b", name="mid")],
    {"w": values(3, 6, 3, 3)},
    {"first": 6},
    (("m", "is no constant"),),
    reads=3,
)  # fmt: skip
CASES["conv_weight_at_run_time"] = lambda: Case(
    net(
        [node("Conv", "x w1", "a", name="first"), node("Conv", "a k", "y", name="dynamic")],
        {"w1": values(6, 3, 1, 1)},
        {"x": ["N", 3, 4, 4], "k": [2, 6, 1, 1]},
    ),
    {},
    (("a", "computed at run time"),),
)
