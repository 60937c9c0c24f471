"""In the masked twin, what norms and sums look at: removed channels are zero there, or the mean of those that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.graph import surgeon
from onnxprune.graph.structure import Graph
from onnxprune.network import Bools, Network, Norm
from onnxprune.rewrite.rescale import kept_along, share


def fill(graph: Graph, network: Network, alive: Bools, model: onnx.ModelProto) -> None:
    """Put nodes in front of norms that lose channels of their statistics, and of products summed over channels that go, in place.

    `model` has the nodes of the original. What norms count instead is told in graph.norms.
    """
    before: dict[int, list[onnx.NodeProto]] = {}
    for norm in (*network.norms, *network.sums):
        kept = {axis: stay for axis, stay in kept_along(graph, network, alive, norm).items() if axis in norm.axes}
        left = share(kept, norm)
        if 0 < left < 1:
            for position in norm.inputs:
                writer = _Writer(graph, model, norm, position)
                before.setdefault(norm.node, []).extend(writer.nodes(kept, left))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for index, node in enumerate(nodes):
        model.graph.node.extend([*before.get(index, ()), node])


class _Writer:
    """The nodes in front of one input of one norm: x * mask, and where that is asked for + (1 - mask) * mean of the kept."""

    def __init__(self, graph: Graph, model: onnx.ModelProto, norm: Norm, position: int) -> None:
        self.model, self.norm, self.opset = model, norm, graph.opset
        names = graph.nodes[norm.node].input
        self.shape = graph.shapes[names[position]]
        self.missing = max(len(graph.shapes[names[p]]) for p in norm.inputs) - len(self.shape)
        self.kind = helper.tensor_dtype_to_np_dtype(graph.types[names[position]])
        self.read, self.stem = model.graph.node[norm.node].input[position], f"{graph.label(norm.node)}@{position}"
        model.graph.node[norm.node].input[position] = f"{self.stem}@filled"
        self.made: list[onnx.NodeProto] = []

    def nodes(self, kept: Mapping[int, Bools], left: float) -> list[onnx.NodeProto]:
        own = {axis - self.missing: stay for axis, stay in kept.items() if axis >= self.missing}
        mask = np.ones([len(own[a]) if a in own else 1 for a in range(len(self.shape))], bool)
        for axis, stay in own.items():
            if self.shape[axis] == len(stay):
                mask &= stay.reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
        if self.norm.groups:
            self._grouped(mask, left)
        else:
            self._filled(self.read, mask, [a - self.missing for a in self.norm.axes if a >= self.missing], left, "filled")
        return self.made

    def _grouped(self, mask: Bools, left: float) -> None:
        """Channels are laid out as groups x channels, so that each group has a mean of its own."""
        groups, channels = self.norm.groups, self.shape[1]
        mask = np.broadcast_to(mask, (1, channels, *mask.shape[2:])).reshape(1, groups, channels // groups, -1)
        apart = self._constant("apart", np.array([0, groups, channels // groups, -1], np.int64))
        flat = self._node("Reshape", [self.read, apart], "flat")
        filled = self._filled(flat, mask, [2, 3], left, "together")
        self._node("Reshape", [filled, self._node("Shape", [self.read], "shape")], "filled")

    def _filled(self, x: str, mask: Bools, axes: Sequence[int], left: float, name: str) -> str:
        stay = self._constant("stay", mask.astype(self.kind))
        if self.norm.fill == "zero":
            return self._node("Mul", [x, stay], name)
        kept = self._node("Mul", [x, stay], "kept")
        if self.opset < 18:
            mean = self._node("ReduceMean", [kept], "mean", axes=list(axes))
        else:
            mean = self._node("ReduceMean", [kept, self._constant("axes", np.array(axes, np.int64))], "mean")
        gone = self._constant("gone", (~mask / left).astype(self.kind))
        return self._node("Add", [kept, self._node("Mul", [mean, gone], "in_their_place")], name)

    def _node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.made.append(helper.make_node(op, inputs, [f"{self.stem}@{name}"], **attributes))
        return f"{self.stem}@{name}"

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        surgeon.add_initializer(self.model, numpy_helper.from_array(np.ascontiguousarray(value), f"{self.stem}@{name}"))
        return f"{self.stem}@{name}"
