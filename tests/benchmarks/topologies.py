"""ResNet-18, ResNet-50 and MobileNetV2 with seeded random weights, batch norm folded: for speed, not accuracy."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Grows a graph node by node; every method returns the name of its output."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def weight(self, shape: tuple[int, ...], scale: float) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array((self.rng.standard_normal(shape) * scale).astype(np.float32), name))
        return name

    def conv(self, x: str, c_in: int, c_out: int, k: int, stride: int = 1, groups: int = 1) -> str:
        fan_in = c_in // groups * k * k
        w, b = self.weight((c_out, c_in // groups, k, k), (2 / fan_in) ** 0.5), self.weight((c_out,), 0.1)
        return self.node("Conv", [x, w, b], kernel_shape=[k, k], strides=[stride] * 2, pads=[k // 2] * 4, group=groups)

    def relu(self, x: str) -> str:
        return self.node("Relu", [x])

    def head(self, x: str, channels: int) -> onnx.ModelProto:
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        self.node("Gemm", [x, self.weight((1000, channels), channels**-0.5), self.weight((1000,), 0.1)], transB=1)
        self.nodes[-1].output[0] = "logits"
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 224, 224])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])
        graph = helper.make_graph(self.nodes, "net", [image], [logits], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def resnet(depth: int) -> onnx.ModelProto:
    blocks, expansion = {18: ((2, 2, 2, 2), 1), 50: ((3, 4, 6, 3), 4)}[depth]
    b = Builder()
    x = b.relu(b.conv("image", 3, 64, 7, 2))
    x = b.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for i in range(count):
            stride, out = 2 if stage and not i else 1, width * expansion
            shortcut = b.conv(x, channels, out, 1, stride) if stride > 1 or channels != out else x
            if expansion == 1:
                y = b.conv(b.relu(b.conv(x, channels, width, 3, stride)), width, width, 3)
            else:
                y = b.relu(b.conv(b.relu(b.conv(x, channels, width, 1)), width, width, 3, stride))
                y = b.conv(y, width, out, 1)
            x, channels = b.relu(b.node("Add", [y, shortcut])), out
    return b.head(x, channels)


def mobilenet_v2() -> onnx.ModelProto:
    b = Builder()
    low, high = b.weight((), 0.0), b.weight((), 0.0)
    b.weights[1] = numpy_helper.from_array(np.float32(6), high)

    def relu6(x: str) -> str:
        return b.node("Clip", [x, low, high])

    x, channels = relu6(b.conv("image", 3, 32, 3, 2)), 32
    for t, c, n, s in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)):
        for i in range(n):
            stride, hidden = s if i == 0 else 1, channels * t
            y = relu6(b.conv(x, channels, hidden, 1)) if t > 1 else x
            y = b.conv(relu6(b.conv(y, hidden, hidden, 3, stride, hidden)), hidden, c, 1)
            x = b.node("Add", [x, y]) if stride == 1 and channels == c else y
            channels = c
    return b.head(relu6(b.conv(x, channels, 1280, 1)), 1280)


NETS = {"resnet18": lambda: resnet(18), "resnet50": lambda: resnet(50), "mobilenet_v2": mobilenet_v2}
