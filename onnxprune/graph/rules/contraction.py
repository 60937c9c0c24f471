"""Layers: Conv, ConvTranspose, Gemm and MatMul. A contraction ends the channels it reads and begins the channels it makes."""

from __future__ import annotations

from math import prod
from string import ascii_letters
from typing import Literal

import numpy as np

from onnxprune.graph import scores
from onnxprune.graph.facts import FLOATS
from onnxprune.graph.labels import Flow, Resizer, layer_geometry, rule
from onnxprune.network import Geometry, Ints, Layer, Norm

NO_WINDOW = Geometry()


def resize_group(edit: Resizer, index: int, weight: int = 1) -> None:
    """As many groups as the weights that are left make: fewer where whole groups went (of a depthwise convolution: channels)."""
    node = edit.graph.nodes[index]
    group = edit.graph.attribute(index, "group", 1)
    if group == 1:
        return
    tensor = node.output[0] if node.op_type == "ConvTranspose" else node.input[0]
    kept = edit.kept(tensor, 1)
    channels = edit.graph.shapes[tensor][1] if kept is None else len(kept)
    left = channels // edit.stored_shape(index, weight)[1]
    if left != group:
        edit.set_attribute(index, "group", left)


def _layer(
    flow: Flow, index: int, weight: str, *, x: str = "", y: str = "", op: str = "", groups: int = 1,
    geometry: Geometry = NO_WINDOW, transposed: bool = False, side: Literal["left", "right"] = "right", scale: float = 1.0,
    bias: str = "", bias_scale: float = 1.0,
) -> None:  # fmt: skip
    """Record a layer whose weights are stored plainly; one whose weights are computed in the graph stays a mere pin."""
    graph = flow.graph
    node = graph.nodes[index]
    stored = graph.stored(weight)
    if stored is None or None in stored.axes:
        return
    shape = tuple(graph.parameters[stored.parameter].dims)
    held = graph.stored(bias) if bias else None
    x, y, op = x or node.input[0], y or node.output[0], op or node.op_type
    if op == "ConvTranspose":
        macs = prod(graph.shapes[x]) * prod(shape[1:])
    else:
        macs = prod(graph.shapes[y]) * prod(shape) // graph.shapes[weight][1 if transposed else 0]
    flow.layers.append(
        Layer(
            name=graph.label(index), node=index, op=op, weight=stored.parameter, bias=held.parameter if held else None,
            bias_node=index if held else None, input=x, output=y, weight_shape=shape, input_shape=graph.shapes[x],
            output_shape=graph.shapes[y], groups=groups, geometry=geometry, side=side, macs=macs, scale=scale,
            bias_scale=bias_scale, transposed=transposed != (stored.axes != tuple(range(len(shape)))),
        )
    )  # fmt: skip


@rule(
    "Conv",
    resize=resize_group,
    note="1-D to 3-D, strided, dilated; groups go whole, or each loses as many channels of its own; depthwise follows its input",
)
def conv(flow: Flow, index: int) -> None:
    convolve(flow, index)


def convolve(flow: Flow, index: int, weight: int = 1, bias: int = 2, floats: tuple[str, str] = ("", "")) -> Ints | None:
    """Conv, whatever the positions of weight and bias.

    floats: the numbers for which its input and output stand, where these are integers; "" for its own.
    Returns the labels it makes, None where its weights are no constant.
    """
    graph = flow.graph
    x, w, y = graph.nodes[index].input[0], graph.nodes[index].input[weight], graph.nodes[index].output[0]
    if w not in graph.constants:
        _not_constant(flow, index)
        return None
    out, per_group, *kernel = flow.graph.shapes[w]
    group = graph.attribute(index, "group", 1)
    labels = flow.labels(x).get(1)
    if per_group == 1 and group > 1:
        made = flow.need(x, 1, group, "a depthwise convolution reads it") if labels is None else labels
        made = np.repeat(made, out // group)
        flow.parameter(index, weight, 0, "follows", made)
    elif group > 1:
        groups, inputs = _groups_of(flow, index, labels, group)
        if inputs is not None:
            flow.parameter(index, weight, 1, "reads", inputs)
        made = flow.joint(flow.fresh(out).reshape(group, -1), (groups, flow.fresh(out // group))).labels.reshape(-1)
        flow.parameter(index, weight, 0, "makes", made)
    else:
        if labels is not None:
            flow.parameter(index, weight, 1, "reads", labels)
        made = flow.fresh(out)
        flow.parameter(index, weight, 0, "makes", made)
    if graph.input(index, bias):
        flow.parameter(index, bias, 0, "follows", made)
    flow.give(y, {a: v for a, v in flow.labels(x).items() if a == 0} | {1: made})
    _pin_spatial(flow, x, index)
    geometry = layer_geometry(graph, index, graph.shapes[x][2:], kernel)
    _layer(flow, index, w, x=floats[0], y=floats[1], op="Conv", groups=group, geometry=geometry, bias=graph.input(index, bias))
    return made


@rule("ConvTranspose", resize=resize_group, note="as Conv")
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
            flow.parameter(index, 1, 0, "reads", labels)
        made_once = flow.fresh(per_group)
        flow.parameter(index, 1, 1, "makes", made_once)
        made = made_once
        if group > 1:
            groups, _ = _groups_of(flow, index, labels, group)
            made = flow.joint(flow.fresh(group * per_group).reshape(group, -1), (groups, made_once)).labels.reshape(-1)
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


def _groups_of(flow: Flow, index: int, labels: Ints | None, group: int) -> tuple[Ints, Ints | None]:
    """The labels of a convolution's groups, and of the positions in each of them."""
    groups = inputs = None
    if labels is not None:
        groups, inputs = flow.split(labels.reshape(group, -1))
    if groups is None:
        groups = flow.fresh(group)
        flow.pin(groups, flow.graph.nodes[index].input[0], f"{flow.graph.label(index)!r} keeps its groups")
    flow.blocks[index] = groups
    return groups, inputs


def _pin_spatial(flow: Flow, tensor: str, index: int) -> None:
    for axis, labels in flow.labels(tensor).items():
        if axis >= 2:
            flow.pin(labels, tensor, f"node {flow.graph.label(index)!r} slides a window over these channels")


def _not_constant(flow: Flow, index: int) -> None:
    for name in flow.graph.nodes[index].input:
        flow.pin_all(name, f"the weights of {flow.graph.label(index)!r} are computed at run time")


@rule("Gemm", note="constant B; of two activations as MatMul")
def gemm(flow: Flow, index: int) -> None:
    graph = flow.graph
    a, b = graph.nodes[index].input[:2]
    if b in graph.constants and a not in graph.constants:
        multiply_add(flow, index)
        return
    first = "km" if graph.attribute(index, "transA", 0) else "mk"
    contract(flow, index, [first, "nk" if graph.attribute(index, "transB", 0) else "kn"], "mn")
    labels = flow.labels(graph.nodes[index].output[0])
    for axis, made in labels.items():
        _gemm_bias(flow, index, 2, made, axis)
    c = graph.input(index, 2)
    for axis, own in flow.labels(c).items():
        if axis + 2 - len(graph.shapes[c]) not in labels:
            flow.pin(own, c, f"added to what {graph.label(index)!r} multiplies, which carries no channels")


def multiply_add(flow: Flow, index: int, weight: int = 1, bias: int = 2) -> Ints | None:
    """Gemm, whatever the positions of B and C. Returns the labels it makes, None where B is no constant."""
    graph = flow.graph
    node = graph.nodes[index]
    a, b, y = node.input[0], node.input[weight], node.output[0]
    if b not in graph.constants or a in graph.constants:
        _not_constant(flow, index)
        return None
    turned, transposed = bool(graph.attribute(index, "transA", 0)), not graph.attribute(index, "transB", 0)
    inputs, rows = (0, 1) if turned else (1, 0)
    w_in, w_out = (0, 1) if transposed else (1, 0)
    labels = flow.labels(a)
    if inputs in labels:
        flow.parameter(index, weight, w_in, "reads", labels[inputs])
    made = flow.fresh(graph.shapes[b][w_out])
    flow.parameter(index, weight, w_out, "makes", made)
    _gemm_bias(flow, index, bias, made)
    flow.give(y, ({0: labels[rows]} if rows in labels else {}) | {1: made})
    if turned:
        flow.pin_all(a, f"{graph.label(index)!r} reads it transposed")
        flow.pin(made, y, f"{graph.label(index)!r} reads its input transposed")
        return made
    c = graph.input(index, bias)
    usable = bool(c) and graph.shapes[c] in ((len(made),), (1, len(made)))
    scale, bias_scale = float(graph.attribute(index, "alpha", 1.0)), float(graph.attribute(index, "beta", 1.0))
    _layer(flow, index, b, op="Gemm", transposed=transposed, scale=scale, bias=c if usable else "", bias_scale=bias_scale)
    return made


def _gemm_bias(flow: Flow, index: int, position: int, made: Ints, axis: int = 1) -> None:
    """C is added to the product, with axis `axis` of which it has the labels `made` in common."""
    graph = flow.graph
    name = graph.input(index, position)
    if not name:
        return
    shape = graph.shapes[name]
    at = axis - 2 + len(shape)
    wide = at >= 0 and shape[at] == len(made) and len(made) > 1
    if name in graph.constants:
        if wide:
            flow.parameter(index, position, at, "follows", made)
        return
    own = flow.labels(name).get(at)
    if wide and own is not None:
        flow.tie(made, own)
    elif wide:
        flow.pin(made, name, f"added to {name!r}, which carries no channels")


@rule("MatMul", note="two activations: contracted and batch axes are tied (attention heads, head width)")
def matmul(flow: Flow, index: int) -> None:
    multiply(flow, index)


def multiply(flow: Flow, index: int, second: int = 1, floats: tuple[str, str] = ("", "")) -> tuple[int, Ints] | None:
    """MatMul, whatever the position of its second operand. `floats`: as in convolve.

    Returns the position of a constant operand and the labels it makes, None where both are activations.
    """
    graph = flow.graph
    a, b = graph.nodes[index].input[0], graph.nodes[index].input[second]
    shape_a, shape_b = graph.shapes[a], graph.shapes[b]
    if b in graph.constants and len(shape_b) == 2 and a not in graph.constants:
        return second, dense(flow, index, a, b, second, len(shape_a) - 1, w_in=0, floats=floats)
    if a in graph.constants and len(shape_a) == 2 and len(shape_b) >= 2 and b not in graph.constants:
        return 0, dense(flow, index, b, a, 0, len(shape_b) - 2, w_in=1, side="left", floats=floats)
    operands, output = _matmul_letters(len(shape_a), len(shape_b))
    contract(flow, index, [operands[0], *[""] * (second - 1), operands[1]], output)
    return None


def _matmul_letters(a: int, b: int) -> tuple[list[str], str]:
    """MatMul as an Einsum: batch axes from the right, then m k and k n."""
    rank = max(a, b)
    batch = "".join(chr(ord("A") + i) for i in range(max(rank - 2, 0)))
    first = "k" if a == 1 else batch[len(batch) - (a - 2) :] + "mk"
    second = "k" if b == 1 else batch[len(batch) - (b - 2) :] + "kn"
    return [first, second], batch + ("" if a == 1 else "m") + ("" if b == 1 else "n")


def dense(
    flow: Flow, index: int, x: str, w: str, position: int, axis: int, w_in: int, side: Literal["left", "right"] = "right",
    scale: float = 1.0, floats: tuple[str, str] = ("", ""),
) -> Ints:  # fmt: skip
    """A product with constant weights (input `position`) along `axis` of the activation x. `floats`: as in convolve."""
    graph = flow.graph
    labels = flow.labels(x)
    if axis in labels:
        flow.parameter(index, position, w_in, "reads", labels[axis])
    made = flow.fresh(graph.shapes[w][1 - w_in])
    flow.parameter(index, position, 1 - w_in, "makes", made)
    rest = {a: v for a, v in labels.items() if a != axis}
    flow.give(graph.nodes[index].output[0], rest | {axis: made})
    x = floats[0] or x
    _layer(flow, index, w, op="MatMul", transposed=w_in == 0, side=side, x=x, y=floats[1], scale=scale)
    return made


@rule("Einsum", note="as MatMul; a letter twice in one operand: pinned")
def einsum(flow: Flow, index: int) -> None:
    operands, output = _letters(flow, index)
    if any(len(set(own)) < len(own) for own in operands):
        equation = flow.graph.attribute(index, "equation", "")
        flow.hold(index, f"the equation {equation!r} of {flow.graph.label(index)!r} is not followed")
        return
    contract(flow, index, operands, output)


def _letters(flow: Flow, index: int) -> tuple[list[str], str]:
    """An Einsum's equation with a letter for every axis: three dots are spelled out, an output that is left out is stated."""
    graph = flow.graph
    inputs, arrow, output = str(graph.attribute(index, "equation", "")).replace(" ", "").partition("->")
    operands = inputs.split(",")
    ranks = [len(graph.shapes[name]) for name in graph.nodes[index].input]
    free = [letter for letter in ascii_letters if letter not in inputs]
    dots = [rank - len(own) + 3 if "..." in own else 0 for own, rank in zip(operands, ranks, strict=True)]
    most = max(dots, default=0)
    if not arrow:
        output = "..." + "".join(sorted(own for own in set(inputs) if own.isalpha() and inputs.count(own) == 1))
    operands = [own.replace("...", "".join(free[most - n : most])) for own, n in zip(operands, dots, strict=True)]
    return operands, output.replace("...", "".join(free[:most]))


def contract(flow: Flow, index: int, operands: list[str], output: str) -> None:
    """A product of tensors, summed over the letters that the output lacks. Each letter is one axis of those that name it."""
    found: dict[int, Ints] = {}
    widths: list[Ints] = []
    for letter in dict.fromkeys("".join(operands)):
        labels = _letter(flow, index, operands, letter, letter in output, widths)
        if labels is not None and letter in output:
            found[output.index(letter)] = labels
    heads = any(sum(output[axis] in own for own in operands) > 1 for axis in found)
    if widths and (heads or scores.attends(flow.graph, index)):
        for labels in widths:
            flow.mark(labels, "head-width")
    flow.give(flow.graph.nodes[index].output[0], found)


def _letter(flow: Flow, index: int, operands: list[str], letter: str, stays: bool, widths: list[Ints]) -> Ints | None:
    """The labels of one axis: activations that span it are tied, constants follow, make or read it.

    widths: collects labels that are the width of heads where the product is attention.
    """
    graph = flow.graph
    node = graph.nodes[index]
    spans = [(p, node.input[p], o.index(letter)) for p, o in enumerate(operands) if letter in o]
    length = max(graph.shapes[name][axis] for _, name, axis in spans)
    spans = [s for s in spans if graph.shapes[s[1]][s[2]] == length]
    moving = [(name, flow.labels(name).get(axis)) for _, name, axis in spans if name not in graph.constants]
    stored = [(p, axis) for p, name, axis in spans if name in graph.constants]
    known = [labels for _, labels in moving if labels is not None]
    if not known:
        if moving or not stays or length == 1:
            return None
        known = [flow.fresh(length)]
    labels = known[0]
    for other in known[1:]:
        flow.tie(labels, other)
    for name, own in moving:
        if own is None:
            flow.pin(labels, name, f"{graph.label(index)!r} multiplies it with {name!r}, which carries no channels")
    if not stays and len(spans) == 1:
        flow.pin(labels, spans[0][1], f"{graph.label(index)!r} sums over these channels")
    for position, axis in stored:
        flow.parameter(index, position, axis, "reads" if not stays else "follows" if moving else "makes", labels)
    if len(moving) > 1:
        if stays:
            flow.mark(labels, "head")
        else:
            widths.append(labels)
        if not stays and not stored:
            _summed(flow, index, spans, labels)
    elif stays and moving and not stored and len(operands) > 1:
        widths.append(labels)
    return labels


def _summed(flow: Flow, index: int, spans: list[tuple[int, str, int]], labels: Ints) -> None:
    """Two activations are multiplied and summed over these labels: what is gone counts as zero in one of them.

    Integers do not take a mask; they stand for zero where the weights that make them do.
    """
    graph = flow.graph
    flow.summed.append(labels)
    position, name, axis = next(s for s in spans if s[2] in flow.labels(s[1]))
    if graph.types.get(name) in FLOATS:
        flow.sums.append(Norm(index, (position,), (axis,), "zero"))
    else:
        flow.measured.append(labels)
