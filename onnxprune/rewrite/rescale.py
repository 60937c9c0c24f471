"""Normalisations that lost channels: what their scale and epsilon are to be multiplied by (the formula is in graph.norms)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod, sqrt

from onnxprune.graph.structure import Graph
from onnxprune.network import Bools, Network, Norm, Place


def kept_along(graph: Graph, network: Network, alive: Bools, norm: Norm) -> dict[int, Bools]:
    """Axis of what the norm looks at -> which positions stay, for the axes that lose some."""
    found: dict[int, Bools] = {}
    tensors = [graph.nodes[norm.node].input[position] for position in norm.inputs]
    rank = max(len(graph.shapes[tensor]) for tensor in tensors)
    for tensor in tensors:
        for axis, channels in network.tensor_channels.get(tensor, {}).items():
            if not alive[channels].all():
                found[axis + rank - len(graph.shapes[tensor])] = alive[channels]
    return found


def share(kept: Mapping[int, Bools], norm: Norm) -> float:
    """m / n: of the positions that one statistic is taken over, the share that stays. All that have any keep the same number."""
    parts = []
    for axis in norm.axes:
        if axis in kept and axis == 1 and norm.groups:
            parts.append(float(kept[axis].reshape(norm.groups, -1).mean(1).max()))
        elif axis in kept:
            parts.append(float(kept[axis].mean()))
    return prod(parts)


def factors(graph: Graph, network: Network, alive: Bools) -> tuple[dict[Place, float], dict[int, float]]:
    """Constant inputs and what they are to be multiplied by; nodes and their new attribute epsilon."""
    inputs: dict[Place, float] = {}
    attributes: dict[int, float] = {}
    for norm in network.norms:
        left = share(kept_along(graph, network, alive, norm), norm)
        if not 0 < left < 1:
            continue
        if norm.scale is not None:
            inputs[norm.scale] = inputs.get(norm.scale, 1.0) / sqrt(left)
        if norm.epsilon is not None:
            inputs[norm.epsilon] = inputs.get(norm.epsilon, 1.0) / left
        if norm.attribute:
            attributes[norm.node] = float(graph.attribute(norm.node, "epsilon", 1e-5)) / left
    return inputs, attributes
