"""What stored integers stand for: the numbers that methods rank by, and the integer that means zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.structure import Graph
from onnxprune.network import Quantised


def real(graph: Graph, name: str, quantised: Mapping[str, Quantised]) -> NDArray[Any]:
    """The numbers of a parameter, in float32 where it is stored in integers."""
    value = graph.array(name)
    found = quantised.get(name)
    if found is None:
        return value
    whole = value.astype(np.float32) - zero(graph, name, found).astype(np.float32)
    for scale in found.scales:
        whole = whole * _spread(graph, scale, found, value.shape).astype(np.float32)
    return np.asarray(whole)


def zero(graph: Graph, name: str, found: Quantised) -> NDArray[Any]:
    """The integers that stand for zero, in a shape that broadcasts to that of the parameter."""
    value = graph.parameters[name]
    if not found.zero_point:
        return np.zeros([1] * len(value.dims), np.int32)
    return _spread(graph, found.zero_point, found, tuple(value.dims))


def _spread(graph: Graph, tensor: str, found: Quantised, shape: tuple[int, ...]) -> NDArray[Any]:
    """A scale or zero point: one number, one per position along an axis, or one per block of positions."""
    stored = graph.stored(tensor)
    value = graph.array(stored.parameter) if stored is not None else graph.values[tensor]
    if value.size == 1:
        return value.reshape([1] * len(shape))
    if found.blocked is not None:
        value = value.repeat(found.block, found.blocked).take(np.arange(shape[found.blocked]), found.blocked)
    return value.reshape([shape[a] if a in found.axes else 1 for a in range(len(shape))])
