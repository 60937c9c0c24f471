"""The masked twin: the original model with the weights that read the removed channels set to zero. Same shapes, same function."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.graph import surgeon
from onnxprune.graph.quantised import zero
from onnxprune.graph.structure import Graph
from onnxprune.network import Bools, Network, Slot
from onnxprune.rewrite.cut import as_read, cut, free_name, replace_numbers
from onnxprune.rewrite.fill import fill

Place = tuple[int, int]


def masked_twin(graph: Graph, network: Network, alive: Bools) -> onnx.ModelProto:
    """Readers' weights alone are touched: whatever flows in a removed channel, nothing reads it any more.

    Some channels are zero from the start instead: those that would have a say in the scale by which all are quantised at run time
    (Network.measured). Integers that stand for numbers are set to their zero point. Norms that channels go through, and products
    of activations that are summed over them (the width of attention heads), look at zeros or means in their place (rewrite.fill).
    """
    model = cut(graph, network, np.ones_like(alive)).model
    stored = {t.name: t for t in model.graph.initializer}
    read = np.zeros_like(alive)
    for slot in network.slots:
        if slot.role == "reads":
            read[slot.channels] = True
    for total in network.sums:
        read[network.tensor_channels[graph.input(total.node, total.inputs[0])][total.axes[0]]] = True
    read[network.measured] = False
    values: dict[tuple[str, Place | None], NDArray[Any]] = {}
    for slot in network.slots:
        touched = ~alive[slot.channels] if slot.role == "reads" else ~(alive | read)[slot.channels]
        dead = np.flatnonzero(touched)
        if not len(dead) or slot.role == "scales" or _divides(graph, slot):
            continue
        shared = len(graph.end_users(slot.parameter)) > 1 or graph.exposed(slot.parameter) or slot.parameter not in stored
        key = slot.parameter, graph.place(slot.node, slot.input, slot.parameter) if shared else None
        if key not in values:
            values[key] = graph.array(slot.parameter).copy()
        where = (slice(None),) * slot.axis + (dead,)
        values[key][where] = _silence(graph, network, slot.parameter)[where]
    for (name, place), value in values.items():
        if place is None:
            replace_numbers(stored[name], stored[name], value)
            continue
        # One copy per reader: users of a shared weight may lose different channels.
        own = free_name(f"{name}@{graph.label(place[0])}@masked", {*stored, *graph.producer, *graph.inputs})
        turned = as_read(graph, graph.input(*place), name, value)
        stored[own] = surgeon.add_initializer(model, numpy_helper.from_array(np.ascontiguousarray(turned), own))
        model.graph.node[place[0]].input[place[1]] = own
    fill(graph, network, alive, model)
    return model


def _silence(graph: Graph, network: Network, name: str) -> NDArray[Any]:
    """What stands for zero, position by position."""
    kind = graph.array(name).dtype
    shape = tuple(graph.parameters[name].dims)
    found = network.quantised.get(name)
    return np.broadcast_to(np.zeros((), kind) if found is None else zero(graph, name, found).astype(kind), shape)


def _divides(graph: Graph, slot: Slot) -> bool:
    """A channel that is zero before it is divided stays zero; a divisor of zero would make it NaN."""
    return slot.role == "follows" and graph.nodes[slot.node].op_type == "Div" and slot.input == 1
