"""Labels, ties and pins: what the rules of the operators say about the channels, collected over one walk through the graph.

Every position along a channel-carrying axis has an integer label. Positions with the same label live and die together; `tie`
makes two labels one; `pin` says that a label may never go, and why. An axis without labels (batch, height, width ...) is never
cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.errors import OnnxpruneError
from onnxprune.graph.structure import Graph
from onnxprune.network import Geometry, Ints, Layer, Role


@dataclass(frozen=True)
class LabelledSlot:
    """A slot before its labels are known to be channels."""

    parameter: str
    node: int
    input: int
    axis: int
    role: Role
    labels: Ints


@dataclass(frozen=True)
class LabelledPin:
    tensor: str
    reason: str
    labels: Ints


class Flow:
    """What is known while the walk goes on. Rules call its methods; nothing else changes it.

    sizes   shape arithmetic that carries channel counts: entry i of a tensor counts the labels counted[sizes[tensor][i]];
            -1 is a plain number
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.count = 0
        self.tensors: dict[str, dict[int, Ints]] = {}
        self.slots: list[LabelledSlot] = []
        self.pins: list[LabelledPin] = []
        self.layers: list[Layer] = []
        self.ties: list[tuple[Ints, Ints]] = []
        self.counted: list[Ints] = []
        self.sizes: dict[str, Ints] = {}

    def fresh(self, count: int) -> Ints:
        """`count` new labels."""
        self.count += count
        return np.arange(self.count - count, self.count, dtype=np.int64)

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        return self.graph.shapes.get(tensor)

    def labels(self, tensor: str) -> dict[int, Ints]:
        """axis -> labels of an activation, empty where it carries none."""
        return self.tensors.get(tensor, {})

    def give(self, tensor: str, labels: dict[int, Ints]) -> None:
        """State the labels of an output. Their number must be the axis length: a rule that gets this wrong is a bug."""
        shape = self.shape(tensor)
        for axis, found in labels.items():
            if shape is not None and shape[axis] != len(found):
                raise OnnxpruneError(f"{len(found)} labels for axis {axis} of {tensor!r} with shape {shape}")
        if tensor:
            self.tensors[tensor] = dict(labels)

    def tie(self, a: Ints, b: Ints) -> None:
        """a[i] and b[i] live and die together."""
        if a is not b:
            self.ties.append(tuple(np.broadcast_arrays(a, b)))  # type: ignore[arg-type]

    def pin(self, labels: Ints, tensor: str, reason: str) -> None:
        """These labels may never go. `tensor` is where that was found out."""
        self.pins.append(LabelledPin(tensor, reason, np.asarray(labels).reshape(-1)))

    def pin_all(self, tensor: str, reason: str) -> None:
        for labels in self.labels(tensor).values():
            self.pin(labels, tensor, reason)

    def need(self, tensor: str, axis: int, length: int, reason: str) -> Ints:
        """The labels along an axis; where there are none, new ones that are pinned for `reason`."""
        found = self.labels(tensor).get(axis)
        if found is None:
            found = self.fresh(length)
            self.pin(found, tensor, reason)
        return found

    def parameter(self, node: int, position: int, axis: int, role: Role, labels: Ints) -> None:
        """Axis `axis` of a constant input carries `labels`. A computed constant cannot be cut: its labels are pinned."""
        name = self.graph.input(node, position)
        stored = self.graph.stored(name)
        if stored is None or stored.axes[axis] is None:
            self.pin(labels, name, f"constant {name!r} is computed in the graph")
            return
        self.slots.append(LabelledSlot(stored.parameter, node, position, int(stored.axes[axis] or 0), role, labels))

    def components(self) -> tuple[int, Ints]:
        """Number of channels, and the channel of every label."""
        if not self.ties:
            return self.count, np.arange(self.count, dtype=np.int64)
        a = np.concatenate([t[0].reshape(-1) for t in self.ties])
        b = np.concatenate([t[1].reshape(-1) for t in self.ties])
        joined = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(self.count, self.count))
        count, found = connected_components(joined, directed=False)
        return int(count), found.astype(np.int64)


class Resizer(Protocol):
    """What a resize hook sees of the rewrite: which positions stay, and the means to change what a node stores."""

    graph: Graph

    def kept(self, tensor: str, axis: int) -> Ints | None:
        """Positions that stay along an axis of an activation of the original, None where all do."""

    def set_input(self, node: int, position: int, value: NDArray[Any]) -> None: ...

    def set_attribute(self, node: int, name: str, value: Any) -> None: ...


Rule = Callable[[Flow, int], None]
Resize = Callable[[Resizer, int], None]


@dataclass(frozen=True)
class Operator:
    """How channels flow through an operator, what it stores of their number, and what the support table says of it."""

    name: str
    domain: str
    flow: Rule
    resize: Resize | None
    note: str


OPERATORS: dict[tuple[str, str], Operator] = {}


def rule(*names: str, domain: str = "", resize: Resize | None = None, note: str = "") -> Callable[[Rule], Rule]:
    """Register a function as the rule of operators: `@rule("Relu", "Tanh")`. An operator may have one rule only.

    resize   called on rewriting, after the weights were cut, to mend sizes that the node stores (Conv group, Pad amounts ...)
    note     restrictions, for the support table
    """

    def register(function: Rule) -> Rule:
        for name in names:
            if (domain, name) in OPERATORS:
                raise OnnxpruneError(f"operator {name!r} has a rule already")
            OPERATORS[domain, name] = Operator(name, domain, function, resize, note)
        return function

    return register


def operator(domain: str, name: str) -> Operator | None:
    return OPERATORS.get(("" if domain == "ai.onnx" else domain, name))


def layer_geometry(graph: Graph, index: int, spatial_in: Sequence[int], kernel: Sequence[int]) -> Geometry:
    """strides, dilations and pads of a convolution, auto_pad resolved for the trial size."""
    rank = len(kernel)
    strides = tuple(graph.attribute(index, "strides") or [1] * rank)
    dilations = tuple(graph.attribute(index, "dilations") or [1] * rank)
    pads = tuple(graph.attribute(index, "pads") or [0] * (2 * rank))
    mode = graph.attribute(index, "auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        begins, ends = [], []
        for n, k, s, d in zip(spatial_in, kernel, strides, dilations, strict=True):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            small, large = total // 2, total - total // 2
            begins.append(small if mode == "SAME_UPPER" else large)
            ends.append(large if mode == "SAME_UPPER" else small)
        pads = (*begins, *ends)
    elif mode == "VALID":
        pads = (0,) * (2 * rank)
    return Geometry(tuple(kernel), strides, dilations, pads, tuple(graph.attribute(index, "output_padding") or [0] * rank))
