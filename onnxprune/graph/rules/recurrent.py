"""Recurrent layers: LSTM, GRU and RNN. Their hidden units are channels, with one row for every gate, that read themselves."""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.graph.labels import Flow, Resizer, rule
from onnxprune.network import Ints

# Positions of the inputs: W (directions, gates * units, inputs), R (the same, units), B (directions, 2 * gates * units).
WEIGHTS, RECURRENCE, BIAS, LENGTHS, PEEPHOLES = 1, 2, 3, 4, 7


def _resize_hidden(edit: Resizer, index: int) -> None:
    """As many units as the recurrence weights that are left read."""
    units = edit.stored_shape(index, RECURRENCE)[-1]
    if units != edit.graph.shapes[edit.graph.input(index, RECURRENCE)][-1]:
        edit.set_attribute(index, "hidden_size", units)


@rule("GRU", "LSTM", "RNN", resize=_resize_hidden, note="hidden units; both directions lose the same ones")
def recurrent(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    x, w, r = node.input[0], node.input[WEIGHTS], node.input[RECURRENCE]
    if w not in graph.constants or r not in graph.constants:
        for name in node.input:
            flow.pin_all(name, f"the weights of {graph.label(index)!r} are computed at run time")
        return
    for axis, labels in flow.labels(x).items():
        if axis == 2:
            flow.parameter(index, WEIGHTS, 2, "reads", labels)
        else:
            flow.pin(labels, x, f"{graph.label(index)!r} steps along these channels")
    _, rows, count = graph.shapes[r]
    units = flow.fresh(count)
    flow.mark(units, "recurrent")
    flow.parameter(index, WEIGHTS, 1, "makes", np.tile(units, rows // count))
    flow.parameter(index, RECURRENCE, 1, "makes", np.tile(units, rows // count))
    flow.parameter(index, RECURRENCE, 2, "reads", units)
    for position in range(BIAS, len(node.input)):
        if node.input[position] and position != LENGTHS:
            _state(flow, index, position, units)
    for output in node.output:
        if output:
            # Whatever `layout` says, units come last. The axis of directions carries nothing: both have the same labels.
            flow.give(output, {len(graph.shapes[output]) - 1: units})
    steps = prod(graph.shapes[x][:2])
    flow.work += [(index, position, steps * prod(graph.shapes[node.input[position]])) for position in (WEIGHTS, RECURRENCE)]


def _state(flow: Flow, index: int, position: int, units: Ints) -> None:
    """Biases, peepholes and the states at the start: stored, or brought by the graph along the same channels."""
    graph = flow.graph
    name = graph.input(index, position)
    axis = len(graph.shapes[name]) - 1
    repeats = graph.shapes[name][axis] // len(units)
    if name in graph.constants:
        flow.parameter(index, position, axis, "follows", np.tile(units, repeats))
        return
    labels = flow.labels(name).get(axis)
    if labels is None or repeats > 1:
        labels = flow.need(
            name, axis, graph.shapes[name][axis], f"{graph.label(index)!r} starts from it, and it carries no channels"
        )
    flow.tie(labels, np.tile(units, repeats))
