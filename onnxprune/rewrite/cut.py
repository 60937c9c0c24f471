"""Remove channels from a model: every labelled axis of every parameter is cut, sizes that nodes store are stated anew.

Nodes are neither added nor removed, so that node i of the result is node i of the original.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.graph import surgeon
from onnxprune.graph.labels import operator
from onnxprune.graph.structure import Graph, Stored
from onnxprune.network import Bools, Ints, Network, Place
from onnxprune.rewrite.rescale import factors

Kept = dict[int, Ints]


@dataclass(frozen=True)
class Cut:
    """A model with channels removed.

    removed   original parameter ('name@node' where users of a shared one keep different positions) -> axis -> positions that went
    renamed   (node, input) as in Graph.place -> name of the parameter it reads now, where that is a clone
    """

    model: onnx.ModelProto = field(repr=False)
    removed: dict[str, dict[str, list[int]]]
    renamed: dict[tuple[int, int], str]


def cut(graph: Graph, network: Network, alive: Bools) -> Cut:
    """A new model without the channels where `alive` is False; `graph.model` is left as it is."""
    model = light_copy(graph.model)
    plan = _plan(graph, network, alive)
    parameters = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.output and node.output[0] in graph.parameters and node.output[0] not in parameters:
            parameters[node.output[0]] = node.attribute[0].t
    renamed: dict[tuple[int, int], str] = {}
    removed: dict[str, dict[str, list[int]]] = {}
    for name, users in plan.items():
        _cut_parameter(graph, model, parameters, name, users, renamed, removed)
    _fill(model, graph)
    edit = _Edit(graph, network, alive, model, parameters)
    for index, node in enumerate(graph.nodes):
        found = operator(node.domain, node.op_type)
        known = all(name in graph.shapes for name in [*node.input, *node.output[:1]] if name)
        if found is not None and found.resize is not None and known and node.output[0] not in graph.constants:
            found.resize(edit, index)
    _rescale_norms(graph, network, alive, edit, renamed, removed)
    _restate_constant_reshapes(graph, plan, removed, edit)
    _restate_shapes(graph, network, alive, model, removed)
    return Cut(model, removed, renamed)


def light_copy(model: onnx.ModelProto, without: Callable[[onnx.TensorProto], bool] = lambda _: True) -> onnx.ModelProto:
    """A copy without the bytes of (some) initializers: filled in once, cut or whole, so that memory holds no third copy."""
    light = onnx.ModelProto()
    for part, _ in model.ListFields():
        if part.name != "graph":
            _copy_field(model, light, part.name)
    for part, _ in model.graph.ListFields():
        if part.name != "initializer":
            _copy_field(model.graph, light.graph, part.name)
    for tensor in model.graph.initializer:
        if without(tensor):
            light.graph.initializer.add(name=tensor.name)
        else:
            light.graph.initializer.append(tensor)
    return light


def _copy_field(source: Any, target: Any, name: str) -> None:
    value = getattr(source, name)
    if hasattr(value, "extend"):
        getattr(target, name).extend(value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)


def _fill(model: onnx.ModelProto, graph: Graph) -> None:
    for tensor in model.graph.initializer:
        if tensor.name in graph.parameters and not tensor.data_type:
            tensor.CopyFrom(graph.parameters[tensor.name])


def _plan(graph: Graph, network: Network, alive: Bools) -> dict[str, dict[tuple[int, int], Kept]]:
    """parameter -> user -> axis -> positions kept, for every parameter that some user sees cut."""
    plan: dict[str, dict[tuple[int, int], Kept]] = {}
    for slot in network.slots:
        keep = np.flatnonzero(alive[slot.channels])
        users = plan.setdefault(slot.parameter, {})
        users.setdefault((slot.node, slot.input), {})[slot.axis] = keep
    lengths = {(s.parameter, s.axis): len(s.channels) for s in network.slots}
    for name, users in list(plan.items()):
        for user in graph.end_users(name):
            users.setdefault(user, {})
        for kept in users.values():
            for axis in [a for a, k in kept.items() if len(k) == lengths[name, a]]:
                del kept[axis]
        if not any(users.values()):
            del plan[name]
    return plan


def _signature(kept: Kept) -> tuple[tuple[int, bytes], ...]:
    return tuple(sorted((axis, keep.tobytes()) for axis, keep in kept.items()))


def _cut_parameter(
    graph: Graph, model: onnx.ModelProto, parameters: dict[str, onnx.TensorProto], name: str, users: dict[tuple[int, int], Kept],
    renamed: dict[tuple[int, int], str], removed: dict[str, dict[str, list[int]]],
) -> None:  # fmt: skip
    """Cut in place if all users agree; otherwise each user that sees it cut gets a clone, and the others keep the original."""
    original = graph.parameters[name]
    signatures = {_signature(kept) for kept in users.values()}
    if len(signatures) == 1 and not graph.exposed(name):
        kept = next(iter(users.values()))
        replace_numbers(parameters[name], original, _take(graph, name, kept))
        removed[name] = _gone(original, kept)
        _restate_input(model, name, kept)
        return
    clones: dict[tuple[int, tuple[tuple[int, bytes], ...]], str] = {}
    for (node, position), kept in users.items():
        if not kept:
            continue
        node, position = graph.place(node, position, name)
        key = node, _signature(kept)
        if key not in clones:
            clones[key] = free_name(f"{name}@{graph.label(node)}", {*parameters, *graph.producer, *graph.inputs})
            removed[clones[key]] = _gone(original, kept)
            value = as_read(graph, graph.nodes[node].input[position], name, _take(graph, name, kept))
            tensor = numpy_helper.from_array(np.ascontiguousarray(value), clones[key])
            parameters[clones[key]] = surgeon.add_initializer(model, tensor)
        model.graph.node[node].input[position] = clones[key]
        renamed[node, position] = clones[key]


def free_name(name: str, taken: Container[str]) -> str:
    """`name`, or with a number behind it where that is taken."""
    if name not in taken:
        return name
    return next(numbered for i in itertools.count(2) if (numbered := f"{name}#{i}") not in taken)


def _take(graph: Graph, name: str, kept: Kept) -> NDArray[Any]:
    value = graph.array(name)
    for axis, keep in kept.items():
        value = value.take(keep, axis=axis)
    return value


def as_read(graph: Graph, tensor: str, parameter: str, value: NDArray[Any]) -> NDArray[Any]:
    """The clone stands where its user reads, behind any Transpose, Unsqueeze or Cast: bring it into that form."""
    stored = graph.stored(tensor)
    if tensor == parameter or stored is None:
        return value
    order = [a for a in stored.axes if a is not None]
    rest = [a for a in range(value.ndim) if a not in order]
    moved = value.transpose([*order, *rest])
    shape = [1 if a is None else value.shape[a] for a in stored.axes]
    return moved.reshape(shape).astype(helper.tensor_dtype_to_np_dtype(graph.types[tensor]))


def replace_numbers(target: onnx.TensorProto, original: onnx.TensorProto, value: NDArray[Any]) -> None:
    """Other numbers; the name, the doc string and the metadata stay those of `original`."""
    doc = original.doc_string
    metadata = [onnx.StringStringEntryProto.FromString(e.SerializeToString()) for e in original.metadata_props]
    target.CopyFrom(numpy_helper.from_array(np.asarray(value, order="C"), original.name))
    if doc:
        target.doc_string = doc
    target.metadata_props.extend(metadata)


def _gone(original: onnx.TensorProto, kept: Kept) -> dict[str, list[int]]:
    return {str(axis): np.setdiff1d(np.arange(original.dims[axis]), keep).tolist() for axis, keep in sorted(kept.items())}


def _restate_input(model: onnx.ModelProto, name: str, kept: Kept) -> None:
    """Before IR 4 initializers are listed as graph inputs too, with their shapes."""
    for value in model.graph.input:
        if value.name == name:
            for axis, keep in kept.items():
                value.type.tensor_type.shape.dim[axis].dim_value = len(keep)


class _Edit:
    """What the resize hooks of the operators work on (graph.labels.Resizer)."""

    def __init__(
        self, graph: Graph, network: Network, alive: Bools, model: onnx.ModelProto, parameters: Mapping[str, onnx.TensorProto]
    ) -> None:
        self.graph, self._network, self._alive = graph, network, alive
        self._model, self._parameters = model, dict(parameters)

    def kept(self, tensor: str, axis: int) -> Ints | None:
        channels = self._network.tensor_channels.get(tensor, {}).get(axis)
        if channels is None:
            return None
        keep = np.flatnonzero(self._alive[channels])
        return keep if len(keep) < len(channels) else None

    def stored_shape(self, node: int, position: int) -> tuple[int, ...]:
        name = self._model.graph.node[node].input[position]
        if name in self._parameters:
            return tuple(self._parameters[name].dims)
        stored = self.graph.stored(name)  # behind Identity, Transpose and the like
        assert stored is not None, name
        dims = self._parameters[stored.parameter].dims
        return tuple(1 if a is None else dims[a] for a in stored.axes)

    def set_input(self, node: int, position: int, value: NDArray[Any]) -> None:
        """In place where this node alone reads a stored value, else a new initializer: others may need the old one."""
        inputs = self._model.graph.node[node].input
        if position == len(inputs):
            inputs.append("")
        name = self.graph.input(node, position) or f"{self.graph.label(node)}.sizes"
        if name in self.graph.parameters and len(self.graph.users[name]) == 1 and not self.graph.exposed(name):
            kind = helper.tensor_dtype_to_np_dtype(self._parameters[name].data_type)
            replace_numbers(self._parameters[name], self.graph.parameters[name], value.astype(kind))
            return
        new = free_name(f"{name}@{self.graph.label(node)}", {*self._parameters, *self.graph.producer, *self.graph.inputs})
        tensor = numpy_helper.from_array(value.astype(np.int64), new)
        self._parameters[new] = surgeon.add_initializer(self._model, tensor)
        inputs[position] = new

    def reads(self, node: int, position: int) -> str:
        """Name of an input in the cut model."""
        return str(self._model.graph.node[node].input[position])

    def set_attribute(self, node: int, name: str, value: Any) -> None:
        target = self._model.graph.node[node]
        for number, attribute in enumerate(target.attribute):
            if attribute.name == name and value is None:
                del target.attribute[number]
                return
            if attribute.name == name:
                doc = attribute.doc_string
                attribute.CopyFrom(helper.make_attribute(name, value, doc_string=doc or None))
                return
        if value is None:
            return
        target.attribute.append(helper.make_attribute(name, value))

    def multiply(self, name: str, factor: float, places: Sequence[Place]) -> str:
        """Numbers times a factor where `places` read `name`: in place if they alone do, else in a copy. Returns its name."""
        readers = sum(read == name for node in self._model.graph.node for read in node.input)
        value = self._numbers(name, places[0])
        value = np.asarray((value.astype(np.float64) * factor).astype(value.dtype))
        if name in self._parameters and readers == len(places) and not self.graph.exposed(name):
            replace_numbers(self._parameters[name], self._parameters[name], value)
            return name
        new = free_name(f"{name}@{self.graph.label(places[0][0])}", {*self._parameters, *self.graph.producer, *self.graph.inputs})
        self._parameters[new] = surgeon.add_initializer(self._model, numpy_helper.from_array(np.ascontiguousarray(value), new))
        for node, position in places:
            self._model.graph.node[node].input[position] = new
        return new

    def _numbers(self, name: str, place: Place) -> NDArray[Any]:
        """As the node reads them, after the cut and behind any Cast or Unsqueeze."""
        if name in self._parameters:
            return np.asarray(numpy_helper.to_array(self._parameters[name]))
        stored = self.graph.stored(name)
        assert stored is not None, name  # graph.norms lets no channels go through other norms
        value = as_read(self.graph, name, stored.parameter, numpy_helper.to_array(self._parameters[stored.parameter]))
        return np.asarray(value.astype(helper.tensor_dtype_to_np_dtype(self.graph.types[name])))


def _rescale_norms(
    graph: Graph, network: Network, alive: Bools, edit: _Edit, renamed: dict[Place, str], removed: dict[str, dict[str, list[int]]]
) -> None:
    """Norms go on counting the channels they had; a scale or epsilon that several of them read is copied once per factor."""
    inputs, epsilons = factors(graph, network, alive)
    for node, value in epsilons.items():
        edit.set_attribute(node, "epsilon", value)
    places: dict[tuple[str, float], list[Place]] = {}
    for (node, position), factor in inputs.items():
        places.setdefault((edit.reads(node, position), factor), []).append((node, position))
    for (name, factor), own in places.items():
        new = edit.multiply(name, factor, own)
        if new != name:
            renamed.update(dict.fromkeys(own, new))
            stored = graph.stored(name) if name in graph.constants else None
            gone = removed.get(name) or removed.get(stored.parameter if stored else "")
            removed.update({new: gone} if gone else {})


def _restate_constant_reshapes(graph: Graph, plan: Mapping[str, Any], removed: Mapping[str, Any], edit: _Edit) -> None:
    """A Reshape between a parameter and the layer that reads it states the old size."""
    for index, node in enumerate(graph.nodes):
        if node.op_type != "Reshape" or node.output[0] not in graph.constants:
            continue
        stored = graph.stored(node.output[0])
        if stored is None or stored.parameter not in plan or stored.parameter not in removed:
            continue
        gone = removed[stored.parameter]
        shape = graph.shapes[node.output[0]]
        target = [n - (len(gone.get(str(a), [])) if a is not None else 0) for n, a in zip(shape, stored.axes, strict=True)]
        edit.set_input(index, 1, np.array(target, np.int64))


def _restate_shapes(
    graph: Graph, network: Network, alive: Bools, model: onnx.ModelProto, removed: Mapping[str, Mapping[str, list[int]]]
) -> None:
    """Shapes recorded for activations follow the cut; all else about them stays."""
    for value in [*model.graph.value_info, *model.graph.output]:
        for axis, channels in network.tensor_channels.get(value.name, {}).items():
            dims = value.type.tensor_type.shape.dim
            if axis < len(dims) and dims[axis].HasField("dim_value"):
                dims[axis].dim_value = int(alive[channels].sum())
            elif axis < len(dims) and dims[axis].dim_param and not alive[channels].all():
                # "4*batch" says how many heads there were; ONNX Runtime reuses buffers of tensors whose axes have the same name.
                dims[axis].Clear()
    for value in model.graph.value_info:
        stored = graph.stored(value.name) if value.name in graph.constants else None
        if stored is not None and stored.parameter in removed:
            _restate_constant(stored, removed[stored.parameter], value)


def _restate_constant(stored: Stored, gone: Mapping[str, list[int]], value: onnx.ValueInfoProto) -> None:
    """The same for value_info of a parameter that was cut in place, maybe behind Identity, Unsqueeze or Transpose."""
    dims = value.type.tensor_type.shape.dim
    for axis, dim in zip(stored.axes, dims, strict=False):
        if dim.HasField("dim_value"):
            dim.dim_value -= len(gone.get(str(axis), []))
