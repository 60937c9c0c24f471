"""Small nets with weights of a sensible scale, and inputs whose channels hang together, so that there is something to repair."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Net:
    """Adds nodes one by one; every method returns the name of its output."""

    def __init__(self, seed=0, ir=8, kind=np.float32):
        self.rng, self.ir, self.kind = np.random.default_rng(seed), ir, kind
        self.nodes, self.stored = [], []

    def node(self, op, *inputs, **attributes):
        number = len(self.nodes)
        self.nodes.append(helper.make_node(op, list(inputs), [f"t{number}"], name=f"{op.lower()}{number}", **attributes))
        return f"t{number}"

    def constant(self, value, name):
        self.stored.append(numpy_helper.from_array(np.asarray(value, self.kind), name))
        return name

    def weight(self, *shape, name=None, fan_in=None):
        scale = np.sqrt(2 / (fan_in or np.prod(shape[1:])))
        return self.constant(self.rng.standard_normal(shape) * scale, name or f"w{len(self.stored)}")

    def bias(self, size, name=None):
        return self.constant(self.rng.standard_normal(size) * 0.3, name or f"b{len(self.stored)}")

    def conv(self, x, inputs, out, kernel=3, groups=1, bias=True, weight=None, **attributes):
        w = weight or self.weight(out, inputs // groups, kernel, kernel)
        names = [x, w, *([self.bias(out)] if bias is True else [bias] if bias else [])]
        return self.node("Conv", *names, group=groups, pads=[kernel // 2] * 4, **attributes)

    def batch_norm(self, x, channels):
        parts = (self.rng.uniform(0.5, 1.5, channels), self.rng.normal(0, 0.3, channels), self.rng.normal(0, 0.3, channels))
        names = [self.constant(v, f"n{len(self.stored)}") for v in (*parts, self.rng.uniform(0.5, 2, channels))]
        return self.node("BatchNormalization", x, *names)

    def relu(self, x):
        return self.node("Relu", x)

    def gemm(self, x, inputs, out, bias=True):
        names = [x, self.weight(out, inputs), *([self.bias(out)] if bias else [])]
        return self.node("Gemm", *names, transB=1)

    def model(self, shape, *outputs):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.kind))
        inputs = [helper.make_tensor_value_info("x", kind, ["batch", *shape])]
        if self.ir < 4:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in self.stored]
        found = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", inputs, found, self.stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=self.ir)
        return onnx.shape_inference.infer_shapes(model)


def chain(**more):
    net = Net(**more)
    x = net.relu(net.conv("x", 3, 16))
    x = net.relu(net.conv(x, 16, 16, strides=[2, 2]))
    return net.model((3, 8, 8), net.conv(x, 16, 6))


def residual(normalised=True):
    net = Net(1)

    def block(x, inputs, out):
        y = net.conv(x, inputs, out, bias=not normalised)
        return net.batch_norm(y, out) if normalised else y

    x = net.relu(block("x", 3, 12))
    for _ in range(2):
        y = net.relu(block(x, 12, 12))
        x = net.relu(net.node("Add", block(y, 12, 12), x))
    return net.model((3, 8, 8), net.conv(x, 12, 5, kernel=1))


def depthwise():
    """The inverted residual of MobileNetV2."""
    net = Net(2)
    x = net.relu(net.conv("x", 3, 8))
    y = net.relu(net.batch_norm(net.conv(x, 8, 24, kernel=1, bias=False), 24))
    y = net.relu(net.batch_norm(net.conv(y, 24, 24, groups=24, bias=False), 24))
    y = net.batch_norm(net.conv(y, 24, 8, kernel=1, bias=False), 8)
    return net.model((3, 8, 8), net.conv(net.node("Add", x, y), 8, 5))


def matmuls():
    """Fully connected layers as MatMul and Add, on a sequence."""
    net = Net(3)

    def dense(x, inputs, out):
        w = net.weight(inputs, out, fan_in=inputs)
        return net.node("Add", net.node("MatMul", x, w), net.bias(out))

    x = net.relu(dense("x", 6, 20))
    x = net.relu(dense(x, 20, 20))
    return net.model((5, 6), dense(x, 20, 4))


def shared_bias():
    """Two layers add one and the same stored vector (exporters merge equal tensors)."""
    net = Net(4)
    x = net.relu(net.conv("x", 3, 12))
    both = net.bias(12, "both")
    x = net.relu(net.conv(x, 12, 12, bias=both))
    x = net.relu(net.conv(x, 12, 12, bias=both))
    return net.model((3, 8, 8), net.conv(x, 12, 4))


def no_bias(**more):
    net = Net(5, **more)
    x = net.relu(net.conv("x", 3, 12, bias=False))
    x = net.relu(net.conv(x, 12, 12, bias=False))
    x = net.node("Flatten", net.node("GlobalAveragePool", x))
    return net.model((3, 8, 8), net.gemm(x, 12, 4, bias=False))


def shared_weight():
    """The second and third layer are one layer applied twice."""
    net = Net(6)
    x = net.relu(net.conv("x", 3, 12))
    w = net.weight(12, 12, 3, 3, name="twice")
    x = net.relu(net.conv(x, 12, 12, weight=w))
    x = net.relu(net.conv(x, 12, 12, weight=w))
    return net.model((3, 8, 8), net.conv(x, 12, 4))


def transposed():
    net = Net(7)
    x = net.relu(net.conv("x", 3, 12))
    w = net.weight(12, 10, 2, 2, fan_in=12)
    x = net.relu(net.node("ConvTranspose", x, w, net.bias(10), strides=[2, 2]))
    return net.model((3, 6, 6), net.conv(x, 10, 3))


def branches():
    """Two branches that are joined by Concat, and two outputs."""
    net = Net(8)
    x = net.relu(net.conv("x", 3, 12))
    a, b = net.relu(net.conv(x, 12, 8)), net.relu(net.conv(x, 12, 8, kernel=1))
    joined = net.node("Concat", a, b, axis=1)
    y = net.relu(net.conv(joined, 16, 10))
    return net.model((3, 8, 8), net.conv(y, 10, 4), net.conv(joined, 16, 3, kernel=1))


def grouped():
    net = Net(9)
    x = net.relu(net.conv("x", 4, 16))
    x = net.relu(net.conv(x, 16, 16, groups=4))
    return net.model((4, 8, 8), net.conv(x, 16, 5, groups=1))


def old():
    return no_bias(ir=3)


NETS = {
    f.__name__: f
    for f in (chain, residual, depthwise, matmuls, shared_bias, no_bias, shared_weight, transposed, branches, grouped, old)
} | {"residual_without_norm": lambda: residual(False)}  # fmt: skip


def inputs_for(model, count=160, seed=0):
    """Smooth inputs of a few degrees of freedom, as images are: what one channel shows, others show in part."""
    dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(99).standard_normal((6, *dims))
    for axis in range(2, basis.ndim):
        basis = basis + np.roll(basis, 1, axis) + np.roll(basis, -1, axis)
    codes = rng.standard_normal((count, 6))
    found = np.tensordot(codes, basis, 1) / np.abs(basis).std() / 2.5 + 0.05 * rng.standard_normal((count, *dims))
    kind = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    return found.astype(kind)


def float_tensor(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
