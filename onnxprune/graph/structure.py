"""The graph as the rules see it: who makes and reads each tensor, its shape, and the values that are known before any run.

Dynamic axes get trial sizes, so that every shape is a plain number and shape arithmetic can be followed by computing it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from onnxprune.errors import ModelError, UsageError
from onnxprune.graph import surgeon

# Values with more elements than this are weights, not shape arithmetic.
SMALL = 4096
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
# Constant inputs, yet another value in every run.
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@dataclass(frozen=True)
class Stored:
    """A constant tensor traced back to the parameter that holds its numbers.

    axes[i] is the stored axis behind axis i, None where that has length 1.
    """

    parameter: str
    axes: tuple[int | None, ...]


@dataclass(frozen=True)
class Graph:
    """A model's main graph with everything looked up once.

    shapes, types   of every tensor whose shape is known at the trial sizes
    values          known small values: constants and shape arithmetic (at the trial sizes)
    parameters      initializers and values of Constant nodes, by name
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
        """Trace a constant back through nodes that only rename or reorder axes; None where it is computed or not constant."""
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
                return Stored(source.parameter, tuple(source.axes[i] for i in order))
            case "Unsqueeze" | "Squeeze" | "Reshape" | "Flatten":
                long = [i for i, n in enumerate(before) if n != 1]
                if [before[i] for i in long] != [n for n in shape if n != 1]:
                    return None
                kept = iter(long)
                return Stored(source.parameter, tuple(None if n == 1 else source.axes[next(kept)] for n in shape))
            case _:
                return None


def prepare(model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]] | None = None) -> tuple[Graph, int]:
    """Trace `model`; weights that the graph computes from constants are folded first, in place. Also returns how many were."""
    graph = trace(model, sizes)
    computed = {
        name
        for node in graph.nodes
        if not all(o in graph.constants for o in node.output if o)
        for position, name in enumerate(node.input)
        if name in graph.constants and _to_fold(graph, node, position, name)
    }
    if not computed:
        return graph, 0
    folded = surgeon.fold(model, computed)
    return trace(model, sizes), len(folded)


def _to_fold(graph: Graph, node: onnx.NodeProto, position: int, name: str) -> bool:
    """Whether a constant input can only be cut once it is a parameter: it is computed, or layer weights of another rank."""
    if name not in graph.producer or graph.types.get(name) not in FLOATS or _quantised(graph, name):
        return False
    stored = graph.stored(name)
    return stored is None or (node.op_type in LAYERS and position < 2 and None in stored.axes)


def _quantised(graph: Graph, name: str) -> bool:
    """Folding quantised weights would make a float model of a quantised one."""
    node = graph.nodes[graph.producer[name]] if name in graph.producer else None
    return node is not None and (node.op_type == "DequantizeLinear" or any(_quantised(graph, n) for n in node.input if n))


def trace(model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """Look everything up. `sizes`: input name -> shape to try, where the model leaves axes open.

    Raises ModelError for zero-sized tensors and shapes that contradict each other.
    """
    graph = model.graph
    parameters = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and node.attribute and node.attribute[0].name == "value":
            parameters[node.output[0]] = node.attribute[0].t
    inputs = _trial_sizes(graph, set(parameters), sizes or {})
    users: dict[str, list[tuple[int, int]]] = {}
    captured: set[str] = set()
    for index, node in enumerate(graph.node):
        for position, name in enumerate(node.input):
            users.setdefault(name, []).append((index, position))
        captured |= surgeon.captured(node)
    facts = _Facts(model, parameters, inputs)
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
    symbols: dict[str, int] = {}
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


class _Facts:
    """One forward pass over the nodes: types by ONNX's own shape inference, small values by its reference evaluator."""

    def __init__(
        self, model: onnx.ModelProto, parameters: Mapping[str, TensorProto], inputs: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
        self.imports, self.ir_version = list(model.opset_import), model.ir_version
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, int] = {}
        self.protos: dict[str, onnx.TypeProto] = {}
        self.values: dict[str, NDArray[Any]] = {}
        self.constants: set[str] = set(parameters)
        self.functions = {(f.domain, f.name): f for f in model.functions}
        self.declared = {v.name: v.type for v in [*model.graph.value_info, *model.graph.output]}
        elements = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
        for name, tensor in parameters.items():
            self._type(name, tensor.data_type, tuple(tensor.dims))
            if int(np.prod(tensor.dims)) <= SMALL:
                self.values[name] = np.asarray(numpy_helper.to_array(tensor))
        for sparse in model.graph.sparse_initializer:
            self._type(sparse.values.name, sparse.values.data_type, tuple(sparse.dims))
            self.constants.add(sparse.values.name)
        for name, shape in inputs.items():
            self._type(name, elements[name], shape)
        for node in model.graph.node:
            self._visit(node)

    def _type(self, name: str, element: int, shape: tuple[int, ...]) -> None:
        self.types[name], self.shapes[name] = element, shape
        self.protos[name] = helper.make_tensor_type_proto(element, shape)

    def _visit(self, node: onnx.NodeProto) -> None:
        if all(name in self.shapes for name in node.output if name):
            return
        names = [name for name in node.input if name]
        if node.op_type not in RANDOM and all(n in self.constants for n in names) and not _has_graph(node):
            self.constants.update(o for o in node.output if o)
        domain = "" if node.domain == "ai.onnx" else node.domain
        if all(name in self.protos for name in names) and domain in self.opsets:
            if (domain, node.op_type) in self.functions:
                self._infer_function(node, names)
            elif defs.has(node.op_type, domain):
                self._infer(node, names, domain)
        for name in node.output:
            if name and name not in self.shapes and name in self.declared:
                self._learn(name, self.declared[name])
        self._evaluate(node, names)

    def _learn(self, name: str, proto: onnx.TypeProto) -> None:
        tensor = proto.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            self._type(name, tensor.elem_type, tuple(d.dim_value for d in tensor.shape.dim))

    def _infer_function(self, node: onnx.NodeProto, names: list[str]) -> None:
        """A function of the model's own: ONNX infers through its body."""
        outputs = [onnx.ValueInfoProto(name=o) for o in node.output if o]
        inputs = [onnx.ValueInfoProto(name=n, type=self.protos[n]) for n in dict.fromkeys(names)]
        small = helper.make_model(
            helper.make_graph([node], "one", inputs, outputs), opset_imports=self.imports, functions=list(self.functions.values())
        )
        for value in shape_inference.infer_shapes(small).graph.output:
            self._learn(value.name, value.type)

    def _infer(self, node: onnx.NodeProto, names: list[str], domain: str) -> None:
        data = {name: numpy_helper.from_array(self.values[name], name) for name in names if name in self.values}
        types = {name: self.protos[name] for name in names}
        try:
            schema = defs.get_schema(node.op_type, self.opsets[domain], domain)
            found = shape_inference.infer_node_outputs(
                schema, node, types, data, opset_imports=self.imports, ir_version=self.ir_version
            )
        except onnx.checker.ValidationError as error:
            raise ModelError(
                f"node {node.name or node.output[0]!r} is not valid: {str(error).splitlines()[0]}", "export it again"
            ) from error
        except (shape_inference.InferenceError, RuntimeError, defs.SchemaError):
            return
        for name, proto in found.items():
            self._learn(name, proto)

    def _evaluate(self, node: onnx.NodeProto, names: list[str]) -> None:
        """Compute the node if all it needs is known and small: this is how shape arithmetic is followed."""
        if node.op_type in ("Shape", "Size"):
            if names[0] not in self.shapes:
                return
            inputs: dict[str, Any] = {names[0]: np.empty(self.shapes[names[0]], np.uint8)}
        elif not all(name in self.values for name in names) or _has_graph(node):
            return
        else:
            inputs = {name: self.values[name] for name in names}
        outputs = [o for o in node.output if o]
        if any(int(np.prod(self.shapes.get(o, (1,)))) > SMALL for o in outputs):
            return
        try:
            results = ReferenceEvaluator(node, opsets=self.opsets).run(outputs, inputs)
        except Exception:  # an operator the evaluator lacks is no error: its value is just not known
            return
        for name, value in zip(outputs, results, strict=True):
            self.values[name] = np.asarray(value)
            if name not in self.shapes:
                self._type(name, helper.np_dtype_to_tensor_dtype(self.values[name].dtype), self.values[name].shape)


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)
