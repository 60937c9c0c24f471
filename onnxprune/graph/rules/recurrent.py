"""Recurrent layers: LSTM, GRU and RNN. Their hidden units are channels, with one row for every gate, that read themselves."""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.graph.labels import Flow, Resizer, rule
from onnxprune.graph.rules.stand_ins import MICROSOFT, of_integers
from onnxprune.network import Ints, Quantised

# Positions of the inputs: W (directions, gates * units, inputs), R (the same, units), B (directions, 2 * gates * units) ...
WEIGHTS, RECURRENCE, BIAS, LENGTHS, PEEPHOLES = 1, 2, 3, 4, 7
# ... and where weights of integers are quantised by themselves, scale and zero point of W, then of R.
SCALES = {WEIGHTS: 8, RECURRENCE: 10}


def _resize_hidden(edit: Resizer, index: int) -> None:
    """As many units as the recurrence weights that are left read."""
    shape = edit.stored_shape(index, RECURRENCE)
    units = min(shape[1:])
    if units != min(edit.graph.shapes[edit.graph.input(index, RECURRENCE)][1:]):
        edit.set_attribute(index, "hidden_size", units)


@rule("GRU", "LSTM", "RNN", resize=_resize_hidden, note="hidden units; both directions lose the same ones")
def recurrent(flow: Flow, index: int) -> None:
    _recur(flow, index, rows=1)


@rule(
    "DynamicQuantizeLSTM", domain=MICROSOFT, resize=_resize_hidden,
    shape=of_integers("LSTM", (0, 1, 2), None, "direction", "hidden_size"), note="as LSTM; scales and zero points follow",
)  # fmt: skip
def quantized_lstm(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    units = _recur(flow, index, rows=2)
    if units is None:
        return
    # Inputs and states are quantised at run time, with scales that depend on all of them.
    flow.measured += [*flow.labels(node.input[0]).values(), units]
    for position, at in SCALES.items():
        stored = graph.stored(node.input[position])
        if stored is None or not all(n in graph.constants for n in node.input[at : at + 2]):
            flow.pin(units, node.input[at], f"{graph.label(index)!r} takes the scales of its weights from the graph")
            continue
        axes = tuple(a for a in (0, 2)[: len(graph.shapes[node.input[at]])])
        flow.quantised[stored.parameter] = Quantised((node.input[at],), node.input[at + 1], axes)
        for scale in (at, at + 1):
            flow.scale(index, scale, node.input[scale], 1, np.tile(units, 4))


def _recur(flow: Flow, index: int, rows: int) -> Ints | None:
    """The labels of the units; None where the weights are no constants. `rows`: the axis of W and R along which the gates lie."""
    graph = flow.graph
    node = graph.nodes[index]
    x, w, r = node.input[0], node.input[WEIGHTS], node.input[RECURRENCE]
    if w not in graph.constants or r not in graph.constants:
        for name in node.input:
            flow.pin_all(name, f"the weights of {graph.label(index)!r} are computed at run time")
        return None
    for axis, labels in flow.labels(x).items():
        if axis == 2:
            flow.parameter(index, WEIGHTS, 3 - rows, "reads", labels)
        else:
            flow.pin(labels, x, f"{graph.label(index)!r} steps along these channels")
    units, gates = flow.fresh(graph.shapes[r][3 - rows]), graph.shapes[r][rows] // graph.shapes[r][3 - rows]
    flow.mark(units, "recurrent")
    flow.parameter(index, WEIGHTS, rows, "makes", np.tile(units, gates))
    flow.parameter(index, RECURRENCE, rows, "makes", np.tile(units, gates))
    flow.parameter(index, RECURRENCE, 3 - rows, "reads", units)
    for position in range(BIAS, min(len(node.input), PEEPHOLES + 1)):
        if node.input[position] and position != LENGTHS:
            _state(flow, index, position, units)
    for output in node.output:
        if output:
            # Whatever `layout` says, units come last. The axis of directions carries nothing: both have the same labels.
            flow.give(output, {len(graph.shapes[output]) - 1: units})
    steps = prod(graph.shapes[x][:2])
    flow.work += [(index, position, steps * prod(graph.shapes[node.input[position]])) for position in (WEIGHTS, RECURRENCE)]
    return units


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
