"""Operators of ONNX Runtime's own (com.microsoft) that are left after graph/unfuse.py wrote the others as their parts."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.labels import Flow, rule
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
    first, second = (
        stand_ins.letters(node, side, batch[len(batch) - (n - 2) :]) for side, n in zip("AB", ranks, strict=True)
    )
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
