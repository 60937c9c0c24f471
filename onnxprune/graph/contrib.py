"""Operators of ONNX Runtime's own domain whose outputs have the shape that a standard operator would give them."""

from __future__ import annotations

import onnx
from onnx import defs, helper

DOMAIN = "com.microsoft"
# name -> the standard operator, which inputs are its inputs, and which input has the type of the output (left out: float).
STANDARD: dict[str, tuple[str, tuple[int, ...], int]] = {
    "DequantizeLinear": ("Identity", (0,), 1),
    "DynamicQuantizeLSTM": ("LSTM", (0, 1, 2), 0),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1), 2),
    "MatMulIntegerToFloat": ("MatMul", (0, 1), 2),
    "QGemm": ("Gemm", (0, 3), 8),
    "QLinearAdd": ("Add", (0, 3), 0),
    "QLinearAveragePool": ("AveragePool", (0,), 0),
    "QLinearConv": ("Conv", (0, 3), 0),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,), 0),
    "QLinearLeakyRelu": ("Identity", (0,), 0),
    "QLinearMul": ("Mul", (0, 3), 0),
    "QLinearSigmoid": ("Identity", (0,), 0),
    "QLinearSoftmax": ("Identity", (0,), 0),
    "QuantizeLinear": ("Identity", (0,), 2),
}


def standard(node: onnx.NodeProto) -> tuple[onnx.NodeProto, str] | None:
    """A standard node with outputs of the same shape, and the name of a tensor with the type of the first output ("": float).

    None for operators that are not known, and for images with their channels last.
    """
    attributes = {a.name: a for a in node.attribute}
    if "channels_last" in attributes and attributes["channels_last"].i:
        return None
    if node.op_type == "QLinearConcat":
        name, positions, typed = "Concat", tuple(range(2, len(node.input), 3)), 2
    elif node.op_type in STANDARD:
        name, positions, typed = STANDARD[node.op_type]
    else:
        return None
    found = helper.make_node(name, [node.input[i] for i in positions], list(node.output), name=node.name)
    known = defs.get_schema(name).attributes
    found.attribute.extend(a for a in node.attribute if a.name in known)
    return found, node.input[typed] if typed < len(node.input) else ""
