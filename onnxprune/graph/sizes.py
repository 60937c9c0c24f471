"""Channel counts on their way through shape arithmetic.

`Shape` reads how many channels there are; after the cut it reads fewer. That is right where the number ends as the stated length
of the same channels (the target of Reshape, the sizes of Resize), and wrong anywhere else: 1/sqrt(channels) would change its
value. So counts are followed through the operators that only move numbers, and everything else that reads one pins its channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.arithmetic import compute
from onnxprune.graph.facts import MOVE
from onnxprune.graph.labels import Flow, Resizer
from onnxprune.graph.structure import Graph
from onnxprune.network import Ints

# Input of an operator that states lengths of its output: its rule looks at the counts itself.
STATE = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Resize": 3}


def read(flow: Flow, index: int) -> None:
    """The rule of Shape."""
    graph = flow.graph
    node = graph.nodes[index]
    rank = len(graph.shapes[node.input[0]])
    counts = np.full(rank, -1, np.int64)
    for axis, labels in flow.labels(node.input[0]).items():
        counts[axis] = len(flow.counted)
        flow.counted.append(labels)
    counts = counts[slice(graph.attribute(index, "start", 0), graph.attribute(index, "end", rank))]
    if (counts >= 0).any():
        flow.sizes[node.output[0]] = counts


def follow(flow: Flow, index: int) -> bool:
    """Whether the node reads channel counts and does nothing but move them. One that computes with them pins their channels."""
    node = flow.graph.nodes[index]
    carrying = [position for position, name in enumerate(node.input) if name in flow.sizes]
    if not carrying:
        return False
    if node.op_type in MOVE and node.domain in ("", "ai.onnx") and (carrying == [0] or node.op_type == "Concat"):
        moved = _moved(flow, index)
        if moved is not None:
            flow.sizes[node.output[0]] = moved
            return True
    if node.op_type == "Mul" and len(carrying) == 1 and _multiplied(flow, index, carrying[0]):
        return True
    for position in carrying:
        if STATE.get(node.op_type) != position:
            pin_counts(flow, node.input[position], f"{flow.graph.label(index)!r} computes with the size of these channels")
    return False


def _multiplied(flow: Flow, index: int, position: int) -> bool:
    """Channels counted several times (key/value heads * repeats) are as many positions of the same channels in a row."""
    graph, node = flow.graph, flow.graph.nodes[index]
    factor = graph.values.get(node.input[1 - position]) if node.input[1 - position] in graph.constants else None
    if factor is None or factor.size != 1 or factor.dtype.kind != "i" or factor.reshape(-1)[0] < 1:
        return False
    counts = flow.sizes[node.input[position]].copy()
    for entry in np.flatnonzero(counts.reshape(-1) >= 0):
        flow.counted.append(np.repeat(flow.counted[counts.reshape(-1)[entry]], int(factor.reshape(-1)[0])))
        counts.reshape(-1)[entry] = len(flow.counted) - 1
    flow.sizes[node.output[0]] = counts.reshape(graph.shapes[node.output[0]])
    return True


def _moved(flow: Flow, index: int) -> Ints | None:
    """Where every count went: the node itself is run on their numbers."""
    graph, node = flow.graph, flow.graph.nodes[index]
    if node.op_type in ("Cast", "Identity"):
        return flow.sizes[node.input[0]]
    inputs = {}
    for position, name in enumerate(node.input):
        if name in flow.sizes:
            inputs[name] = flow.sizes[name]
        elif name and node.op_type == "Concat" and name in graph.shapes:
            inputs[name] = np.full(graph.shapes[name], -1, np.int64)
        elif name and position and name in graph.values:
            inputs[name] = graph.values[name]
        elif name:
            return None
    found = compute(node, inputs, graph.facts.opsets)
    return None if found is None else np.asarray(found[0], np.int64)  # None: then the counts are pinned instead


def pin_counts(flow: Flow, tensor: str, reason: str) -> None:
    """The channels counted in `tensor` may not go."""
    for number in np.unique(flow.sizes.get(tensor, np.empty(0, np.int64))):
        if number >= 0:
            flow.pin(flow.counted[number], tensor, reason)


def counted(flow: Flow, tensor: str, entry: int) -> Ints | None:
    """The labels that an entry of a tensor counts, None where it is a plain number."""
    counts = flow.sizes.get(tensor)
    return None if counts is None or counts[entry] < 0 else flow.counted[counts[entry]]


def settle(flow: Flow, index: int, position: int, stated: Mapping[int, int], found: dict[int, Ints]) -> None:
    """Input `position` states lengths of the output: entry stated[axis] that of `axis`.

    An axis keeps its labels in `found` if that entry can be stated anew (it is stored), or counts channels: these are tied to
    them, so that the number stays right. One axis more may be left for Reshape to infer. The labels of other axes are pinned,
    and so are channels whose count is stated for an axis without labels.
    """
    tensor = flow.graph.input(index, position)
    inferred = None
    for axis, entry in stated.items():
        own = counted(flow, tensor, entry)
        labels = found.get(axis)
        if own is not None and labels is not None and len(own) == len(labels):
            flow.tie(own, labels)
            continue
        if labels is not None and place(flow.graph, index, position, entry) is None:
            if inferred is None and _inferable(flow.graph, index, entry):
                inferred = axis
            else:
                flow.pin(
                    found.pop(axis), tensor, f"{flow.graph.label(index)!r} takes the number of these channels from the graph"
                )
        if own is not None:
            flow.pin(own, tensor, f"{flow.graph.label(index)!r} uses the size of these channels for something else")


def place(graph: Graph, index: int, position: int, entry: int) -> tuple[int, int, int] | None:
    """(node, input, entry) that stores an entry of an input: the input itself or a part of the Concat that makes it."""
    name = graph.input(index, position)
    if name in graph.constants:
        return (index, position, entry) if name in graph.values else None
    part = _part(graph, index, position, entry)
    return None if part is None else place(graph, *part)


def _inferable(graph: Graph, index: int, entry: int) -> bool:
    """Whether a Reshape may find this entry out by itself (-1): it is computed (batch * heads), and no other is -1."""
    value = graph.values.get(graph.input(index, 1))
    if graph.nodes[index].op_type != "Reshape" or value is None or (value == -1).any():
        return False
    found = _part(graph, index, 1, entry)
    if found is None or graph.shapes[graph.input(found[0], found[1])] != (1,):
        return False
    return not _read(graph, found[0], found[1])


def _read(graph: Graph, index: int, position: int) -> bool:
    """Whether a size is read from a tensor and only moved about: then it is right by itself."""
    name = graph.input(index, position)
    while name in graph.producer:
        node = graph.nodes[graph.producer[name]]
        if node.op_type == "Shape":
            return True
        if node.op_type not in MOVE:
            return False
        name = node.input[0]
    return False


def _part(graph: Graph, index: int, position: int, entry: int) -> tuple[int, int, int] | None:
    """(Concat, input, entry in it) behind an entry of an input that a Concat of its own makes."""
    name = graph.input(index, position)
    producer = graph.producer.get(name)
    if name in graph.constants or producer is None or graph.nodes[producer].op_type != "Concat" or graph.sole_user(name) is None:
        return None
    for part, source in enumerate(graph.nodes[producer].input):
        length = int(np.prod(graph.shapes[source]))
        if entry < length:
            return producer, part, entry
        entry -= length
    return None


def restate(edit: Resizer, index: int, position: int, wanted: Mapping[int, int]) -> None:
    """Write other numbers into entries of an input, wherever they are stored; entries that follow at run time stay."""
    changed: dict[tuple[int, int], NDArray[Any]] = {}
    for entry, number in wanted.items():
        found = place(edit.graph, index, position, entry)
        if found is None and _inferable(edit.graph, index, entry):
            found, number = _part(edit.graph, index, position, entry), -1
        if found is None:
            continue
        node, at, offset = found
        value = changed.setdefault((node, at), edit.graph.values[edit.graph.input(node, at)].copy())
        value.reshape(-1)[offset] = number
    for (node, at), value in changed.items():
        if (value != edit.graph.values[edit.graph.input(node, at)]).any():
            edit.set_input(node, at, value)
