"""Standard nodes with the output shape of operators that ONNX has no schema for (facts.StandIn); never their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.facts import StandIn

MICROSOFT = "com.microsoft"
Shapes = Mapping[str, Sequence[int]]
Nodes = list[onnx.NodeProto]


def like(position: int = 0) -> StandIn:
    """The output has the shape of that input."""
    return lambda node, opset, shapes: [helper.make_node("Identity", [node.input[position]], node.output[:1])]


def floats(node: onnx.NodeProto, opset: int, shapes: Shapes) -> Nodes:
    """The shape of the first input, whatever numbers that holds."""
    return [helper.make_node("Cast", node.input[:1], node.output[:1], to=onnx.TensorProto.FLOAT)]


def columns(node: onnx.NodeProto, opset: int, shapes: Shapes) -> Nodes:
    """The columns of all inputs side by side, as floats."""
    cast = [f"{node.output[0]}/{i}" for i, _ in enumerate(node.input)]
    nodes = [
        helper.make_node("Cast", [name], [made], to=onnx.TensorProto.FLOAT) for name, made in zip(node.input, cast, strict=True)
    ]
    return [*nodes, helper.make_node("Concat", cast, node.output[:1], axis=1)]


def standard(op: str, inputs: int, *attributes: str) -> StandIn:
    """A standard operator under another name; its first inputs and some of its attributes count."""

    def stand_in(node: onnx.NodeProto, opset: int, shapes: Shapes) -> Nodes:
        made = helper.make_node(op, node.input[:inputs], node.output[:1])
        made.attribute.extend(a for a in node.attribute if a.name in attributes)
        return [made]

    return stand_in


def attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def product(node: onnx.NodeProto, opset: int, shapes: Shapes) -> Nodes:
    """MatMul with transposed operands; what is known to be a matrix has no batch axes."""
    batch = ["" if len(shapes.get(name, ())) == 2 else "..." for name in node.input[:2]]
    first, second = letters(node, "A", batch[0]), letters(node, "B", batch[1])
    return [helper.make_node("Einsum", node.input[:2], node.output[:1], equation=f"{first},{second}->{max(batch)}mn")]


def letters(node: onnx.NodeProto, side: str, batch: str) -> str:
    """The axes of an operand of FusedMatMul: m and k, or k and n, the batch axes before or between them."""
    first, last = "mk" if side == "A" else "kn"
    if attribute(node, f"trans{side}"):
        first, last = last, first
    return first + batch + last if attribute(node, f"transBatch{side}") else batch + first + last


def values_of_packed(node: onnx.NodeProto, opset: int, shapes: Shapes) -> Nodes:
    """(..., inputs) x (inputs, queries + keys + values) -> (..., values)"""
    x, name = f"{node.output[0]}/x", f"{node.output[0]}/all"
    quantised = helper.make_node("Cast", node.input[:1], [x], to=onnx.TensorProto.FLOAT)
    plain = helper.make_node("Identity", node.input[:1], [x])
    nodes = [quantised if node.op_type == "QAttention" else plain, helper.make_node("MatMul", [x, node.input[1]], [name])]
    sizes = next((list(a.ints) for a in node.attribute if a.name == "qkv_hidden_sizes"), [])
    if sizes:
        return [*nodes, *_slice(name, node.output[0], -1, 0, sizes[2])]
    thirds = helper.make_node("Split", [name], [node.output[0], f"{name}/2", f"{name}/3"], axis=-1)
    if opset >= 18:
        thirds.attribute.append(helper.make_attribute("num_outputs", 3))
    return [*nodes, thirds]


def attended(node: onnx.NodeProto, opset: int, shapes: Shapes) -> Nodes:
    """(batch, sequence, width of all values), of separate or packed (batch, sequence, heads, 3, width) inputs"""
    query, key, value = (*node.input, "", "")[:3]
    if key and value and len(shapes.get(value, (1, 1, 1))) == 3:
        return [helper.make_node("Einsum", [query, value], node.output[:1], equation="bsh,btv->bsv")]
    if key:
        return [helper.make_node("Identity", [query], node.output[:1])]
    name = f"{node.output[0]}/one"
    return [*_slice(query, name, 3, 0, 1), *_reshape(name, node.output[0], 0, 0, -1)]


def attended_tokens(node: onnx.NodeProto, opset: int, shapes: Shapes) -> Nodes:
    """(tokens, width of all values), of separate or packed (tokens, heads, 3, width) inputs"""
    if len(node.input) > 1 and node.input[1]:
        return [helper.make_node("Identity", node.input[:1], node.output[:1])]
    name = f"{node.output[0]}/one"
    return [*_slice(node.input[0], name, 2, 0, 1), *_reshape(name, node.output[0], 0, -1)]


def grouped(node: onnx.NodeProto, opset: int, shapes: Shapes) -> Nodes:
    """(batch, sequence, width of all queries), which may lie in front of keys and values in one tensor"""
    if len(node.input) > 1 and node.input[1]:
        return [helper.make_node("Identity", node.input[:1], node.output[:1])]
    heads, groups, name = attribute(node, "num_heads"), attribute(node, "kv_num_heads"), f"{node.output[0]}/heads"
    return [
        *_reshape(node.input[0], name, 0, 0, heads + 2 * groups, -1),
        *_slice(name, f"{name}/queries", 2, 0, heads),
        *_reshape(f"{name}/queries", node.output[0], 0, 0, -1),
    ]


def packed_weights(node: onnx.NodeProto, opset: int, shapes: Shapes) -> Nodes:
    """(..., K) x weights of some packed form -> (..., N)"""
    size, weights = f"{node.output[0]}/size", f"{node.output[0]}/weights"
    return [
        _ints(size, (attribute(node, "K"), attribute(node, "N"))),
        helper.make_node("ConstantOfShape", [size], [weights]),
        helper.make_node("MatMul", [node.input[0], weights], node.output[:1]),
    ]


def of_integers(op: str, positions: Sequence[int], scale: int | None = None, *attributes: str) -> StandIn:
    """A standard operator on the numbers that the integers at these positions stand for.

    scale: position of the scale of its output, before its zero point; where there is none, the output is a float.
    """

    def stand_in(node: onnx.NodeProto, opset: int, shapes: Shapes) -> Nodes:
        if attribute(node, "channels_last"):
            return []
        names = [f"{node.output[0]}/{i}" for i, _ in enumerate(positions)]
        nodes = [
            helper.make_node("Cast", [node.input[at]], [name], to=onnx.TensorProto.FLOAT)
            for at, name in zip(positions, names, strict=True)
        ]
        quantised = scale is not None and len(node.input) > scale and bool(node.input[scale])
        outputs = [f"{node.output[0]}/real"] if quantised else list(node.output)
        made = helper.make_node(op, names, outputs)
        made.attribute.extend(a for a in node.attribute if a.name in attributes)
        zero = node.input[scale : scale + 2] if scale is not None else []
        return [*nodes, made, *([helper.make_node("QuantizeLinear", [*outputs, *zero], node.output[:1])] if quantised else [])]

    return stand_in


def joined_integers(node: onnx.NodeProto, opset: int, shapes: Shapes) -> Nodes:
    """Scale and zero point of the output, then three inputs for each part."""
    join = of_integers("Concat", range(2, len(node.input), 3), 0, "axis")
    return list(join(node, opset, shapes))


def channels_last(op: str, inputs: int, *attributes: str) -> StandIn:
    """A standard operator on tensors whose channels are the last axis."""

    def stand_in(node: onnx.NodeProto, opset: int, shapes: Shapes) -> Nodes:
        rank = 2 + next((len(a.ints) for a in node.attribute if a.name == "kernel_shape"), 2)
        turned, out = f"{node.output[0]}/turned", f"{node.output[0]}/out"
        made = helper.make_node(op, [turned, *node.input[1:inputs]], [out])
        made.attribute.extend(a for a in node.attribute if a.name in attributes)
        return [
            helper.make_node("Transpose", node.input[:1], [turned], perm=[0, rank - 1, *range(1, rank - 1)]),
            made,
            helper.make_node("Transpose", [out], node.output[:1], perm=[0, *range(2, rank), 1]),
        ]

    return stand_in


def real_channels(node: onnx.NodeProto, opset: int, shapes: Shapes) -> Nodes:
    """ReorderOutput drops the channels that fill the last block, and may bring them to the end."""
    name = f"{node.output[0]}/first"
    turn = helper.make_node("Transpose", [name], node.output[:1], perm=[0, 2, 3, 1])
    keep = helper.make_node("Identity", [name], node.output[:1])
    channels = _slice(node.input[0], name, 1, 0, attribute(node, "channels"))
    return [*channels, turn if attribute(node, "channels_last") else keep]


def _slice(source: str, output: str, axis: int, start: int, end: int) -> Nodes:
    bounds = {f"{output}/{part}": [number] for part, number in (("start", start), ("end", end), ("axis", axis))}
    return [*(_ints(name, numbers) for name, numbers in bounds.items()), helper.make_node("Slice", [source, *bounds], [output])]


def _reshape(source: str, output: str, *target: int) -> Nodes:
    return [_ints(f"{output}/target", target), helper.make_node("Reshape", [source, f"{output}/target"], [output])]


def _ints(name: str, numbers: Sequence[int]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(numbers, np.int64)))
