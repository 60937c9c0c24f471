"""Random small nets for hypothesis: layers of every kind, sums, gates, concatenations, splits, shuffles.

`random_nets()` draws a net step by step; a step takes one or two tensors of those that are there and adds its output to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from tests.graph.nets import net, node, values

Draw = Callable[[st.SearchStrategy[Any]], Any]
Shape = tuple[int, ...]  # without the batch: (channels, side, side) or (features,)
ACTIVATIONS = ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Softplus", "Clip", "PRelu", "Identity"]


class Growing:
    """The net so far: nodes, weights, and the shapes of all tensors that a step may take up."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.shapes: dict[str, Shape] = {}

    def __repr__(self) -> str:
        """The net line by line, for hypothesis to show where a property fails."""
        lines = []
        for n in self.nodes:
            attributes = {a.name: helper.get_attribute_value(a) for a in n.attribute}
            known = [f"{i}{list(self.weights[i].shape)}" if i in self.weights else i for i in n.input]
            lines.append(f"{', '.join(n.output)} = {n.op_type}({', '.join(known)}) {attributes or ''}")
        return "\n".join(lines)

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def one_of(self, things: list[Any]) -> Any:
        return self.draw(st.sampled_from(things))

    def weight(self, *shape: int, scale: float = 1.0, low: float = -1.0) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = (values(*shape, seed=len(self.weights), low=low) * scale).astype(np.float32)
        return name

    def fixed(self, content: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(content)
        return name

    def add(self, op: str, inputs: list[str], *shapes: Shape, **attributes: Any) -> list[str]:
        outputs = [f"t{len(self.nodes)}{'abc'[i]}" for i in range(len(shapes))]
        self.nodes.append(node(op, " ".join(inputs), " ".join(outputs), name=f"n{len(self.nodes)}", **attributes))
        self.shapes.update(zip(outputs, shapes, strict=True))
        return outputs

    def shared(self, out: int, *rest: int) -> str:
        """Weights for `out` outputs: new ones, or some that another layer reads already, maybe for more or fewer outputs."""
        there = [name for name, value in self.weights.items() if value.shape[1:] == rest and value.shape[0] > 1]
        if there and self.draw(st.booleans()):
            return self.one_of(there)
        return self.weight(out, *rest, scale=1.7 / np.prod(rest) ** 0.5)

    def conv(self, x: str) -> str:
        c, side, _ = self.shapes[x]
        groups = self.one_of([1, 1, 1, *{g for g in (2, c) if c % g == 0}])
        k, stride = self.one_of([1, 3, 3]), self.one_of([1, 1, 2])
        new = self.weight if groups > 1 else self.shared
        weight = new(groups * self.number(1 if groups > 1 else 2, max(8 // groups, 2)), c // groups, k, k)
        out, size = len(self.weights[weight]), (side - 1) // stride + 1
        inputs = [x, weight] + ([self.weight(out)] if self.draw(st.booleans()) else [])
        return self.add("Conv", inputs, (out, size, size), group=groups, strides=[stride] * 2, pads=[k // 2] * 4)[0]

    def deconv(self, x: str) -> str:
        c, side, _ = self.shapes[x]
        out, size = self.number(2, 6), 2 * side
        return self.add("ConvTranspose", [x, self.weight(c, out, 2, 2)], (out, size, size), strides=[2, 2])[0]

    def dense(self, x: str) -> str:
        (c,) = self.shapes[x]
        if self.draw(st.booleans()):
            weight = self.shared(self.number(2, 8), c)
            out = len(self.weights[weight])
            return self.add("Gemm", [x, weight, self.weight(out)], (out,), transB=1)[0]
        weight = self.weight(c, self.number(2, 8), scale=1.7 / c**0.5)
        out = self.weights[weight].shape[1]
        product = self.add("MatMul", [x, weight], (out,))[0]
        return self.add("Add", [product, self.weight(out)], (out,))[0]

    def activation(self, x: str) -> str:
        op, shape = self.one_of(ACTIVATIONS), self.shapes[x]
        more = {"Clip": ["-", self.fixed(np.float32(0.6))], "PRelu": [self.weight(shape[0], *(1,) * (len(shape) - 1))]}
        return self.add(op, [x, *more.get(op, [])], shape)[0]

    def norm(self, x: str) -> str:
        c = self.shapes[x][0]
        inputs = [x, self.weight(c, low=0.5), self.weight(c), self.weight(c), self.weight(c, low=0.5)]
        return self.add("BatchNormalization", inputs, self.shapes[x])[0]

    def affine(self, x: str) -> str:
        shape = self.shapes[x]
        return self.add(self.one_of(["Mul", "Add"]), [x, self.weight(shape[0], *(1,) * (len(shape) - 1))], shape)[0]

    def pool(self, x: str) -> str:
        c, side, _ = self.shapes[x]
        window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
        size = (side - 1) // 2 + 1
        return self.add(self.one_of(["MaxPool", "AveragePool"]), [x], (c, size, size), **window)[0]

    def gate(self, x: str) -> str:
        """Squeeze and excite."""
        c = self.shapes[x][0]
        y = self.add("GlobalAveragePool", [x], (c, 1, 1))[0]
        for op, width in (("Relu", self.number(2, 4)), ("Sigmoid", c)):
            y = self.add("Conv", [y, self.weight(width, self.shapes[y][0], 1, 1)], (width, 1, 1))[0]
            y = self.add(op, [y], (width, 1, 1))[0]
        return self.add("Mul", [x, y], self.shapes[x])[0]

    def sum(self, x: str) -> str:
        """With another tensor of this shape; where there is none, with a projection of its own."""
        shape = self.shapes[x]
        others = [t for t, s in self.shapes.items() if s == shape and t != x]
        if not others:
            weight = self.weight(shape[0], shape[0], *(1,) * (len(shape) - 1))
            op, more = ("Gemm", {"transB": 1}) if len(shape) == 1 else ("Conv", {})
            others = self.add(op, [x, weight], shape, **more)
        return self.add(self.one_of(["Add", "Add", "Sub", "Mul"]), [x, self.one_of(others)], shape)[0]

    def concat(self, x: str) -> str:
        shape = self.shapes[x]
        other = self.one_of([t for t, s in self.shapes.items() if s[1:] == shape[1:]])
        return self.add("Concat", [x, other], (shape[0] + self.shapes[other][0], *shape[1:]), axis=1)[0]

    def split(self, x: str) -> str:
        c, *rest = self.shapes[x]
        first = self.number(1, c - 1)
        sizes = self.fixed(np.array([first, c - first], np.int64))
        return self.one_of(self.add("Split", [x, sizes], (first, *rest), (c - first, *rest), axis=1))

    def mixed(self, x: str) -> str:
        """Operators that no channel of theirs survives: they look at all of them together."""
        shape = self.shapes[x]
        if len(shape) == 3 or self.draw(st.booleans()):
            return self.add("Softmax", [x], shape, axis=1)[0]
        return self.add("LayerNormalization", [x, self.weight(shape[0]), self.weight(shape[0])], shape)[0]

    def widen(self, x: str) -> str:
        """Channels of zeros around those that are there, as in shortcuts without weights."""
        c, *rest = self.shapes[x]
        before, after, still = self.number(0, 2), self.number(0, 2), [0] * len(rest)
        pads = self.fixed(np.array([0, before, *still, 0, after, *still], np.int64))
        return self.add("Pad", [x, pads], (before + c + after, *rest))[0]

    def enlarge(self, x: str) -> str:
        c, side, _ = self.shapes[x]
        scales = self.fixed(np.array([1, 1, 2, 2], np.float32))
        return self.add("Resize", [x, "-", scales], (c, 2 * side, 2 * side), mode="nearest")[0]

    def channels_last(self, x: str) -> str:
        """A MatMul between two Transposes."""
        c, side, _ = self.shapes[x]
        weight = self.weight(c, self.number(2, 8), scale=1.7 / c**0.5)
        out = self.weights[weight].shape[1]
        y = self.add("Transpose", [x], (), perm=[0, 2, 3, 1])[0]
        z = self.add("MatMul", [y, weight], ())[0]
        del self.shapes[y], self.shapes[z]
        return self.add("Transpose", [z], (out, side, side), perm=[0, 3, 1, 2])[0]

    def shuffle(self, x: str) -> str:
        c, side, _ = self.shapes[x]
        groups = self.one_of([g for g in range(2, c + 1) if c % g == 0])
        y = self.add("Reshape", [x, self.fixed(np.array([0, groups, c // groups, side, side]))], ())[0]
        z = self.add("Transpose", [y], (), perm=[0, 2, 1, 3, 4])[0]
        del self.shapes[y], self.shapes[z]
        return self.add("Reshape", [z, self.fixed(np.array([0, c, side, side]))], (c, side, side))[0]

    def flatten(self, x: str) -> str:
        c, side, _ = self.shapes[x]
        way = self.number(0, 2)
        if way == 0:
            return self.add("ReduceMean", [x], (c,), axes=[2, 3], keepdims=0)[0]
        if way == 1:
            x, side = self.add("GlobalAveragePool", [x], (c, 1, 1))[0], 1
        return self.add("Flatten", [x], (c * side * side,))[0]

    def layer(self, x: str) -> str:
        return self.conv(x) if len(self.shapes[x]) == 3 else self.dense(x)

    def step(self, x: str) -> str:
        """Layers are the commonest; what does not fit the shape is left out."""
        steps = [self.layer, self.layer, self.layer, self.activation, self.norm, self.affine, self.sum, self.sum, self.concat]
        steps += [self.mixed, self.widen]
        c, side = self.shapes[x][0], self.shapes[x][-1]
        if len(self.shapes[x]) == 3:
            steps += [self.conv, self.pool, self.gate, self.flatten, self.channels_last]
            steps += [self.deconv, self.enlarge] if side <= 4 else []
            steps += [self.shuffle] if c > 1 else []
        steps += [self.split] if c > 1 else []
        return self.one_of(steps)(x)


@st.composite
def random_nets(draw: Draw) -> tuple[onnx.ModelProto, Growing]:
    """One or two inputs, a layer on each, three to twelve steps, and one or two outputs behind layers (or, rarely, without)."""
    grown = Growing(draw)
    inputs: dict[str, Shape] = {f"x{i}": (3, 6, 6) for i in range(draw(st.integers(1, 2)))}
    grown.shapes |= inputs
    for x in inputs:
        newest = grown.conv(x)
    for _ in range(draw(st.integers(3, 12))):
        # Mostly onwards, sometimes from somewhere back.
        start = newest if draw(st.integers(0, 3)) else grown.one_of(list(grown.shapes))
        newest = grown.step(start)
    outputs = [grown.layer(newest)]
    if draw(st.booleans()):
        other = grown.one_of([t for t in grown.shapes if t not in inputs])
        outputs.append(other if not draw(st.integers(0, 3)) else grown.layer(other))
    outputs = list(dict.fromkeys(outputs))
    return net(grown.nodes, grown.weights, {x: ["N", *shape] for x, shape in inputs.items()}, outputs), grown
