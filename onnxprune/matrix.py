"""A layer as a matrix: weights <-> (groups, out, in), activations -> rows. The only im2col in the house.

in = channels per group * kernel positions, channels first, as ONNX stores convolution weights. ConvTranspose is the convolution
of its zero-stuffed input with the mirrored kernel, so that it has the same form.
"""

from __future__ import annotations

from itertools import product
from math import prod

import torch
from torch import Tensor

from onnxprune.network import Layer

# Layers whose weight is (directions, gates * units, inputs): a direction is a group.
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def group_count(layer: Layer, weight_shape: tuple[int, ...]) -> int:
    """Groups of the layer once its weight has this shape: fewer where whole groups went (of a depthwise layer: channels)."""
    if layer.op in RECURRENT:
        return layer.groups
    if layer.groups == 1 or not layer.op.startswith("Conv"):
        return 1
    depthwise = layer.weight_shape[1] == 1 if layer.op == "Conv" else layer.weight_shape[0] == layer.groups
    return weight_shape[0] * layer.groups // layer.weight_shape[0] if depthwise or layer.whole_groups else layer.groups


def fan_in(layer: Layer) -> int:
    """Inputs that one output sums over: the width of the layer's matrix."""
    shape = layer.weight_shape
    if layer.op == "ConvTranspose":
        return shape[0] // layer.groups * prod(shape[2:])
    if layer.op == "Conv":
        return prod(shape[1:])
    if layer.op in RECURRENT:
        return shape[2]
    return shape[0 if layer.transposed else 1]


def to_matrix(layer: Layer, weight: Tensor) -> Tensor:
    """(groups, out, in) of a stored weight, a Gemm's alpha folded in."""
    groups = group_count(layer, tuple(weight.shape))
    if layer.op == "ConvTranspose":
        spatial = tuple(range(2, weight.ndim))
        mirrored = weight.flip(spatial).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return mirrored.transpose(1, 2).reshape(groups, weight.shape[1], -1)
    if layer.op == "Conv":
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    if layer.op in RECURRENT:
        return weight
    return (weight.T if layer.transposed else weight)[None] * layer.scale


def from_matrix(layer: Layer, matrix: Tensor, weight_shape: tuple[int, ...]) -> Tensor:
    """The stored form of a matrix; the inverse of to_matrix."""
    if layer.op == "ConvTranspose":
        groups, out = matrix.shape[:2]
        kernel = weight_shape[2:]
        blocks = matrix.reshape(groups, out, -1, prod(kernel)).transpose(1, 2)
        return blocks.reshape(weight_shape).flip(tuple(range(2, len(weight_shape))))
    if layer.op == "Conv":
        return matrix.reshape(weight_shape)
    if layer.op in RECURRENT:
        return matrix
    flat = matrix[0] / layer.scale
    return (flat.T if layer.transposed else flat).contiguous()


def output_spatial(layer: Layer, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Height, width ... of a convolution's output for an input of this height, width ..."""
    g = layer.geometry
    rank = len(g.kernel)
    sizes = []
    for i, n in enumerate(spatial):
        pads, window = g.pads[i] + g.pads[i + rank], (g.kernel[i] - 1) * g.dilations[i] + 1
        if layer.op == "ConvTranspose":
            sizes.append((n - 1) * g.strides[i] + window - pads + g.output_padding[i])
        else:
            sizes.append((n + pads - window) // g.strides[i] + 1)
    return tuple(sizes)


def positions(layer: Layer, x: Tensor, limit: int, rng: torch.Generator) -> Tensor | None:
    """Which output positions of a batch to look at, about `limit` of them at random, or None for all.

    Convolution: places that all samples of the batch share, as indices into the flat output map; then a whole batch is gathered
    row by row of memory, several times as fast as a place of its own for every sample. Others: flat positions, batch first.
    """
    if layer.op.startswith("Conv"):
        total, limit = prod(output_spatial(layer, tuple(x.shape[2:]))), -(-limit // max(len(x), 1))
    elif layer.op in RECURRENT:
        total = x.numel() // (x.shape[-1] * (layer.groups if x.ndim == 4 else 1))
    else:
        total = x.numel() // x.shape[_input_axis(layer, x)]
    return _some(total, limit, rng, x)


def _some(total: int, limit: int, rng: torch.Generator, like: Tensor) -> Tensor | None:
    """`limit` of `total` numbers, rising, so that they are read in the order of memory; None for all."""
    if total <= limit:
        return None
    return torch.randperm(total, generator=rng)[:limit].sort().values.to(like.device)


def rows(layer: Layer, x: Tensor, groups: int, chosen: Tensor | None) -> Tensor:
    """What each output position reads: (positions, groups, in), sample by sample. `chosen` as from `positions`.

    Only the chosen positions are gathered, straight from the channels-first layout: no padded or reordered copy of x is made.
    Of a recurrent layer a position is one step of one sample; hidden states differ from direction to direction, inputs do not.
    The result of a convolution lies in memory as (groups, in, positions), which products of it do not mind.
    """
    if layer.op in RECURRENT:
        steps = x.transpose(1, 2).flatten(0, 1) if x.ndim == 4 else x.flatten(0, 1)[:, None].expand(-1, groups, -1)
        return steps if chosen is None else steps[chosen]
    if not layer.op.startswith("Conv"):
        flat = x.movedim(_input_axis(layer, x), -1).reshape(-1, x.shape[_input_axis(layer, x)])
        return (flat if chosen is None else flat[chosen])[:, None]
    samples, channels = x.shape[:2]
    out = output_spatial(layer, tuple(x.shape[2:]))
    place = _unravel(torch.arange(prod(out), device=x.device) if chosen is None else chosen, out)
    taps = list(product(*(range(k) for k in layer.geometry.kernel)))
    found = [_source(layer, place, tap, tuple(x.shape[2:])) for tap in taps]
    if len(taps) == 1 and bool(found[0][1].all()):
        return _pixels(x, found[0][0]).T.reshape(groups, -1, samples * len(place[0])).permute(2, 0, 1)
    # All samples of a channel side by side, a zero behind them for the padding: then one index reads every tap of every sample.
    size = prod(x.shape[2:])
    flat = x.new_zeros((channels, samples * size + 1), dtype=torch.promote_types(x.dtype, torch.float32))
    flat[:, :-1].view(channels, samples, size).copy_(x.reshape(samples, channels, size).transpose(0, 1))
    starts = size * torch.arange(samples, device=x.device)[:, None]
    index = torch.stack([torch.where(inside, starts + where, samples * size) for where, inside in found])
    return flat.index_select(1, index.flatten()).reshape(groups, -1, samples * len(place[0])).permute(2, 0, 1)


def _unravel(index: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """Flat positions as one coordinate per axis."""
    found = []
    for size in reversed(sizes):
        found.append(index % size)
        index = index // size
    return found[::-1]


def _source(layer: Layer, place: list[Tensor], tap: tuple[int, ...], spatial: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Flat input position that kernel position `tap` of each output position reads; whether there is one or padding.

    ConvTranspose reads backwards: output o takes input (o + pad - tap * dilation) / stride where that is whole; its kernel is
    mirrored (see the top of this file), so `tap` counts from the far end.
    """
    g = layer.geometry
    flat = torch.zeros_like(place[0])
    inside = torch.ones_like(place[0], dtype=torch.bool)
    for axis, at in enumerate(place):
        if layer.op == "ConvTranspose":
            reach = at + g.pads[axis] - (g.kernel[axis] - 1 - tap[axis]) * g.dilations[axis]
            inside &= reach % g.strides[axis] == 0
            coordinate = torch.div(reach, g.strides[axis], rounding_mode="floor")
        else:
            coordinate = at * g.strides[axis] - g.pads[axis] + tap[axis] * g.dilations[axis]
        inside &= (coordinate >= 0) & (coordinate < spatial[axis])
        flat = flat * spatial[axis] + coordinate.clamp(0, spatial[axis] - 1)
    return flat, inside


def outputs(layer: Layer, y: Tensor, chosen: Tensor | None) -> Tensor:
    """The same positions of an output: (positions, out)."""
    if layer.op.startswith("Conv"):
        return _pixels(y, chosen)
    axis = _input_axis(layer, y)
    flat = y.movedim(axis, -1).reshape(-1, y.shape[axis])
    return flat if chosen is None else flat[chosen]


def _pixels(y: Tensor, chosen: Tensor | None) -> Tensor:
    """(positions, channels) of a channels-first tensor, sample by sample, at the same places of each."""
    flat = y.reshape(*y.shape[:2], -1)
    if chosen is not None:
        flat = torch.gather(flat, 2, chosen.expand(*y.shape[:2], -1))
    return flat.transpose(1, 2).reshape(-1, y.shape[1])


def channel_rows(layer: Layer, x: Tensor, limit: int, rng: torch.Generator) -> Tensor:
    """Input positions, one channel vector each: (positions, channels), about `limit` of them at random."""
    if layer.op.startswith("Conv"):
        return _pixels(x, _some(prod(x.shape[2:]), -(-limit // max(len(x), 1)), rng, x))
    return outputs(layer, x, _some(x.numel() // x.shape[_input_axis(layer, x)], limit, rng, x))


def _input_axis(layer: Layer, x: Tensor) -> int:
    """The axis that a Gemm or MatMul contracts (and, in its output, the one that it makes)."""
    return x.ndim - 2 if layer.side == "left" else x.ndim - 1
