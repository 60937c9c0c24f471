"""Operators of ONNX Runtime's own (com.microsoft) that are left after graph/unfuse.py wrote the others as their parts."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.labels import Flow, Rule, rule
from onnxprune.graph.rules import contraction, elementwise, stand_ins
from onnxprune.graph.rules.stand_ins import MICROSOFT

WINDOW = ("auto_pad", "ceil_mode", "dilations", "group", "kernel_shape", "pads", "strides")
BLOCKED = "com.microsoft.nchwc"

rule("Gelu", "QuickGelu", domain=MICROSOFT, shape=stand_ins.like())(elementwise.unary)
rule("FastGelu", domain=MICROSOFT, shape=stand_ins.like(), note="per-channel constants follow, two activations are tied")(
    elementwise.broadcasting
)


@rule("FusedMatMul", "TransposeMatMul", domain=MICROSOFT, shape=stand_ins.product, note="as MatMul and Einsum")
def fused_matmul(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    a, b = node.input
    ranks = len(graph.shapes[a]), len(graph.shapes[b])
    moved = any(graph.attribute(index, name, 0) for name in ("transA", "transBatchA", "transBatchB"))
    if b in graph.constants and ranks[1] == 2 and a not in graph.constants and not moved:
        w_in, scale = int(graph.attribute(index, "transB", 0)), float(graph.attribute(index, "alpha", 1.0))
        contraction.dense(flow, index, a, b, 1, ranks[0] - 1, w_in=w_in, scale=scale)
        return
    batch = "".join(chr(ord("A") + i) for i in range(max(ranks) - 2))
    first, second = (stand_ins.letters(node, side, batch[len(batch) - (n - 2) :]) for side, n in zip("AB", ranks, strict=True))
    contraction.contract(flow, index, [first, second], batch + "mn")


def _hold(flow: Flow, index: int, why: str, weights: int | None = None, axis: int = 0) -> None:
    """Nothing passes: what comes in stays, and so does what weights of a form that cannot be cut make."""
    graph = flow.graph
    for name in graph.nodes[index].input:
        flow.pin_all(name, f"{graph.label(index)!r} {why}")
    name = graph.input(index, weights) if weights is not None else ""
    if name in graph.constants and axis < len(graph.shapes[name]):
        made = flow.fresh(graph.shapes[name][axis])
        flow.parameter(index, weights or 0, axis, "makes", made)
        flow.pin(made, name, f"{graph.label(index)!r} {why}")


@rule("Conv", domain=BLOCKED, shape=stand_ins.standard("Conv", 3, *WINDOW), note="pinned: blocked layout for one processor")
def blocked_conv(flow: Flow, index: int) -> None:
    _hold(flow, index, "holds its weights in blocks for one processor (NCHWc): optimise less (ORT_ENABLE_EXTENDED)", 1)


def blocked(flow: Flow, index: int) -> None:
    _hold(flow, index, "lays channels out in blocks for one processor (NCHWc): optimise less (ORT_ENABLE_EXTENDED)")


for _pool in ("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"):
    rule(_pool, domain=BLOCKED, shape=stand_ins.standard(_pool, 1, *WINDOW), note="pinned: blocked layout for one processor")(
        blocked
    )
rule("ReorderInput", "Upsample", domain=BLOCKED, shape=stand_ins.like(), note="pinned: blocked layout for one processor")(blocked)
rule("ReorderOutput", domain=BLOCKED, shape=stand_ins.real_channels, note="pinned: blocked layout for one processor")(blocked)


def _held(why: str, weights: int | None = None, axis: int = 0) -> Rule:
    """The rule of operators that nothing passes, with the reason."""
    return lambda flow, index: _hold(flow, index, why, weights, axis)


for _names, _why, _place, _shape in (
    ("MatMulNBits MatMulBnb4", "packs its weights into blocks of few bits", (1, 0), stand_ins.packed_weights),
    ("QMoE", "packs its weights into blocks of few bits", (2, 1), stand_ins.like()),
    ("QAttention", "keeps heads whose weights are quantised in one piece", (1, 1), stand_ins.values_of_packed),
    ("LongformerAttention", "keeps heads that attend by two sets of weights", (1, 1), stand_ins.like()),
    ("PackedAttention", "keeps heads that attend to tokens without padding", (1, 1), stand_ins.values_of_packed),
    ("PackedMultiHeadAttention", "keeps heads that attend to tokens without padding", (), stand_ins.attended_tokens),
    ("DecoderMaskedMultiHeadAttention", "keeps heads that decode from a cache", (), stand_ins.like()),
    ("DecoderMaskedSelfAttention", "keeps heads that decode from a cache", (1, 1), stand_ins.values_of_packed),
    ("NhwcConv NhwcFusedConv", "holds channels last for one processor", (1, 0), stand_ins.channels_last("Conv", 3, *WINDOW)),
    ("GatherND", "gathers among these channels", (), stand_ins.standard("GatherND", 2)),
):
    rule(*_names.split(), domain=MICROSOFT, shape=_shape, note=f"pinned: {_why}")(_held(_why, *_place))


@rule("NhwcMaxPool", domain=MICROSOFT, shape=stand_ins.channels_last("MaxPool", 1, *WINDOW), note="channels last")
def nhwc_max_pool(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    labels = dict(flow.labels(node.input[0]))
    last = len(graph.shapes[node.input[0]]) - 1
    for axis in [a for a in labels if 0 < a < last]:
        flow.pin(labels.pop(axis), node.input[0], f"{graph.label(index)!r} slides a window over these channels")
    flow.give(node.output[0], labels)


@rule("MoE", domain=MICROSOFT, shape=stand_ins.like(), note="hidden units, the same in each expert; whole experts: pinned")
def mixture(flow: Flow, index: int) -> None:
    """x, router, fc1 (experts, hidden, in), bias, fc2 (experts, out, hidden), bias, fc3 as fc1, bias"""
    graph = flow.graph
    node = graph.nodes[index]
    x, router, fc1, fc2 = (graph.input(index, p) for p in (0, 1, 2, 4))
    width, hidden = graph.shapes[x][-1], graph.shapes[fc2][-1]
    pairs = 2 if graph.attribute(index, "activation_type", "") == "swiglu" and not graph.input(index, 6) else 1
    stored = all(name in graph.constants for name in [n for n in node.input[2:] if n])
    if not stored or graph.shapes[fc1][1:] != (pairs * hidden, width) or graph.attribute(index, "swiglu_fusion", 0) > 1:
        return _hold(flow, index, "keeps experts whose weights lie in a form that is not followed", 4, 1)
    flow.pin_all(router, f"{graph.label(index)!r} keeps its experts: it chooses the best of all")
    labels = dict(flow.labels(x))
    read = labels.pop(len(graph.shapes[x]) - 1, None)
    units, made = flow.fresh(hidden), flow.fresh(graph.shapes[fc2][1])
    for position in [p for p in (2, 6) if graph.input(index, p)]:
        own = np.repeat(units, pairs if position == 2 else 1)
        if read is not None:
            flow.parameter(index, position, 2, "reads", read)
        flow.parameter(index, position, 1, "makes", own)
        if graph.input(index, position + 1):
            flow.parameter(index, position + 1, 1, "follows", own)
    flow.parameter(index, 4, 2, "reads", units)
    flow.parameter(index, 4, 1, "makes", made)
    if graph.input(index, 5):
        flow.parameter(index, 5, 1, "follows", made)
    flow.give(node.output[0], labels | {len(graph.shapes[x]) - 1: made})
    return None
