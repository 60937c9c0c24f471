"""The graph as the rules see it: who makes and reads each tensor, its shape, and the values that are known before any run.

Dynamic axes get trial sizes, so that every shape is a plain number and shape arithmetic can be followed by computing it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError, UsageError
from onnxprune.graph import surgeon
from onnxprune.graph.facts import Facts
from onnxprune.network import Quantised

# What exporters write where they know no name for a length, and how many nodes of a graph are tried.
NAMELESS = {"", "?", "-1", "None"}
COUNTED = 16


@dataclass(frozen=True)
class Stored:
    """A constant tensor traced back to the parameter that holds its numbers.

    axes[i] is the stored axis behind axis i, None where that has length 1. `quantised`: it holds integers that stand for them.
    """

    parameter: str
    axes: tuple[int | None, ...]
    quantised: Quantised | None = None


@dataclass(frozen=True)
class Graph:
    """A model's main graph with everything looked up once.

    shapes, types   of every tensor whose shape is known at the trial sizes
    values          known small values: constants and shape arithmetic (at the trial sizes)
    fixed           for each of them, which entries are the same at all sizes of the open axes
    parameters      initializers and values of Constant nodes, by name
    open            axes whose length depends on the run
    constants       tensors computed from parameters alone
    captured        tensors read inside subgraphs (If, Loop, Scan)
    """

    model: onnx.ModelProto = field(repr=False)
    nodes: Sequence[onnx.NodeProto] = field(repr=False)
    parameters: Mapping[str, TensorProto] = field(repr=False)
    producer: Mapping[str, int] = field(repr=False)
    users: Mapping[str, tuple[tuple[int, int], ...]] = field(repr=False)
    inputs: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    captured: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    types: Mapping[str, int] = field(repr=False)
    values: Mapping[str, NDArray[Any]] = field(repr=False)
    fixed: Mapping[str, NDArray[np.bool_]] = field(repr=False)
    open: Mapping[str, tuple[int, ...]] = field(repr=False)
    facts: Facts = field(repr=False)
    constants: frozenset[str] = field(repr=False)
    opset: int

    def label(self, index: int) -> str:
        """What a node is called: its name, or its first output where it has none or shares it. Never the same for two."""
        return self._labels[index]

    @cached_property
    def _labels(self) -> tuple[str, ...]:
        named = Counter(node.name for node in self.nodes)
        found = []
        for index, node in enumerate(self.nodes):
            first = next((o for o in node.output if o), f"node {index}")
            own = bool(node.name) and named[node.name] == 1 and self.producer.get(node.name, index) == index
            found.append(node.name if own else first)
        return tuple(found)

    def attribute(self, index: int, name: str, default: Any = None) -> Any:
        for attribute in self.nodes[index].attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def open_axes(self, tensor: str) -> set[int]:
        """Axes whose length depends on the run, as far as ONNX's inference can tell."""
        return set(self.open.get(tensor, ()))

    def input(self, index: int, position: int) -> str:
        """Name of an input, empty where it is left out."""
        names = self.nodes[index].input
        return names[position] if position < len(names) else ""

    def sole_user(self, tensor: str) -> int | None:
        """The one node that reads `tensor`, if exactly one does and the tensor is no output."""
        users = self.users.get(tensor, ())
        return users[0][0] if len(users) == 1 and tensor not in self.outputs and tensor not in self.captured else None

    def end_users(self, parameter: str) -> list[tuple[int, int]]:
        """(node, input) of all that reads a parameter, directly or through nodes that only rename it or reorder its axes."""
        found = []
        for node, position in self.users.get(parameter, ()):
            outputs = [o for o in self.nodes[node].output if o in self.constants]
            found += [user for o in outputs for user in self.end_users(o)] if outputs else [(node, position)]
        return found

    def exposed(self, parameter: str) -> bool:
        """Whether others than nodes see a parameter, maybe under another name: as a graph output or inside a subgraph."""
        if parameter in self.outputs or parameter in self.captured:
            return True
        return any(
            o in self.constants and self.exposed(o) for n, _ in self.users.get(parameter, ()) for o in self.nodes[n].output
        )

    def array(self, parameter: str) -> NDArray[Any]:
        return np.asarray(numpy_helper.to_array(self.parameters[parameter]))

    def stored(self, tensor: str) -> Stored | None:
        """Trace a constant back through nodes that only rename or reorder axes, and through one DequantizeLinear.

        None where it is computed or not constant.
        """
        if tensor in self.parameters:
            return Stored(tensor, tuple(range(len(self.parameters[tensor].dims))))
        index = self.producer.get(tensor)
        if index is None or tensor not in self.constants:
            return None
        node, shape = self.nodes[index], self.shapes.get(tensor)
        source = self.stored(node.input[0]) if node.input else None
        if source is None or shape is None:
            return None
        before = self.shapes[node.input[0]]
        match node.op_type:
            case "Identity" | "Cast" | "Dropout":
                return source
            case "Transpose" if len(shape) == 2:
                order = self.attribute(index, "perm") or list(range(len(shape)))[::-1]
                return replace(source, axes=tuple(source.axes[i] for i in order))
            case "Unsqueeze" | "Squeeze" | "Reshape" | "Flatten":
                long = [i for i, n in enumerate(before) if n != 1]
                if [before[i] for i in long] != [n for n in shape if n != 1]:
                    return None
                kept = iter(long)
                return replace(source, axes=tuple(None if n == 1 else source.axes[next(kept)] for n in shape))
            case "DequantizeLinear" if source.quantised is None and (
                not self.attribute(index, "block_size", 0) or source.axes == tuple(range(len(source.axes)))
            ):
                return replace(source, quantised=self._quantised(index, source))
            case _:
                return None

    def _quantised(self, index: int, source: Stored) -> Quantised:
        """What a DequantizeLinear of a constant says of it; `axis` counts the axes of the parameter."""
        scale, zero_point = self.input(index, 1), self.input(index, 2)
        block = self.attribute(index, "block_size", 0)
        axis = self.attribute(index, "axis", 1) % max(len(source.axes), 1)
        if block:
            return Quantised((scale,), zero_point, tuple(range(len(source.axes))), axis, block)
        along = source.axes[axis] if int(np.prod(self.shapes.get(scale, ()))) > 1 else None
        return Quantised((scale,), zero_point, () if along is None else (along,))

    def place(self, node: int, position: int, parameter: str) -> tuple[int, int]:
        """Where a copy of a parameter for one reader alone has to stand: at its input, or in front of the DequantizeLinear."""
        found, name = (node, position), self.input(node, position)
        while name != parameter:
            index = self.producer[name]
            inputs = self.nodes[index].input
            at = next((i for i, n in enumerate(inputs) if (s := self.stored(n)) is not None and s.parameter == parameter), 0)
            name = inputs[at]
            if self.nodes[index].op_type == "DequantizeLinear":
                found = index, at
        return found


def trace(model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """Look everything up. `sizes`: input name -> shape to try, where the model leaves axes open.

    Raises ModelError for zero-sized tensors and shapes that contradict each other.
    """
    parameters = _parameters(model)
    inputs = _trial_sizes(model.graph, set(parameters), sizes or {})
    return _looked_up(model, parameters, inputs, Facts(model, parameters, inputs))


def trace_again(graph: Graph) -> Graph:
    """The same after nodes and initializers were changed in `graph.model`; what is known of the other tensors stays."""
    parameters = _parameters(graph.model)
    graph.facts.follow(graph.model, parameters)
    return _looked_up(graph.model, parameters, graph.inputs, graph.facts)


def _parameters(model: onnx.ModelProto) -> dict[str, TensorProto]:
    found = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def _looked_up(
    model: onnx.ModelProto, parameters: Mapping[str, TensorProto], inputs: Mapping[str, tuple[int, ...]], facts: Facts
) -> Graph:
    graph = model.graph
    users: dict[str, list[tuple[int, int]]] = {}
    captured: set[str] = set()
    for index, node in enumerate(graph.node):
        for position, name in enumerate(node.input):
            users.setdefault(name, []).append((index, position))
        captured |= surgeon.captured(node)
    return Graph(
        model=model,
        nodes=graph.node,
        parameters=parameters,
        producer={name: i for i, node in enumerate(graph.node) for name in node.output if name},
        users={name: tuple(found) for name, found in users.items()},
        inputs=inputs,
        outputs=tuple(o.name for o in graph.output),
        captured=frozenset(captured),
        shapes=facts.shapes,
        types=facts.types,
        values=facts.values,
        fixed=facts.fixed,
        open=facts.open_axes(),
        facts=facts,
        constants=frozenset(facts.constants),
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1),
    )


def _trial_sizes(graph: onnx.GraphProto, stored: set[str], asked: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    names = {i.name for i in graph.input}
    if list(asked) == [""] and len(names - stored) == 1:
        # The name may be left out where only one can be meant.
        asked = {next(iter(names - stored)): asked[""]}
    for name in asked:
        if name not in names - stored:
            problem = f"the model has no input {name!r}" if name else "a shape without the name of its input"
            raise UsageError(problem, f"the model's inputs are: {', '.join(sorted(names - stored))}")
    found: dict[str, tuple[int, ...]] = {}
    symbols: dict[str, int] = dict.fromkeys(no_batch(graph), COUNTED)
    for value in graph.input:
        if value.name in stored or not value.type.HasField("tensor_type"):
            continue
        dims = list(value.type.tensor_type.shape.dim)
        if value.name in asked:
            shape = tuple(int(n) for n in asked[value.name])
            if len(shape) != len(dims) or any(
                d.HasField("dim_value") and d.dim_value != n for d, n in zip(dims, shape, strict=True)
            ):
                raise UsageError(
                    f"shape {list(shape)} does not fit input {value.name!r} {[_dim(d) for d in dims]}",
                    "change --input-shape or the data",
                )
        else:
            shape = tuple(_trial(d, i, len(dims), symbols) for i, d in enumerate(dims))
        if any(n <= 0 for n in shape):
            raise ModelError(f"input {value.name!r} has an axis of length 0", "export the model with real sizes")
        symbols |= {d.dim_param: n for d, n in zip(dims, shape, strict=True) if d.dim_param}
        found[value.name] = shape
    return found


def no_batch(graph: onnx.GraphProto) -> set[str]:
    """Names of lengths that count no samples, though they stand first: another input has them on another axis (nodes x nodes)."""
    first = {i.name: i.type.tensor_type.shape.dim[0].dim_param for i in graph.input if i.type.tensor_type.shape.dim}
    later = {i.name: {d.dim_param for d in list(i.type.tensor_type.shape.dim)[1:]} for i in graph.input}
    shared = {symbol for name, symbol in first.items() if any(symbol in own for other, own in later.items() if other != name)}
    return shared - NAMELESS


def _dim(dim: Any) -> int | str:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"


def _trial(dim: Any, axis: int, rank: int, symbols: Mapping[str, int]) -> int:
    """A size for an open axis: batch 1, images 224 x 224, volumes 32 a side, everything else 64 long."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    if dim.dim_param in symbols:
        return symbols[dim.dim_param]
    if axis == 0:
        return 1
    return {4: 224, 5: 32}.get(rank, 64)
