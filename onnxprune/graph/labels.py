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
from onnxprune.graph.facts import STAND_INS, WEIGHTS, StandIn
from onnxprune.graph.structure import Graph
from onnxprune.network import Geometry, Ints, Kind, Layer, Norm, Quantised, Role


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


@dataclass(frozen=True)
class Joint:
    """Positions laid out along several axes (a splitting Reshape: heads x width, groups x channels).

    What goes has to be a product: whole slices along one of the axes. Which axis that is, is chosen when all pins are known.

    labels      one label per position, n-dimensional
    marginals   one label array per axis: the label of slice i lives as long as one of its positions does
    """

    labels: Ints
    marginals: tuple[Ints, ...]


class Flow:
    """What is known while the walk goes on. Rules call its methods; nothing else changes it.

    sizes   shape arithmetic that carries channel counts: entry i of a tensor counts the labels counted[sizes[tensor][i]];
            -1 is a plain number
    kinds   labels that are more than a plain channel (heads, recurrent units ...)
    summed  labels over which two activations are multiplied and summed
    sums    where: like norms that count what is gone as zero
    blocks  grouped convolution -> the labels of its groups
    norms   normalisations whose channels may go (only if through_norms), and the labels that they look at
    work    (node, input, multiplications) of weights that are no layer's
    quantised  parameter -> what its integers stand for
    measured   labels whose values set a scale at run time
    """

    def __init__(self, graph: Graph, *, through_norms: bool = False) -> None:
        self.graph = graph
        self.through_norms = through_norms
        self.norms: list[Norm] = []
        self.normalised: list[Ints] = []
        self.count = 0
        self.tensors: dict[str, dict[int, Ints]] = {}
        self.slots: list[LabelledSlot] = []
        self.pins: list[LabelledPin] = []
        self.layers: list[Layer] = []
        self.ties: list[tuple[Ints, Ints]] = []
        self.counted: list[Ints] = []
        self.sizes: dict[str, Ints] = {}
        self.joints: list[Joint] = []
        self.kinds: list[tuple[Ints, Kind]] = []
        self.summed: list[Ints] = []
        self.sums: list[Norm] = []
        self.blocks: dict[int, Ints] = {}
        self.work: list[tuple[int, int, int]] = []
        self.quantised: dict[str, Quantised] = {}
        self.measured: list[Ints] = []
        self._joint_of: dict[object, Joint] = {}

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

    def hold(self, node: int, reason: str) -> None:
        """Nothing of a node can be followed: its channels stay, and so does what its weights make, each with the reason."""
        for position, name in enumerate(self.graph.nodes[node].input):
            self.pin_all(name, reason)
            shape = self.graph.shapes.get(name, ())
            if name in self.graph.constants and self.graph.types.get(name) in WEIGHTS and len(shape) > 1:
                held = self.fresh(shape[0])
                self.parameter(node, position, 0, "makes", held)
                self.pin(held, name, reason)

    def split(self, labels: Ints) -> list[Ints | None]:
        """Labels of positions laid out along several axes -> labels for each axis, None for an axis that carries nothing."""
        found: list[Ints | None] = [None] * labels.ndim
        varying = [a for a in range(labels.ndim) if bool((labels != labels.take([0], axis=a)).any())]
        flat = labels[tuple(slice(None) if a in varying else 0 for a in range(labels.ndim))]
        if len(varying) == 1:
            found[varying[0]] = flat
        elif varying:
            for axis, marginal in zip(varying, self.joint(flat).marginals, strict=True):
                found[axis] = marginal
        return found

    def joint(self, labels: Ints, marginals: Sequence[Ints] | None = None) -> Joint:
        """The joint of these labels; the same one for the same labels."""
        key = labels.shape, labels.tobytes()
        if key not in self._joint_of:
            given = tuple(marginals or [self._slices(labels, axis) for axis in range(labels.ndim)])
            made = Joint(labels, given)
            self.joints.append(made)
            self._joint_of[key] = self._joint_of[_key(given)] = made
        return self._joint_of[key]

    def _slices(self, labels: Ints, axis: int) -> Ints:
        """New labels for slices along an axis, the same one for slices of the same labels: heads, repeated for every sample."""
        rows = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
        # A sum of products with random numbers, which wraps around, is equal for two rows exactly when they are.
        marks = rows @ np.random.default_rng(0).integers(1, 2**62, rows.shape[1], dtype=np.int64)
        alike = np.unique(marks, return_inverse=True)[1]
        return self.fresh(int(alike.max()) + 1)[alike]

    def _crossed(self, parts: Sequence[Ints]) -> Ints:
        """One new label for every position of several axes, the same one where the labels of the axes are."""
        distinct, places = zip(*(np.unique(part, return_inverse=True) for part in parts), strict=True)
        lengths = [len(found) for found in distinct]
        return self.fresh(int(np.prod(lengths))).reshape(lengths)[np.ix_(*places)]

    def merge(self, labels: Sequence[Ints | None], sizes: Sequence[int]) -> Ints:
        """The inverse of split: one label per position of several axes, of which at least one carries labels."""
        carrying = [a for a, found in enumerate(labels) if found is not None]
        parts = [np.asarray(labels[a]) for a in carrying]
        whole = parts[0]
        if len(parts) > 1:
            known = self._joint_of.get(_key(parts))
            if known is None:
                known = self.joint(self._crossed(parts), parts)
            order: list[int] = []
            for part in parts:
                order.append(next(i for i, m in enumerate(known.marginals) if i not in order and np.array_equal(m, part)))
            whole = known.labels.transpose(order)
        spread = [sizes[a] if a in carrying else 1 for a in range(len(sizes))]
        return np.broadcast_to(whole.reshape(spread), sizes)

    def mark(self, labels: Ints, kind: Kind) -> None:
        """These labels are channels of a special kind."""
        self.kinds.append((labels, kind))

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
            what = f"constant {name!r} is computed in the graph" if name in self.graph.constants else f"{name!r} is no constant"
            self.pin(labels, name, what)
            return
        own = int(stored.axes[axis] or 0)
        self.slots.append(LabelledSlot(stored.parameter, node, position, own, role, labels))
        if stored.quantised is not None:
            self.dequantised(node, position, stored.parameter, stored.quantised, own, labels)

    def dequantised(self, node: int, position: int, parameter: str, found: Quantised, axis: int, labels: Ints) -> None:
        """Axis `axis` of a parameter of integers carries `labels`: scales and zero points follow where they differ along it."""
        behind = self.graph.nodes[self.graph.place(node, position, parameter)[0]].output[0]
        if self.quantised.setdefault(parameter, found) != found:
            self.pin(labels, parameter, f"the integers of {parameter!r} stand for other numbers elsewhere")
        if behind in self.graph.constants and self.graph.exposed(behind):
            self.pin(labels, behind, f"{behind!r} is read outside the graph, or inside a subgraph")
        if found.blocked == axis:
            self.pin(labels, parameter, f"{parameter!r} is quantised in blocks of these channels")
        elif axis in found.axes:
            for tensor in filter(None, (*found.scales, found.zero_point)):
                self.scale(node, position, tensor, found.axes.index(axis), labels)

    def scale(self, node: int, position: int, tensor: str, axis: int, labels: Ints) -> None:
        """A scale or zero point whose axis `axis` goes with the labels, read by input `position` of a node. One for all stays."""
        shape, stored = self.graph.shapes[tensor], self.graph.stored(tensor)
        if len(shape) <= axis or shape[axis] != len(labels) or len(labels) == 1:
            return
        if stored is None:
            self.pin(labels, tensor, f"{tensor!r} is computed in the graph")
        else:
            self.slots.append(LabelledSlot(stored.parameter, node, position, int(stored.axes[axis] or 0), "scales", labels))

    def components(self) -> tuple[int, Ints]:
        """Number of channels, and the channel of every label."""
        return components(self.count, self.ties)


def components(count: int, ties: Sequence[tuple[Ints, Ints]]) -> tuple[int, Ints]:
    """Number of connected components of `count` points, and the component of each."""
    if not ties:
        return count, np.arange(count, dtype=np.int64)
    a, b = (np.concatenate([t[side].reshape(-1) for t in ties]) for side in (0, 1))
    joined = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    found, part = connected_components(joined, directed=False)
    return int(found), part.astype(np.int64)


class Resizer(Protocol):
    """What a resize hook sees of the rewrite: which positions stay, and the means to change what a node stores."""

    graph: Graph

    def kept(self, tensor: str, axis: int) -> Ints | None:
        """Positions that stay along an axis of an activation of the original, None where all do."""

    def stored_shape(self, node: int, position: int) -> tuple[int, ...]:
        """Shape of a constant input after the cut."""

    def set_input(self, node: int, position: int, value: NDArray[Any]) -> None:
        """Also one that is left out, if it is the next."""

    def set_attribute(self, node: int, name: str, value: Any) -> None:
        """None takes the attribute away."""


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
    blind: bool = False


OPERATORS: dict[tuple[str, str], Operator] = {}


def rule(
    *names: str,
    domain: str = "",
    resize: Resize | None = None,
    note: str = "",
    shape: StandIn | None = None,
    blind: bool = False,
) -> Callable[[Rule], Rule]:
    """Register a function as the rule of operators: `@rule("Relu", "Tanh")`. An operator may have one rule only.

    resize   called on rewriting, after the weights were cut, to mend sizes that the node stores (Conv group, Pad amounts ...)
    note     restrictions, for the support table
    shape    of operators that ONNX does not know: see facts.StandIn
    blind    the rule looks at no shape of an output: it is asked even where that is not known before a run
    """

    def register(function: Rule) -> Rule:
        for name in names:
            if (domain, name) in OPERATORS:
                raise OnnxpruneError(f"operator {name!r} has a rule already")
            OPERATORS[domain, name] = Operator(name, domain, function, resize, note, blind)
            if shape is not None:
                STAND_INS[domain, name] = shape
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


def _key(parts: Sequence[Ints]) -> object:
    """The same for the same label arrays in any order."""
    return tuple(sorted(p.tobytes() for p in parts))
