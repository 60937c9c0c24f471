"""Last touches on a cut model: reweighing, provenance, and the removal of what nothing reads any more."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.contract import ChannelPlan
from onnxprune.graph import surgeon
from onnxprune.graph.structure import Graph
from onnxprune.network import Network
from onnxprune.rewrite.cut import Cut


def reweigh(made: Cut, graph: Graph, network: Network, plans: Mapping[str, ChannelPlan]) -> None:
    """Multiply the readers' weights of every kept channel by the plan's factor, in place."""
    stored = {t.name: t for t in made.model.graph.initializer}
    for node in made.model.graph.node:
        if node.op_type == "Constant" and node.output[0] in graph.parameters:
            stored.setdefault(node.output[0], node.attribute[0].t)
    factors = np.ones(network.channel_count)
    alive = np.ones(network.channel_count, bool)
    for name, plan in plans.items():
        ids, keep = network.group[name].ids, plan.keep.numpy(force=True)
        alive[ids] = False
        alive[ids[keep]] = True
        if plan.scale is not None:
            factors[ids[keep]] = plan.scale.numpy(force=True)
    done: set[tuple[str, int]] = set()
    for slot in network.slots:
        name = made.renamed.get((slot.node, slot.input), slot.parameter)
        if slot.role != "reads" or (name, slot.axis) in done:
            continue
        done.add((name, slot.axis))
        factor = factors[slot.channels[alive[slot.channels]]]
        if (factor == 1).all():
            continue
        axis = slot.axis
        read = graph.stored(graph.nodes[slot.node].input[slot.input])
        if name != slot.parameter and read is not None:
            axis = read.axes.index(slot.axis)
        value = numpy_helper.to_array(stored[name])
        shape = [-1 if a == axis else 1 for a in range(value.ndim)]
        stored[name].CopyFrom(numpy_helper.from_array((value * factor.reshape(shape)).astype(value.dtype), name))


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
