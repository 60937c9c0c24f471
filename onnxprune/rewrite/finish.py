"""Last touches on a cut model: reweighing, provenance, and the removal of what nothing reads any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.contract import ChannelPlan
from onnxprune.graph import surgeon
from onnxprune.graph.structure import Graph
from onnxprune.network import Bools, Network
from onnxprune.rewrite.cut import Cut, as_read, free_name, replace_numbers

User = tuple[int, int]
Factors = dict[int, NDArray[np.float64]]


def reweigh(made: Cut, graph: Graph, network: Network, plans: Mapping[str, ChannelPlan]) -> dict[str, str]:
    """Multiply the readers' weights of every kept channel by the plan's factor, in place; nobody else's weights change.

    Returns the layers that were left as they are, with the reason.
    """
    left: dict[str, str] = {}
    factors, alive = _factors(network, plans)
    readers: dict[str, dict[User, Factors]] = {}
    for slot in network.slots:
        factor = factors[slot.channels[alive[slot.channels]]]
        if slot.role != "reads" or (factor == 1).all():
            continue
        if slot.parameter in network.quantised:
            # A factor per input would need a scale per input, or new integers that round and overflow.
            left[graph.label(slot.node)] = "its weights are quantised"
            continue
        user, axis = (slot.node, slot.input), slot.axis
        name = made.renamed.get(user, slot.parameter)
        read = graph.stored(graph.nodes[slot.node].input[slot.input])
        if name != slot.parameter and read is not None:
            axis = read.axes.index(slot.axis)
        readers.setdefault(name, {}).setdefault(user, {})[axis] = factor
    stored = {t.name: t for t in made.model.graph.initializer}
    for node in made.model.graph.node:
        if node.op_type == "Constant" and node.output[0] in graph.parameters:
            stored.setdefault(node.output[0], node.attribute[0].t)
    for name, users in readers.items():
        _scale_readers(made, graph, stored, name, users)
    return left


def _factors(network: Network, plans: Mapping[str, ChannelPlan]) -> tuple[NDArray[np.float64], Bools]:
    """The factor of every channel, and which channels are there."""
    factors = np.ones(network.channel_count)
    alive = np.ones(network.channel_count, bool)
    for name, plan in plans.items():
        ids, keep = network.group[name].ids, plan.keep.numpy(force=True)
        alive[ids] = False
        alive[ids[keep]] = True
        if plan.scale is not None:
            factors[ids[keep]] = plan.scale.numpy(force=True)
    return factors, alive


def _scale_readers(
    made: Cut, graph: Graph, stored: dict[str, onnx.TensorProto], name: str, users: Mapping[User, Factors]
) -> None:
    """In place where all that use the weight read it with the same factors; else each reader gets a clone."""
    clone = name not in graph.parameters
    everyone = made.renamed if clone else dict.fromkeys(graph.end_users(name))
    others = {u for u in everyone if made.renamed.get(u, name) == name} - set(users)
    first = next(iter(users.values()))
    alike = all(_equal(first, factors) for factors in users.values())
    if alike and not others and (clone or not graph.exposed(name)):
        replace_numbers(stored[name], stored[name], _scaled(stored[name], first))
        return
    for (node, position), factors in users.items():
        value = _scaled(stored[name], factors)
        if not clone:
            value = as_read(graph, graph.nodes[node].input[position], name, value)
        own = free_name(f"{name}@{graph.label(node)}", {*stored, *graph.producer, *graph.inputs})
        stored[own] = surgeon.add_initializer(made.model, numpy_helper.from_array(np.ascontiguousarray(value), own))
        made.model.graph.node[node].input[position] = own
        made.renamed[node, position] = own
        if name in made.removed:
            made.removed[own] = made.removed[name]


def _equal(a: Factors, b: Factors) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[axis], b[axis]) for axis in a)


def _scaled(tensor: onnx.TensorProto, factors: Factors) -> NDArray[Any]:
    value = numpy_helper.to_array(tensor)
    kind = value.dtype
    for axis, factor in factors.items():
        value = value * factor.reshape([-1 if a == axis else 1 for a in range(value.ndim)])
    return np.asarray(value.astype(kind))


def finish(model: onnx.ModelProto, graph: Graph, provenance: Mapping[str, str]) -> None:
    """Drop what the rewrite left without a reader, and write down where the model comes from. In place."""
    read = {name for node in graph.nodes for name in node.input}
    surgeon.clean(model, {name for name in graph.constants if name in read})
    known = {entry.key: entry for entry in model.metadata_props}
    for key, value in provenance.items():
        if key in known:
            known[key].value = value
        else:
            model.metadata_props.add(key=key, value=value)
