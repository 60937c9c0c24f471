"""What the methods get to see: for each group the weights that make and read its channels, and the statistics asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from onnxprune.contract import Activation, ChannelView, Maker, Reader, Statistic
from onnxprune.errors import ModelError
from onnxprune.graph.quantised import real
from onnxprune.graph.structure import Graph
from onnxprune.network import Group, Layer, Member, Network, Quantised

Statistics = Mapping[tuple[str, type[Statistic]], Statistic]


def channel_views(
    graph: Graph, network: Network, groups: Sequence[Group], statistics: Statistics, device: str
) -> list[ChannelView]:
    """One view per group, tensors in float32 on `device`."""
    by_node = {layer.node: layer for layer in network.layers}
    return [_view(graph, network, group, by_node, statistics, device) for group in groups]


def _view(
    graph: Graph, network: Network, group: Group, by_node: Mapping[int, Layer], statistics: Statistics, device: str
) -> ChannelView:
    makers, readers, activation = [], [], Activation()
    for member in group.members:
        slot = network.slots[member.slot]
        layer = by_node.get(slot.node)
        if slot.role not in ("makes", "reads") or (layer is not None and slot.parameter != layer.weight):
            continue
        weight = tensor(graph, slot.parameter, device, network.quantised)
        if layer is None:
            rows = weight.movedim(slot.axis, 0).reshape(weight.shape[slot.axis], -1)  # a vector has no second axis
            if slot.role == "makes":
                makers.append(_bare_maker(slot.parameter, rows, member))
            else:
                readers.append(Reader(slot.parameter, rows, torch.from_numpy(member.positions).to(device)))
        elif slot.role == "makes":
            makers.append(_maker(graph, network, layer, weight, slot.axis, member, device))
            activation = _loosest(activation, Activation(*layer.activation)) if len(makers) > 1 else Activation(*layer.activation)
        else:
            readers.append(_reader(layer, weight, slot.axis, member, device))
    names = {m.layer for m in makers} | {r.layer for r in readers}
    own = {key: value for key, value in statistics.items() if key[0] in names}
    return ChannelView(group.name, group.size, tuple(makers), tuple(readers), activation, own)


def _bare_maker(name: str, rows: Tensor, member: Member) -> Maker:
    """Weights of a node that is no layer (recurrent gates, an embedding): its rows alone, without bias."""
    where = torch.from_numpy(member.positions)
    return Maker(name, rows[where].reshape(len(where), -1), torch.zeros(len(where), device=rows.device))


def _loosest(a: Activation, b: Activation) -> Activation:
    """One activation for a sum of several layers: the common one, else the identity, which bounds all of them."""
    return a if a == b else Activation()


def tensor(graph: Graph, name: str, device: str, quantised: Mapping[str, Quantised] = MappingProxyType({})) -> Tensor:
    """A parameter in float32, or what its integers stand for.

    Raises ModelError where it holds no numbers: what is ranked by them would be ranked by chance.
    """
    value = torch.from_numpy(real(graph, name, quantised).astype("float32"))
    if not bool(torch.isfinite(value).all()):
        raise ModelError(f"weight {name!r} holds NaN or infinity", "train or export the model again")
    return value.to(device)


def _maker(graph: Graph, network: Network, layer: Layer, weight: Tensor, axis: int, member: Member, device: str) -> Maker:
    """Rows by output channel. Batch norm behind the layer is folded in, here only: the file keeps it."""
    where = torch.from_numpy(member.positions)
    if member.block is not None:  # a grouped ConvTranspose: its blocks lie along axis 0
        weight = weight.chunk(member.block[1])[member.block[0]]
    made = weight.movedim(axis, 0).flatten(1) * layer.scale
    length = len(made)
    bias = torch.zeros(length, device=device)
    if layer.bias is not None:
        # A grouped ConvTranspose has several biases per stored position; their norm stands for them.
        stored = tensor(graph, layer.bias, device, network.quantised).reshape(-1, length) * layer.bias_scale
        stored = stored if member.block is None else stored[member.block[0] :][:1]
        bias = stored[0] if len(stored) == 1 else torch.linalg.vector_norm(stored, dim=0)
    scale = None
    if layer.batch_norm is not None and graph.shapes[graph.nodes[layer.batch_norm].input[1]] == (length,):
        factor, shift, gamma = batch_norm(graph, layer.batch_norm, device)
        made, bias, scale = made * factor[:, None], bias * factor + shift, gamma
    count = where.shape[1]
    rows = made[where].reshape(len(where), -1)
    biases = bias[where]
    return Maker(
        layer.name,
        rows,
        biases[:, 0] if count == 1 else torch.linalg.vector_norm(biases, dim=1),
        None if scale is None else scale[where].abs().sum(1),
    )


def batch_norm(graph: Graph, node: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """y = factor * x + shift per channel, and gamma."""
    gamma, beta, mean, variance = (
        tensor(graph, stored.parameter, device) for n in graph.nodes[node].input[1:5] if (stored := graph.stored(n)) is not None
    )
    factor = gamma / torch.sqrt(variance + float(graph.attribute(node, "epsilon", 1e-5)))
    return factor, beta - mean * factor, gamma


def _reader(layer: Layer, weight: Tensor, axis: int, member: Member, device: str) -> Reader:
    """(inputs, outputs * kernel positions): one row for every channel of the layer's input, groups laid side by side."""
    if layer.op == "ConvTranspose":  # its rows are those of the convolution with the mirrored kernel
        weight = weight.flip(tuple(range(2, weight.ndim)))
    columns = weight.movedim(axis, 0).flatten(1) * layer.scale
    where = torch.from_numpy(member.positions)
    if layer.op == "Conv" and layer.groups > 1:
        out, per_group = weight.shape[:2]
        apart = weight.reshape(layer.groups, out // layer.groups, per_group, -1).permute(0, 2, 1, 3)
        columns = apart.reshape(layer.groups * per_group, -1)
        blocks = range(layer.groups) if member.block is None else member.block[:1]
        where = torch.cat([where + g * per_group for g in blocks], 1)
    return Reader(layer.name, columns, where.to(device))
