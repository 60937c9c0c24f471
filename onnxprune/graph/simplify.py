"""Shape arithmetic made plain before the channels are followed: what holds at any size becomes a constant."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import surgeon
from onnxprune.graph.structure import Graph


def simplify(graph: Graph) -> int:
    """Change `graph.model` in place; the function it computes stays the same. Returns how many nodes were concerned."""
    model = graph.model
    changed = surgeon.settle(model, _known_sizes(graph))
    changed += surgeon.restate_inputs(model, _expand_targets(graph))
    return changed + surgeon.part_concats(model)


def _known_sizes(graph: Graph) -> dict[str, NDArray[Any]]:
    """Shape arithmetic that comes out the same whatever the open axes are, with its values."""
    return {
        name: value
        for name, value in graph.values.items()
        if name in graph.producer and name not in graph.constants and bool(graph.fixed[name].all())
    }


def _expand_targets(graph: Graph) -> dict[tuple[str, int], NDArray[np.int64]]:
    """(first output of an Expand, 1) -> a constant target that does the same: 1 where nothing is repeated.

    Exporters compute the target from the shape of what is expanded, to repeat along one axis of known length.
    """
    found: dict[tuple[str, int], NDArray[np.int64]] = {}
    for node in graph.nodes:
        if node.op_type != "Expand" or node.input[1] in graph.constants or node.input[1] not in graph.values:
            continue
        before, after = graph.shapes.get(node.input[0]), graph.shapes.get(node.output[0])
        if before is None or after is None:
            continue
        stated, fixed = graph.values[node.input[1]], graph.fixed[node.input[1]]
        target = np.ones(len(after), np.int64)
        shift, grown = len(after) - len(stated), len(after) - len(before)
        open_axes = graph.open_axes(node.input[0])
        for axis in range(len(after)):
            grows = axis < grown or (before[axis - grown] == 1 and (axis - grown) not in open_axes)
            if not grows or axis < shift:
                continue
            if not fixed[axis - shift]:
                break
            target[axis] = after[axis]
        else:
            found[node.output[0], 1] = target
    return found
