"""Quantised numbers: the operators between floats and integers, and those that compute with integers."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.graph.labels import Flow, Resizer, rule
from onnxprune.graph.rules import contraction, elementwise, movement, normalization, pooling, stand_ins
from onnxprune.graph.rules.stand_ins import MICROSOFT, of_integers
from onnxprune.graph.structure import Graph
from onnxprune.network import Ints, Quantised

TO_FLOATS = "as MatMul; scales, zero points and bias follow"
TWO = "two activations are tied, per-channel constants follow"
POOL = "window over height, width; channels last: pinned"
WINDOW = ("auto_pad", "ceil_mode", "count_include_pad", "dilations", "group", "kernel_shape", "pads", "strides")


@rule("DequantizeLinear", domain=MICROSOFT, shape=of_integers("Identity", (0,)), note="as that of ONNX")
@rule("QuantizeLinear", domain=MICROSOFT, shape=of_integers("Identity", (0,), 1), note="as that of ONNX")
@rule("DequantizeLinear", "QuantizeLinear", note="scales and zero points per channel follow; in blocks of the channels: pinned")
def quantize(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    scale = graph.shapes[node.input[1]]
    along = graph.attribute(index, "axis", 1) % max(len(graph.shapes[node.input[0]]), 1)
    found: dict[int, Ints] = {}
    for axis, labels in flow.labels(node.input[0]).items():
        if len(scale) > 1 and axis == along:
            flow.pin(labels, node.input[1], f"{graph.label(index)!r} has scales for blocks of these channels")
            continue
        found[axis] = labels
        if len(scale) > 1 or axis == along:
            for position in range(1, len(node.input)):
                if node.input[position]:
                    flow.scale(index, position, node.input[position], axis if len(scale) > 1 else 0, labels)
    maker = graph.producer.get(node.input[0])
    table = graph.stored(graph.input(maker, 0)) if maker is not None and graph.nodes[maker].op_type == "Gather" else None
    if table is not None and not scale:
        flow.quantised.setdefault(table.parameter, Quantised((node.input[1],), graph.input(index, 2)))
    flow.give(node.output[0], found)


@rule("DynamicQuantizeLinear", note="one scale for all channels, which depends on those that stay")
def measure(flow: Flow, index: int) -> None:
    node = flow.graph.nodes[index]
    labels = flow.labels(node.input[0])
    flow.measured += list(labels.values())
    flow.give(node.output[0], labels)


def _resize_conv(edit: Resizer, index: int) -> None:
    contraction.resize_group(edit, index, 3)


def _integers(flow: Flow, index: int, weight: int, made: Ints | None, axis: int, scales: Sequence[str], zero: int) -> None:
    """The weights at input `weight`, whose axis `axis` carries `made`, are integers: what they stand for, per channel or not."""
    graph = flow.graph
    stored = graph.stored(graph.input(index, weight))
    if made is None or stored is None:
        return
    zero_point = graph.input(index, zero)
    differs = any(len(graph.shapes[n]) == 1 and graph.shapes[n][0] > 1 for n in [*scales, zero_point] if n)
    if not all(n in graph.constants for n in [*scales, zero_point] if n):
        flow.pin(made, graph.input(index, weight), f"{graph.label(index)!r} takes the scales of its weights from the graph")
        return
    along = stored.axes[axis] if differs else None
    flow.quantised[stored.parameter] = Quantised(tuple(scales), zero_point, () if along is None else (along,))
    for position, name in enumerate(graph.nodes[index].input):
        if differs and name in (*scales, zero_point):
            flow.scale(index, position, name, 0, made)


def _bias(flow: Flow, index: int, position: int, scales: Sequence[str]) -> None:
    """A bias of integers stands for them times the scales of both factors."""
    graph = flow.graph
    stored = graph.stored(graph.input(index, position)) if graph.input(index, position) else None
    if stored is not None and all(name in graph.constants for name in scales):
        flow.quantised[stored.parameter] = Quantised(tuple(scales), "", (0,))


@rule("QLinearConv", resize=_resize_conv, note="as Conv; scales and zero points per channel follow")
@rule(
    "QLinearConv", domain=MICROSOFT, resize=_resize_conv, shape=of_integers("Conv", (0, 3), 6, *WINDOW),
    note="as that of ONNX; channels last: pinned",
)  # fmt: skip
def qlinear_conv(flow: Flow, index: int) -> None:
    names = flow.graph.nodes[index].input
    made = contraction.convolve(flow, index, weight=3, bias=8)
    _integers(flow, index, 3, made, 0, [names[4]], 5)
    _bias(flow, index, 8, [names[1], names[4]])


@rule("QLinearMatMul", note="as MatMul; scales and zero points per channel follow")
def qlinear_matmul(flow: Flow, index: int) -> None:
    names = flow.graph.nodes[index].input
    found = contraction.multiply(flow, index, second=3)
    if found is not None:
        position, made = found
        _integers(flow, index, position, made, 1 if position else 0, [names[position + 1]], position + 2)


@rule(
    "QGemm",
    domain=MICROSOFT,
    shape=of_integers("Gemm", (0, 3), 7, "transA", "transB"),
    note="as Gemm; scales and zero points per channel follow",
)
def qgemm(flow: Flow, index: int) -> None:
    graph, names = flow.graph, flow.graph.nodes[index].input
    made = contraction.multiply_add(flow, index, weight=3, bias=6)
    _integers(flow, index, 3, made, 0 if graph.attribute(index, "transB", 0) else 1, [names[4]], 5)
    _bias(flow, index, 6, [names[1], names[4]])


@rule("ConvInteger", resize=contraction.resize_group, note="as Conv; zero points per channel follow")
def conv_integer(flow: Flow, index: int) -> None:
    scale, floats = _floats(flow.graph, index)
    made = contraction.convolve(flow, index, bias=4, floats=floats)  # it has none
    _integers(flow, index, 1, made, 0, scale, 3)


@rule("MatMulInteger", note="as MatMul; zero points per channel follow")
def matmul_integer(flow: Flow, index: int) -> None:
    scale, floats = _floats(flow.graph, index)
    found = contraction.multiply(flow, index, floats=floats)
    if found is not None:
        position, made = found
        _integers(flow, index, position, made, position, scale, position + 2)


def _floats(graph: Graph, index: int) -> tuple[list[str], tuple[str, str]]:
    """The scale of the weights, which is only multiplied in behind; and the numbers before and behind the integers.

    They are looked for where ONNX Runtime's dynamic quantisation puts them: DynamicQuantizeLinear, the product of integers,
    Cast, Mul by the product of both scales.
    """
    node = graph.nodes[index]
    before = {graph.producer.get(name): name for name in node.input[:2]}
    x = next((graph.nodes[p].input[0] for p in before if p is not None and "QuantizeLinear" in graph.nodes[p].op_type), "")
    tensor = node.output[0]
    for op in ("Cast", "Mul"):
        user = graph.sole_user(tensor)
        if user is None or graph.nodes[user].op_type != op:
            return [], ("", "")
        behind, tensor = tensor, graph.nodes[user].output[0]
    user = graph.producer[tensor]
    product = graph.producer.get(next((n for n in graph.nodes[user].input if n != behind), ""))
    parts = graph.nodes[product].input if product is not None and graph.nodes[product].op_type == "Mul" else []
    return [n for n in parts if n in graph.constants][:1], (x, tensor) if x else ("", "")


@rule("DynamicQuantizeMatMul", domain=MICROSOFT, shape=of_integers("MatMul", (0, 1)), note=TO_FLOATS)
def dynamic_matmul(flow: Flow, index: int) -> None:
    flow.measured += list(flow.labels(flow.graph.nodes[index].input[0]).values())
    _to_floats(flow, index, scale=2, zero=3, bias=4)


@rule("MatMulIntegerToFloat", domain=MICROSOFT, shape=of_integers("MatMul", (0, 1)), note=TO_FLOATS)
def matmul_to_float(flow: Flow, index: int) -> None:
    _to_floats(flow, index, scale=3, zero=5, bias=6)


def _to_floats(flow: Flow, index: int, scale: int, zero: int, bias: int) -> None:
    """Products of integers that are scaled in the same node; `scale` and `zero` are those of the second factor."""
    graph = flow.graph
    found = contraction.multiply(flow, index)
    if found is None or found[0] != 1:
        return
    made = found[1]
    _integers(flow, index, 1, made, 1, [graph.input(index, scale)], zero)
    if graph.input(index, bias):
        flow.parameter(index, bias, 0, "follows", made)


@rule("QLinearAdd", domain=MICROSOFT, shape=of_integers("Add", (0, 3), 6), note=TWO)
@rule("QLinearMul", domain=MICROSOFT, shape=of_integers("Mul", (0, 3), 6), note=TWO)
def qlinear_broadcast(flow: Flow, index: int) -> None:
    graph = flow.graph
    elementwise.broadcast(flow, index, (0, 3))
    for position in (0, 3):
        stored = graph.stored(graph.input(index, position))
        if stored is not None:
            flow.quantised[stored.parameter] = Quantised((graph.input(index, position + 1),), graph.input(index, position + 2))


@rule("QLinearConcat", domain=MICROSOFT, shape=stand_ins.joined_integers, note="as Concat")
def qlinear_concat(flow: Flow, index: int) -> None:
    movement.join(flow, index, range(2, len(flow.graph.nodes[index].input), 3))


@rule("QLinearLeakyRelu", "QLinearSigmoid", domain=MICROSOFT, shape=of_integers("Identity", (0,), 3))
def qlinear_unary(flow: Flow, index: int) -> None:
    elementwise.unary(flow, index)


@rule("QLinearSoftmax", domain=MICROSOFT, shape=of_integers("Identity", (0,), 3), note="pinned along the axis it normalises")
def qlinear_softmax(flow: Flow, index: int) -> None:
    normalization.softmax(flow, index)


@rule("QLinearAveragePool", domain=MICROSOFT, shape=of_integers("AveragePool", (0,), 3, *WINDOW), note=POOL)
@rule("QLinearGlobalAveragePool", domain=MICROSOFT, shape=of_integers("GlobalAveragePool", (0,), 3), note=POOL)
def qlinear_pool(flow: Flow, index: int) -> None:
    pooling.pool(flow, index)
