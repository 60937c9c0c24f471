"""The masked twin: the original model with the weights that read the removed channels set to zero. Same shapes, same function."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.graph import surgeon
from onnxprune.graph.structure import Graph
from onnxprune.network import Bools, Network, Slot
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.fill import fill


def masked_twin(graph: Graph, network: Network, alive: Bools) -> onnx.ModelProto:
    """Readers' weights alone are touched: whatever flows in a removed channel, nothing reads it any more.

    Channels that no weights read, because two activations are multiplied over them (the width of attention heads), are zero from
    the start instead. Norms that channels go through look at zeros or means in their place (rewrite.fill).
    """
    model = cut(graph, network, np.ones_like(alive)).model
    stored = {t.name: t for t in model.graph.initializer}
    read = np.zeros_like(alive)
    for slot in network.slots:
        if slot.role == "reads":
            read[slot.channels] = True
    for slot in network.slots:
        touched = ~alive[slot.channels] if slot.role == "reads" else ~(alive | read)[slot.channels]
        dead = np.flatnonzero(touched)
        if not len(dead):
            continue
        name = slot.parameter
        if len(graph.end_users(name)) > 1 or graph.exposed(name) or name not in stored:
            # One copy per reader: users of a shared weight may lose different channels.
            name = f"{slot.parameter}@{graph.label(slot.node)}@masked"
            if name not in stored:
                stored[name] = surgeon.add_initializer(model, numpy_helper.from_array(_as_read(graph, slot), name))
                model.graph.node[slot.node].input[slot.input] = name
        value = numpy_helper.to_array(stored[name]).copy()
        value[(slice(None),) * _axis(graph, slot, name) + (dead,)] = 0
        stored[name].CopyFrom(numpy_helper.from_array(value, name))
    fill(graph, network, alive, model)
    return model


def _as_read(graph: Graph, slot: Slot) -> NDArray[Any]:
    """The value as the node reads it, behind any Transpose or Unsqueeze."""
    value = graph.array(slot.parameter)
    stored = graph.stored(graph.nodes[slot.node].input[slot.input])
    if stored is None or value.ndim != 2 or stored.axes == (0, 1):
        return value
    return value.T


def _axis(graph: Graph, slot: Slot, name: str) -> int:
    """The slot's axis in the copy that stands under `name`."""
    stored = graph.stored(graph.nodes[slot.node].input[slot.input])
    return slot.axis if name == slot.parameter or stored is None else stored.axes.index(slot.axis)
