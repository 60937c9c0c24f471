"""Layers: Conv, ConvTranspose, Gemm and MatMul. A contraction ends the channels it reads and begins the channels it makes."""

from __future__ import annotations

from math import prod
from typing import Literal

import numpy as np

from onnxprune.graph.labels import Flow, Resizer, layer_geometry, rule
from onnxprune.network import Geometry, Ints, Layer

NO_WINDOW = Geometry()


def _resize_group(edit: Resizer, index: int) -> None:
    """A depthwise convolution has as many groups as channels that stay; other groupings lose channels inside each group."""
    weight = edit.graph.shapes[edit.graph.input(index, 1)]
    group = edit.graph.attribute(index, "group", 1)
    transposed = edit.graph.nodes[index].op_type == "ConvTranspose"
    channels_in = weight[0] if transposed else weight[1] * group
    kept = edit.kept(edit.graph.input(index, 0), 1)
    if group > 1 and group == channels_in and kept is not None:
        edit.set_attribute(index, "group", len(kept))


def _layer(
    flow: Flow, index: int, weight: str, *, x: str = "", groups: int = 1, geometry: Geometry = NO_WINDOW,
    transposed: bool = False, side: Literal["left", "right"] = "right", scale: float = 1.0, bias: str = "",
    bias_scale: float = 1.0,
) -> None:  # fmt: skip
    """Record a layer whose weights are stored plainly; one whose weights are computed in the graph stays a mere pin."""
    graph = flow.graph
    node = graph.nodes[index]
    stored = graph.stored(weight)
    if stored is None or None in stored.axes:
        return
    shape = tuple(graph.parameters[stored.parameter].dims)
    held = graph.stored(bias) if bias else None
    x, y = x or node.input[0], node.output[0]
    if node.op_type == "ConvTranspose":
        macs = prod(graph.shapes[x]) * prod(shape[1:])
    else:
        macs = prod(graph.shapes[y]) * prod(shape) // graph.shapes[weight][1 if transposed else 0]
    flow.layers.append(
        Layer(
            name=graph.label(index), node=index, op=node.op_type, weight=stored.parameter, bias=held.parameter if held else None,
            bias_node=index if held else None, input=x, output=y, weight_shape=shape, input_shape=graph.shapes[x],
            output_shape=graph.shapes[y], groups=groups, geometry=geometry, side=side, macs=macs, scale=scale,
            bias_scale=bias_scale, transposed=transposed != (stored.axes != tuple(range(len(shape)))),
        )
    )  # fmt: skip


@rule(
    "Conv",
    resize=_resize_group,
    note="1-D to 3-D, strided, dilated; groups lose the same positions in each; depthwise follows its input",
)
def conv(flow: Flow, index: int) -> None:
    graph = flow.graph
    x, w, y = graph.nodes[index].input[0], graph.nodes[index].input[1], graph.nodes[index].output[0]
    if w not in graph.constants:
        return _not_constant(flow, index)
    out, per_group, *kernel = flow.graph.shapes[w]
    group = graph.attribute(index, "group", 1)
    labels = flow.labels(x).get(1)
    made = _grouped_input(flow, index, labels, group, per_group, 1)
    if per_group == 1 and group > 1:
        made = flow.need(x, 1, group, "a depthwise convolution reads it") if labels is None else labels
        made = np.repeat(made, out // group)
        flow.parameter(index, 1, 0, "follows", made)
    else:
        made = np.tile(flow.fresh(out // group), group)
        flow.parameter(index, 1, 0, "makes", made)
    if graph.input(index, 2):
        flow.parameter(index, 2, 0, "follows", made)
    flow.give(y, {a: v for a, v in flow.labels(x).items() if a == 0} | {1: made})
    _pin_spatial(flow, x, index)
    geometry = layer_geometry(graph, index, graph.shapes[x][2:], kernel)
    _layer(flow, index, w, groups=group, geometry=geometry, bias=graph.input(index, 2))
    return None


@rule("ConvTranspose", resize=_resize_group, note="as Conv")
def conv_transpose(flow: Flow, index: int) -> None:
    graph = flow.graph
    x, w, y = graph.nodes[index].input[0], graph.nodes[index].input[1], graph.nodes[index].output[0]
    if w not in graph.constants:
        return _not_constant(flow, index)
    channels, per_group, *kernel = graph.shapes[w]
    group = graph.attribute(index, "group", 1)
    labels = flow.labels(x).get(1)
    if group > 1 and group == channels:
        labels = flow.need(x, 1, channels, "a depthwise convolution reads it") if labels is None else labels
        made = np.repeat(labels, per_group)
        flow.parameter(index, 1, 0, "follows", labels)
    else:
        if labels is not None:
            blocks = labels.reshape(group, -1)
            flow.tie(blocks[:1], blocks)
            flow.parameter(index, 1, 0, "reads", labels)
        made_once = flow.fresh(per_group)
        flow.parameter(index, 1, 1, "makes", made_once)
        made = np.tile(made_once, group)
    if graph.input(index, 2):
        flow.parameter(index, 2, 0, "follows", made)
    flow.give(y, {a: v for a, v in flow.labels(x).items() if a == 0} | {1: made})
    _pin_spatial(flow, x, index)
    geometry = _transposed_geometry(flow, index, kernel)
    _layer(flow, index, w, groups=group, geometry=geometry, transposed=True, bias=graph.input(index, 2))
    return None


def _transposed_geometry(flow: Flow, index: int, kernel: list[int]) -> Geometry:
    """Pads of a ConvTranspose follow from the shapes, whatever they were given by (pads, auto_pad or output_shape)."""
    graph = flow.graph
    plain = layer_geometry(graph, index, graph.shapes[graph.nodes[index].input[0]][2:], kernel)
    if not graph.attribute(index, "output_shape") and graph.attribute(index, "auto_pad", "NOTSET") == "NOTSET":
        return plain
    size_in, size_out = graph.shapes[graph.nodes[index].input[0]][2:], graph.shapes[graph.nodes[index].output[0]][2:]
    begins, ends = [], []
    upper = graph.attribute(index, "auto_pad", "NOTSET") != "SAME_UPPER"
    parts = zip(size_in, size_out, plain.kernel, plain.strides, plain.dilations, plain.output_padding, strict=True)
    for n, m, k, s, d, extra in parts:
        total = max(s * (n - 1) + extra + (k - 1) * d + 1 - m, 0)
        small, large = total // 2, total - total // 2
        begins.append(large if upper else small)
        ends.append(small if upper else large)
    return Geometry(plain.kernel, plain.strides, plain.dilations, (*begins, *ends), plain.output_padding)


def _grouped_input(flow: Flow, index: int, labels: Ints | None, group: int, per_group: int, axis: int) -> Ints:
    """Weight axis `axis` holds the inputs of one group: position i of every group has to live and die together."""
    if labels is None or (per_group == 1 and group > 1):
        return np.empty(0, np.int64)
    blocks = labels.reshape(group, per_group)
    flow.tie(blocks[:1], blocks)
    first: Ints = blocks[0]
    flow.parameter(index, 1, axis, "reads", first)
    return first


def _pin_spatial(flow: Flow, tensor: str, index: int) -> None:
    for axis, labels in flow.labels(tensor).items():
        if axis >= 2:
            flow.pin(labels, tensor, f"node {flow.graph.label(index)!r} slides a window over these channels")


def _not_constant(flow: Flow, index: int) -> None:
    for name in flow.graph.nodes[index].input:
        flow.pin_all(name, f"the weights of {flow.graph.label(index)!r} are computed at run time")


@rule("Gemm", note="constant B; constant or no C")
def gemm(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    a, b, y = node.input[0], node.input[1], node.output[0]
    if b not in graph.constants or a in graph.constants:
        return _not_constant(flow, index)
    turned, transposed = bool(graph.attribute(index, "transA", 0)), not graph.attribute(index, "transB", 0)
    inputs, rows = (0, 1) if turned else (1, 0)
    w_in, w_out = (0, 1) if transposed else (1, 0)
    labels = flow.labels(a)
    if inputs in labels:
        flow.parameter(index, 1, w_in, "reads", labels[inputs])
    made = flow.fresh(graph.shapes[b][w_out])
    flow.parameter(index, 1, w_out, "makes", made)
    _gemm_bias(flow, index, made)
    flow.give(y, ({0: labels[rows]} if rows in labels else {}) | {1: made})
    if turned:
        flow.pin_all(a, f"{graph.label(index)!r} reads it transposed")
        flow.pin(made, y, f"{graph.label(index)!r} reads its input transposed")
        return None
    bias = graph.input(index, 2)
    usable = bool(bias) and graph.shapes[bias] in ((len(made),), (1, len(made)))
    scale, bias_scale = float(graph.attribute(index, "alpha", 1.0)), float(graph.attribute(index, "beta", 1.0))
    _layer(flow, index, b, transposed=transposed, scale=scale, bias=bias if usable else "", bias_scale=bias_scale)
    return None


def _gemm_bias(flow: Flow, index: int, made: Ints) -> None:
    graph = flow.graph
    name = graph.input(index, 2)
    if not name:
        return
    shape = graph.shapes[name]
    wide = bool(shape) and shape[-1] == len(made) and len(made) > 1
    if name in graph.constants:
        if wide:
            flow.parameter(index, 2, len(shape) - 1, "follows", made)
        return
    own = flow.labels(name).get(len(shape) - 1)
    if wide and own is not None:
        flow.tie(made, own)
    elif wide:
        flow.pin(made, name, f"added to {name!r}, which carries no channels")


@rule("MatMul", note="one operand constant and 2-D; two activations: pinned")
def matmul(flow: Flow, index: int) -> None:
    graph = flow.graph
    a, b = graph.nodes[index].input
    shape_a, shape_b = graph.shapes[a], graph.shapes[b]
    if b in graph.constants and len(shape_b) == 2 and a not in graph.constants:
        _matmul(flow, index, a, b, 1, len(shape_a) - 1, w_in=0, side="right")
    elif a in graph.constants and len(shape_a) == 2 and len(shape_b) >= 2 and b not in graph.constants:
        _matmul(flow, index, b, a, 0, len(shape_b) - 2, w_in=1, side="left")
    else:
        for name in (a, b):
            flow.pin_all(name, f"{graph.label(index)!r} multiplies two activations or a batch of matrices")


def _matmul(flow: Flow, index: int, x: str, w: str, position: int, axis: int, w_in: int, side: Literal["left", "right"]) -> None:
    graph = flow.graph
    labels = flow.labels(x)
    if axis in labels:
        flow.parameter(index, position, w_in, "reads", labels[axis])
    made = flow.fresh(graph.shapes[w][1 - w_in])
    flow.parameter(index, position, 1 - w_in, "makes", made)
    rest = {a: v for a, v in labels.items() if a != axis}
    flow.give(graph.nodes[index].output[0], rest | {axis: made})
    _layer(flow, index, w, transposed=side == "right", side=side, x=x)
