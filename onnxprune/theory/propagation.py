"""How far a pruned network can be from the original, node by node: norms and errors over a ball of inputs.

Nothing is run: layers lengthen by their operator norm, activations by their Lipschitz constant, sums add up, concatenations
add up as squares. It holds for every input and every pruning. Of what a node without a rule makes, nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import starmap
from math import hypot, inf, log, prod, sqrt

import numpy as np

from onnxprune.graph import Graph
from onnxprune.network import Layer, Network
from onnxprune.theory.operator_norm import reads_of
from onnxprune.theory.theorems import Norms, Reach, through

# Lipschitz constant, and the distance of the value at zero from zero; those with a parameter are in `function`.
FUNCTIONS = {
    "Relu": (1.0, 0.0), "Tanh": (1.0, 0.0), "Abs": (1.0, 0.0), "Neg": (1.0, 0.0), "Identity": (1.0, 0.0), "Dropout": (1.0, 0.0),
    "Sin": (1.0, 0.0), "Atan": (1.0, 0.0), "Softsign": (1.0, 0.0), "Sigmoid": (0.25, 0.5), "Softplus": (1.0, log(2)),
    "HardSwish": (1.5, 0.0), "Gelu": (1.13, 0.0), "Mish": (1.09, 0.0), "Erf": (1.1284, 0.0), "Cos": (1.0, 1.0),
}  # fmt: skip
# Every entry of the input is at one place of the output, or at none.
MOVES = frozenset({"Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "GlobalMaxPool", "ReduceMax", "ReduceMin"})
MEANS = frozenset({"GlobalAveragePool", "ReduceMean"})


class Propagation:
    """The reach of every activation, or the reason why there is none.

    norms   by layer name; a layer that is not in it is not bounded
    """

    def __init__(self, graph: Graph, network: Network, norms: Mapping[str, Norms], radius: float) -> None:
        self.graph, self.norms = graph, norms
        self.layers = {layer.node: layer for layer in network.layers}
        self.reaches: dict[str, Reach] = {}
        self.reasons: dict[str, str] = {}
        for name in graph.inputs:
            self.reaches[name] = Reach(radius, 0.0)
        for index, node in enumerate(graph.nodes):
            outputs = [o for o in node.output if o and not self._fixed(o)]
            if outputs:
                self._visit(index, outputs)

    def _fixed(self, name: str) -> bool:
        """Whether its value is known before any run: made of parameters, or shape arithmetic at the trial sizes."""
        return name in self.graph.constants or name in self.graph.values

    def _visit(self, index: int, outputs: list[str]) -> None:
        node = self.graph.nodes[index]
        read = [name for name in node.input if name and not self._fixed(name)]
        known = next((self.reasons[name] for name in read if name in self.reasons), None)
        one = len(outputs) == 1 or node.op_type == "Split"
        found = self._reach(index) if one and not known else None
        for name in outputs:
            if found is not None:
                self.reaches[name] = found
            else:
                self.reasons[name] = known or f"nothing is known of {self.graph.label(index)!r} ({node.op_type})"

    def _reach(self, index: int) -> Reach | None:
        layer = self.layers.get(index)
        if layer is not None:
            return self._layer(layer)
        node = self.graph.nodes[index]
        missing = [n for n in (*node.input, *node.output) if n and n not in self.graph.shapes]
        if node.domain not in ("", "ai.onnx") or missing:
            return None
        op = node.op_type
        if op in RULES:
            return RULES[op](self, index)
        found = self.function(index)
        return None if found is None else self._scaled(index, *found)

    def _layer(self, layer: Layer) -> Reach | None:
        """The bias of an Add behind the layer is that node's."""
        norms = self.norms.get(layer.name)
        if norms is None:
            return None
        bias = 0.0
        if layer.bias is not None and layer.bias_node is None:
            values = self.graph.array(layer.bias).astype(np.float64) * layer.bias_scale
            bias = float(np.linalg.norm(values)) * sqrt(prod(layer.output_shape) / values.size)
        return through(self.reaches[layer.input], norms, bias)

    def _scaled(self, index: int, factor: float, offset: float = 0.0) -> Reach:
        """A function of the first input that is so steep, and so far from zero, in all, where that is zero."""
        reach = self.reaches[self.graph.input(index, 0)]
        return Reach(factor * reach.size + offset, factor * reach.error)

    def function(self, index: int) -> tuple[float, float] | None:
        """Of a node with one activation: (Lipschitz constant, norm of what zeros become); None: nothing is known of it."""
        graph, op = self.graph, self.graph.nodes[index].op_type
        entries = sqrt(prod(graph.shapes[graph.nodes[index].output[0]]))
        if op in FUNCTIONS:
            return FUNCTIONS[op][0], FUNCTIONS[op][1] * entries
        if op in MOVES:
            return 1.0, 0.0
        if op in MEANS:
            return entries / sqrt(prod(graph.shapes[graph.input(index, 0)])), 0.0
        match op:
            case "ReduceSum":
                return sqrt(prod(graph.shapes[graph.input(index, 0)])) / entries, 0.0
            case "Clip":
                at_zero = self._at_zero(index)
                return None if at_zero is None else (1.0, at_zero * entries)
            case "LeakyRelu":
                return max(1.0, abs(graph.attribute(index, "alpha", 0.01))), 0.0
            case "Elu":
                return max(1.0, graph.attribute(index, "alpha", 1.0)), 0.0
            case "Selu":
                gamma = graph.attribute(index, "gamma", 1.0507009873554805)
                return gamma * max(1.0, graph.attribute(index, "alpha", 1.6732632423543772)), 0.0
            case "HardSigmoid":
                return graph.attribute(index, "alpha", 0.2), min(max(graph.attribute(index, "beta", 0.5), 0), 1) * entries
            case "Softmax":
                axis = graph.attribute(index, "axis", -1 if graph.opset >= 13 else 1)
                shape = graph.shapes[graph.nodes[index].output[0]]
                rows = prod(shape[:axis]) if graph.opset < 13 else prod(shape) / shape[axis]
                # All of a row adds up to 1, whatever is read: no longer than 1.
                return 0.5, sqrt(rows)
            case _:
                return None

    def _at_zero(self, index: int) -> float | None:
        """What a Clip makes of zero; None where its limits are not known."""
        graph, limits = self.graph, []
        for position, (name, none) in enumerate((("min", -inf), ("max", inf)), 1):
            if graph.opset < 11:
                limits.append(float(graph.attribute(index, name, none)))
                continue
            given = graph.input(index, position)
            value = self.constant(given) if given else np.array(none)
            if value is None:
                return None
            limits.append(float(value.item()))
        return abs(min(max(0.0, limits[0]), limits[1]))

    def constant(self, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None:
        if name in self.graph.parameters:
            return self.graph.array(name).astype(np.float64)
        value = self.graph.values.get(name)
        return None if value is None else np.asarray(value, np.float64)

    def sum(self, index: int) -> Reach | None:
        size = error = 0.0
        shape = self.graph.shapes[self.graph.nodes[index].output[0]]
        for name in self.graph.nodes[index].input:
            if self._fixed(name):
                value = self.constant(name)
                if value is None:
                    return None
                size += float(np.linalg.norm(np.broadcast_to(value, shape)))
                continue
            repeated = sqrt(prod(shape) / prod(self.graph.shapes[name]))
            size += repeated * self.reaches[name].size
            error += repeated * self.reaches[name].error
        return Reach(size, error)

    def product(self, index: int) -> Reach | None:
        """||u v|| <= ||u|| ||v|| entry by entry, broadcast or not; with a constant its largest entry counts."""
        graph = self.graph
        first, second = graph.nodes[index].input[:2]
        divided = graph.nodes[index].op_type == "Div"
        if self._fixed(first) or self._fixed(second):
            if divided and self._fixed(first):
                return None
            value = self.constant(first if self._fixed(first) else second)
            if value is None:
                return None
            read = second if self._fixed(first) else first
            most = float(np.abs(1 / value if divided else value).max())
            most *= sqrt(prod(graph.shapes[graph.nodes[index].output[0]]) / prod(graph.shapes[read]))
            return Reach(most * self.reaches[read].size, most * self.reaches[read].error)
        if divided:
            return None
        u, v = self.reaches[first], self.reaches[second]
        return Reach(u.size * v.size, u.size * v.error + (v.size + v.error) * u.error)

    def normalised(self, index: int) -> Reach | None:
        """Batch norm with stored statistics."""
        graph = self.graph
        values = [self.constant(name) for name in graph.nodes[index].input[1:5]]
        if any(value is None for value in values) or graph.attribute(index, "training_mode", 0):
            return None
        scale, bias, mean, variance = (value for value in values if value is not None)
        factor = scale / np.sqrt(variance + graph.attribute(index, "epsilon", 1e-5))
        positions = prod(graph.shapes[graph.input(index, 0)]) / scale.size
        return self._scaled(index, float(np.abs(factor).max()), float(np.linalg.norm(bias - mean * factor)) * sqrt(positions))

    def joined(self, index: int) -> Reach | None:
        read = [name for name in self.graph.nodes[index].input if not self._fixed(name)]
        values = [self.constant(name) for name in self.graph.nodes[index].input if self._fixed(name)]
        norms = [float(np.linalg.norm(value)) for value in values if value is not None]
        if len(norms) < len(values):
            return None
        sizes = (*(self.reaches[name].size for name in read), *norms)
        return Reach(hypot(*sizes), hypot(*(self.reaches[name].error for name in read)))

    def pooled(self, index: int) -> Reach | None:
        """Each input is in at most so many windows; a mean over k has 1 / sqrt(k) of the norm, unless padding shortens it."""
        graph = self.graph
        kernel = graph.attribute(index, "kernel_shape")
        strides = graph.attribute(index, "strides") or [1] * len(kernel)
        dilations = graph.attribute(index, "dilations") or [1] * len(kernel)
        windows = prod(starmap(reads_of, zip(kernel, strides, dilations, strict=True)))
        whole = not any(graph.attribute(index, "pads") or []) and graph.attribute(index, "auto_pad", "NOTSET") in (
            "NOTSET",
            "VALID",
        )
        whole = (whole and not graph.attribute(index, "ceil_mode", 0)) or bool(graph.attribute(index, "count_include_pad", 0))
        mean = graph.nodes[index].op_type == "AveragePool" and whole
        return self._scaled(index, sqrt(windows / prod(kernel) if mean else windows))

    def padded(self, index: int) -> Reach | None:
        graph = self.graph
        name = graph.input(index, 2)
        value = graph.attribute(index, "value", 0.0) if graph.opset < 11 else graph.values.get(name) if name else 0.0
        zero = value is not None and not np.any(value)
        return self._scaled(index, 1.0) if zero and graph.attribute(index, "mode", "constant") == "constant" else None

    def split(self, index: int) -> Reach | None:
        return self._scaled(index, 1.0)


RULES: dict[str, Callable[[Propagation, int], Reach | None]] = {
    "Add": Propagation.sum, "Sub": Propagation.sum, "Sum": Propagation.sum, "Mul": Propagation.product,
    "Div": Propagation.product, "BatchNormalization": Propagation.normalised, "Concat": Propagation.joined,
    "MaxPool": Propagation.pooled, "AveragePool": Propagation.pooled, "Pad": Propagation.padded, "Split": Propagation.split,
}  # fmt: skip
