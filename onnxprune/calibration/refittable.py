"""Which layers are refitted: those that lost weights or whose input changed, and which of these cannot be, with the reason."""

from __future__ import annotations

from collections.abc import Set

from onnxprune.calibration.segments import reads
from onnxprune.graph.structure import Graph
from onnxprune.matrix import fan_in
from onnxprune.network import Bools, Layer, Network

# A layer with more inputs is not refitted on a mask: the sums of products of its inputs would be gigabytes.
WIDEST = 8192
Chosen = tuple[list[Layer], dict[str, str]]


def behind_channels(graph: Graph, network: Network, alive: Bools, broken: Set[str] = frozenset()) -> Chosen:
    """Layers that read fewer channels or other values than the original's, in order, and those left out.

    broken   weights that hold no numbers: nothing can be fitted to what they give
    """
    touched = {s.node for s in network.slots if not alive[s.channels].all()}
    changed, spoilt = _changed(graph, touched), _changed(graph, reading(graph, broken))
    found, left = [], {}
    for layer in network.layers:
        if layer.input not in changed:
            continue
        if why := _never(layer, spoilt):
            left[layer.name] = why
        else:
            found.append(layer)
    known = {layer.node for layer in network.layers}
    for slot in network.slots:
        if slot.role == "reads" and slot.node not in known and not alive[slot.channels].all():
            left[graph.label(slot.node)] = f"{graph.nodes[slot.node].op_type} is not refitted"
    return found, left


def behind_weights(
    graph: Graph, network: Network, altered: Set[int], broken: Set[int] = frozenset(), *, fixed: Set[int] = frozenset()
) -> Chosen:
    """Layers with other weights (`altered`: numbers of nodes) or that read what these give, in order, and those left out.

    broken  nodes with weights that hold no numbers: nothing can be fitted to what they give
    fixed   of the altered nodes those that keep their new weights
    """
    changed, spoilt = _changed(graph, altered), _changed(graph, broken)
    known = {layer.node: layer for layer in network.layers}
    found: list[Layer] = []
    left: dict[str, str] = {}
    for index, node in enumerate(graph.nodes):
        if index in fixed or not (index in altered or not changed.isdisjoint(reads(graph, index))):
            continue
        layer = known.get(index)
        if layer is None:
            # What only turns a weight around is no layer: the one that reads it is refitted.
            if index in altered and any(o and o not in graph.constants for o in node.output):
                left[graph.label(index)] = f"{node.op_type} is not refitted"
        elif why := _never(layer, spoilt) or _too_wide(layer):
            left[layer.name] = why
        else:
            found.append(layer)
    return found, left


def reading(graph: Graph, parameters: Set[str]) -> set[int]:
    """The nodes that read one of these stored parameters, as it is or turned around."""
    return {
        index
        for index in range(len(graph.nodes) if parameters else 0)
        for name in reads(graph, index)
        if name in graph.constants and (stored := graph.stored(name)) is not None and stored.parameter in parameters
    }


def _changed(graph: Graph, altered: Set[int]) -> set[str]:
    """Tensors that these nodes give, and all that is made of them."""
    changed: set[str] = set()
    for index, node in enumerate(graph.nodes):
        if index in altered or not changed.isdisjoint(reads(graph, index)):
            changed.update(o for o in node.output if o)
    return changed


def _never(layer: Layer, spoilt: Set[str]) -> str:
    """Why a layer cannot be refitted; empty where it can. spoilt: tensors that may hold no numbers."""
    if layer.output in spoilt or (layer.residual is not None and layer.residual.other in spoilt):
        return "weights before it or its own hold NaN or infinity"
    if layer.shared:
        return "its weights are shared with another layer"
    return "its weights are quantised" if layer.quantised else ""


def _too_wide(layer: Layer) -> str:
    return f"it has more than {WIDEST:,} inputs" if fan_in(layer) > WIDEST else ""
