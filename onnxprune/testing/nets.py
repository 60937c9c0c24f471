"""A small network that every method is tried on, through the whole pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def tiny_network(seed: int = 0) -> onnx.ModelProto:
    """Two convolutions and two fully connected layers, batch norm behind all but the last: (1, 3, 8, 8) -> (1, 5)."""
    rng = np.random.default_rng(seed)
    stored: list[TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(name: str, *shape: int) -> str:
        value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        stored.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def normalise(x: str, number: int, channels: int) -> str:
        values = (rng.uniform(0.5, 1.5, channels), rng.normal(0, 0.1, channels), rng.normal(0, 0.1, channels), np.ones(channels))
        names = [f"bn{number}.{part}" for part in ("weight", "bias", "mean", "var")]
        stored.extend(numpy_helper.from_array(v.astype(np.float32), n) for v, n in zip(values, names, strict=True))
        nodes.append(helper.make_node("BatchNormalization", [x, *names], [f"{x}n"], name=f"bn{number}"))
        nodes.append(helper.make_node("Relu", [f"{x}n"], [f"{x}r"], name=f"relu{number}"))
        return f"{x}r"

    def layer(op: str, x: str, number: int, out: int, *shape: int, **attributes: Any) -> str:
        inputs = [x, weight(f"w{number}", out, *shape)]
        nodes.append(helper.make_node(op, inputs, [f"y{number}"], name=f"layer{number}", **attributes))
        return f"y{number}"

    x = normalise(layer("Conv", "x", 1, 8, 3, 3, 3, pads=[1, 1, 1, 1]), 1, 8)
    x = normalise(layer("Conv", x, 2, 12, 8, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2]), 2, 12)
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
    x = normalise(layer("Gemm", "flat", 3, 16, 12, transB=1), 3, 16)
    layer("Gemm", x, 4, 5, 16, transB=1)
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])
    scores = helper.make_tensor_value_info("y4", TensorProto.FLOAT, ["batch", 5])
    graph = helper.make_graph(nodes, "tiny", [image], [scores], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def as_bytes(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def stored(model: onnx.ModelProto) -> dict[str, bytes]:
    return {t.name: numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}


def check_finite(name: str, model: onnx.ModelProto, repair: str) -> None:
    for tensor in model.graph.initializer:
        assert np.isfinite(numpy_helper.to_array(tensor)).all(), f"{name}: {tensor.name} is not finite (repair {repair})"
