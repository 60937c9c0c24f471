"""What is known of every tensor before any run: type, shape at the trial sizes, and the values of shape arithmetic.

Shapes come from ONNX's own inference, over the whole model at once, and node by node for what it leaves open. Values are computed
on the way. A second inference at open sizes tells which of them hold at any size; told these, it may see further.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, defs, helper, numpy_helper, shape_inference

from onnxprune.errors import ModelError
from onnxprune.graph.arithmetic import compute
from onnxprune.graph.light import SMALL, light
from onnxprune.graph.surgeon import WITH_SUBGRAPHS, delete

# How often inference at open sizes is told what was found, at most: a chain of shuffles needs a round for each.
ROUNDS = 64
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
# What parameters are stored in: the small integers are quantised numbers.
WEIGHTS = FLOATS | {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4}
# Constant inputs, yet another value in every run.
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
# Operators that move numbers without changing them: what is known of the numbers moves along.
MOVE = {"Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
# Operators that compute an entry of small values from the entries at the same place.
ENTRYWISE = {"Add", "And", "Div", "Equal", "Greater", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Sub", "Where"}
# Operators with an output like their input of which ONNX does not say so: deprecated (opset 18), not inferred, ORT's own.
ALIKE = {"GroupNormalization", "MeanVarianceNormalization", "SimplifiedLayerNormalization"}
Types = dict[str, onnx.TypeProto]
# Operators that ONNX does not know: (node, opset, shapes known so far) -> standard nodes whose output has the same shape.
StandIn = Callable[[onnx.NodeProto, int, Mapping[str, Sequence[int]]], Sequence[onnx.NodeProto]]
STAND_INS: dict[tuple[str, str], StandIn] = {}


class Facts:
    """One forward pass over the nodes.

    shapes, types   of every tensor whose shape is known at the trial sizes
    values          small tensors whose numbers are known at the trial sizes
    fixed           name -> which entries of its value are the same at all sizes
    constants       tensors computed from parameters alone
    """

    def __init__(
        self, model: onnx.ModelProto, parameters: Mapping[str, TensorProto], inputs: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
        self.imports, self.ir_version = list(model.opset_import), model.ir_version
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, int] = {}
        self.values: dict[str, NDArray[Any]] = {}
        self.fixed: dict[str, NDArray[np.bool_]] = {}
        self.constants: set[str] = set()
        self.functions = {(f.domain, f.name): f for f in model.functions}
        self.declared = {v.name: v.type for v in [*model.graph.value_info, *model.graph.output]}
        self._arithmetic: list[onnx.NodeProto] = []
        self._tiles: list[onnx.NodeProto] = []
        small = _standard(light(model))
        self.known = _inferred(_at(small, inputs))
        elements = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
        for sparse in model.graph.sparse_initializer:
            self._type(sparse.values.name, sparse.values.data_type, tuple(sparse.dims))
            self.constants.add(sparse.values.name)
        for name, shape in inputs.items():
            self._type(name, elements[name], shape)
        self.follow(model, parameters)
        self._fix(small, {v.name: v.type for v in model.graph.input if v.name in inputs})

    def follow(self, model: onnx.ModelProto, parameters: Mapping[str, TensorProto]) -> None:
        """Learn what is not known yet: of all tensors at first, of new names after the model was changed."""
        self.constants.update(parameters)
        for name, tensor in parameters.items():
            if name not in self.shapes:
                self._type(name, tensor.data_type, tuple(tensor.dims))
            if name not in self.values and prod(tensor.dims) <= SMALL:
                self._value(name, np.asarray(numpy_helper.to_array(tensor)))
        for node in model.graph.node:
            self._visit(node)

    def _type(self, name: str, element: int, shape: tuple[int, ...]) -> None:
        self.types[name], self.shapes[name] = element, shape

    def _proto(self, name: str) -> onnx.TypeProto:
        return helper.make_tensor_type_proto(self.types[name], self.shapes[name])

    def _value(self, name: str, value: NDArray[Any], fixed: NDArray[np.bool_] | bool = True) -> None:
        self.values[name], self.fixed[name] = value, np.full(value.shape, fixed) if isinstance(fixed, bool) else fixed

    def _visit(self, node: onnx.NodeProto) -> None:
        names = [name for name in node.input if name]
        if self.constants.issuperset(names) and node.op_type not in RANDOM and not _has_graph(node):
            self.constants.update(o for o in node.output if o)
        elif node.op_type == "Tile":
            self._tiles.append(node)
        if all(name in self.shapes for name in node.output if name):
            return
        domain = "" if node.domain == "ai.onnx" else node.domain
        for name in node.output:
            if name in self.known:
                self._learn(name, self.known[name])
        if node.op_type in ALIKE and names[0] in self.shapes:
            self._type(node.output[0], self.types[names[0]], self.shapes[names[0]])
        if any(name and name not in self.shapes for name in node.output):
            self._infer_alone(node, names, domain)
        for name in node.output:
            if name and name not in self.shapes and name in self.declared:
                self._learn(name, self.declared[name])
        self._evaluate(node, names)

    def _learn(self, name: str, proto: onnx.TypeProto) -> None:
        tensor = proto.tensor_type
        if tensor.HasField("shape"):
            dims = tensor.shape.dim
            shape = tuple(d.dim_value for d in dims)
            if 0 not in shape or all(d.HasField("dim_value") for d in dims):
                self._type(name, tensor.elem_type, shape)

    def _fix(self, light: onnx.ModelProto, inputs: Types) -> None:
        """Find out which values are the same at all sizes."""
        waiting, moved = self._arithmetic, set(self.fixed)
        self._told: set[str] = {v.name for v in light.graph.value_info}
        for _ in range(ROUNDS):
            self.symbolic = _inferred(light) | inputs
            for node in waiting:
                if node.op_type in ("Shape", "Size") or not moved.isdisjoint(node.input):
                    moved.update(self._mark(node))
            found = [node for node in waiting if all(bool(self.fixed[o].all()) for o in node.output if o)]
            tiled = [info for node in self._tiles if (info := self._tiled(node)) is not None]
            if not found and not tiled:
                return
            light.graph.value_info.extend(tiled)
            _tell(light, {o: self.values[o] for node in found for o in node.output if o})
            settled = {node.output[0] for node in found}
            waiting, moved = [node for node in waiting if node.output[0] not in settled], set()

    def _infer_alone(self, node: onnx.NodeProto, names: list[str], domain: str) -> None:
        if not all(name in self.shapes for name in names) or domain not in self.opsets:
            return
        if (domain, node.op_type) in self.functions or (domain, node.op_type) in STAND_INS:
            self._infer_inside(node, names)
        elif defs.has(node.op_type, domain):
            self._infer(node, names, domain)

    def _infer_inside(self, node: onnx.NodeProto, names: list[str]) -> None:
        """A function of the model's own, or nodes that stand for an operator: ONNX infers through them."""
        outputs = [onnx.ValueInfoProto(name=o) for o in node.output if o]
        inputs = [onnx.ValueInfoProto(name=n, type=self._proto(n)) for n in dict.fromkeys(names)]
        small = helper.make_model(
            helper.make_graph(_stand_in(node, self.opsets.get("", 1), self.shapes), "one", inputs, outputs),
            opset_imports=self.imports,
            functions=list(self.functions.values()),
        )
        for value in shape_inference.infer_shapes(small).graph.output:
            self._learn(value.name, value.type)

    def _infer(self, node: onnx.NodeProto, names: list[str], domain: str) -> None:
        data = {name: numpy_helper.from_array(self.values[name], name) for name in names if name in self.values}
        types = {name: self._proto(name) for name in names}
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
        outputs = [o for o in node.output if o]
        if node.op_type in ("Shape", "Size") and names[0] in self.shapes:
            results: list[NDArray[Any]] | None = [_measured(node, np.array(self.shapes[names[0]], np.int64))]
        elif self._computable(node, names, outputs):
            results = compute(node, {name: self.values[name] for name in names}, self.opsets)
        else:
            return
        if results is None:
            return
        settled = all(name in self.constants for name in outputs)
        for name, value in zip(outputs, results, strict=True):
            if name not in self.shapes:
                self._type(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            self._value(name, value, settled)
        if not settled:
            self._arithmetic.append(node)

    def _computable(self, node: onnx.NodeProto, names: Sequence[str], outputs: Sequence[str]) -> bool:
        if not all(name in self.values for name in names) or _has_graph(node) or node.op_type in RANDOM:
            return False
        return all(prod(self.shapes.get(o, (1,))) <= SMALL for o in outputs)

    def _mark(self, node: onnx.NodeProto) -> list[str]:
        """Which entries of a node's outputs are fixed, as far as is known of its inputs. Returns those with news."""
        outputs = [o for o in node.output if o]
        names = [name for name in node.input if name]
        if node.op_type in ("Shape", "Size"):
            masks: list[NDArray[np.bool_]] | None = [self._fixed_axes(node)]
        elif all(bool(self.fixed[name].all()) for name in names):
            masks = [np.ones(self.values[o].shape, bool) for o in outputs]
        elif node.op_type in MOVE:
            masks = self._moved(node)
        elif node.op_type in ENTRYWISE:
            masks = [self._entrywise(node, names)]
        else:
            masks = None
        if masks is None:
            return []
        news = [name for name, mask in zip(outputs, masks, strict=False) if (mask != self.fixed[name]).any()]
        self.fixed.update(zip(outputs, masks, strict=False))
        return news

    def _fixed_axes(self, node: onnx.NodeProto) -> NDArray[np.bool_]:
        """Shape and Size: fixed where the length of the axis is."""
        fixed = self._fixed_lengths(node.input[0])
        return np.asarray(fixed.all()) if node.op_type == "Size" else _measured(node, fixed)

    def _fixed_lengths(self, name: str) -> NDArray[np.bool_]:
        """Which axes of a tensor are as long in every run."""
        proto, rank = self.symbolic.get(name), len(self.shapes[name])
        if name in self.constants:
            return np.ones(rank, bool)
        if proto is None or len(proto.tensor_type.shape.dim) != rank:
            return np.zeros(rank, bool)
        return np.array([d.HasField("dim_value") for d in proto.tensor_type.shape.dim], bool)

    def _tiled(self, node: onnx.NodeProto) -> onnx.ValueInfoProto | None:
        """Lengths of a Tile that inference leaves open: it wants to know how often each axis is repeated, or none."""
        name, times = node.output[0], node.input[1]
        if times not in self.fixed or name not in self.shapes or name in self._told:
            return None
        fixed = self._fixed_lengths(node.input[0]) & self.fixed[times]
        if not (fixed & ~self._fixed_lengths(name)).any():
            return None
        self._told.add(name)
        dims = [n if known else None for n, known in zip(self.shapes[name], fixed, strict=True)]
        return helper.make_tensor_value_info(name, self.types[name], dims)

    def _moved(self, node: onnx.NodeProto) -> list[NDArray[np.bool_]] | None:
        """Which entries of a moved value are fixed: the node is run on the marks of its data inputs."""
        if node.op_type in ("Cast", "Identity"):
            return [self.fixed[node.input[0]]]
        data = set(node.input) if node.op_type == "Concat" else {node.input[0]}
        if not all(bool(self.fixed[n].all()) for n in node.input if n and n not in data):
            return None
        marks = {n: self.fixed[n].astype(np.int64) if n in data else self.values[n] for n in node.input if n}
        found = compute(node, marks, self.opsets)
        return None if found is None else [f.astype(bool) for f in found]

    def _entrywise(self, node: onnx.NodeProto, names: list[str]) -> NDArray[np.bool_]:
        """Each entry is fixed where those that it is computed from are; Where looks only at the one it takes."""
        if node.op_type == "Where":
            asked, yes, no = node.input
            taken = np.where(self.values[asked], self.fixed[yes], self.fixed[no])
            return np.asarray(self.fixed[asked] & taken)
        return np.asarray(np.logical_and.reduce(np.broadcast_arrays(*(self.fixed[n] for n in names))))

    def open_axes(self) -> dict[str, tuple[int, ...]]:
        """Axes whose length is not the same in every run."""
        return {
            name: axes
            for name, proto in self.symbolic.items()
            if (axes := tuple(i for i, d in enumerate(proto.tensor_type.shape.dim) if not d.HasField("dim_value")))
        }


def _measured(node: onnx.NodeProto, whole: NDArray[Any]) -> NDArray[Any]:
    """What Shape or Size gives of something said of every axis."""
    if node.op_type == "Size":
        return np.asarray(whole.prod())
    given = {a.name: a.i for a in node.attribute}
    return whole[given.get("start", 0) : given.get("end", len(whole))]


def _standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with nodes that stand for those that ONNX does not know, in place."""
    graph = model.graph
    if any((node.domain, node.op_type) in STAND_INS for node in graph.node):
        opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        shapes = {t.name: list(t.dims) for t in graph.initializer} | {
            i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input
        }
        nodes = onnx.GraphProto()
        nodes.node.extend(part for node in graph.node for part in _stand_in(node, opset, shapes))
        graph.ClearField("node")
        graph.node.extend(nodes.node)
    return model


def _stand_in(node: onnx.NodeProto, opset: int, shapes: Mapping[str, Sequence[int]]) -> Sequence[onnx.NodeProto]:
    """The node itself where ONNX knows it."""
    found = STAND_INS.get((node.domain, node.op_type))
    return [node] if found is None else found(node, opset, shapes)


def _tell(light: onnx.ModelProto, known: Mapping[str, NDArray[Any]]) -> None:
    """Put numbers in the place of the nodes that compute them, in place."""
    doomed = [i for i, node in enumerate(light.graph.node) if node.output and node.output[0] in known]
    delete(light.graph.node, doomed)
    light.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in known.items())


def _at(model: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """The same with its inputs at the trial sizes, and nothing believed that was declared for others."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    del light.graph.value_info[:]
    for value in light.graph.input:
        if value.name in inputs:
            element = value.type.tensor_type.elem_type
            value.type.CopyFrom(helper.make_tensor_type_proto(element, inputs[value.name]))
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    return light


def _inferred(light: onnx.ModelProto) -> Types:
    try:
        found = shape_inference.infer_shapes(light, data_prop=True).graph
    except Exception:  # what is wrong is told when the nodes are looked at one by one
        return {}
    return {v.name: v.type for v in [*found.value_info, *found.output]}


def _has_graph(node: onnx.NodeProto) -> bool:
    if node.domain in ("", "ai.onnx") and node.op_type not in WITH_SUBGRAPHS:
        return False
    return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)
