"""A layer as a matrix: weights <-> (groups, out, in), activations -> rows. The only im2col in the house.

in = channels per group * kernel positions, channels first, as ONNX stores convolution weights. ConvTranspose is the convolution of
its zero-stuffed input with the mirrored kernel, so that it has the same form.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.network import Layer


def group_count(layer: Layer, weight_shape: tuple[int, ...]) -> int:
    """Groups of the layer once its weight has this shape: a depthwise layer has one for each channel that is left."""
    if layer.groups == 1 or not layer.op.startswith("Conv"):
        return 1
    if layer.op == "Conv":
        per_group, channels = layer.weight_shape[1], layer.weight_shape[0]
        return weight_shape[0] * layer.groups // channels if per_group == 1 else layer.groups
    return weight_shape[0] if layer.weight_shape[0] == layer.groups else layer.groups


def to_matrix(layer: Layer, weight: Tensor) -> Tensor:
    """(groups, out, in) of a stored weight, a Gemm's alpha folded in."""
    groups = group_count(layer, tuple(weight.shape))
    if layer.op == "ConvTranspose":
        spatial = tuple(range(2, weight.ndim))
        mirrored = weight.flip(spatial).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return mirrored.transpose(1, 2).reshape(groups, weight.shape[1], -1)
    if layer.op == "Conv":
        return weight.reshape(groups, weight.shape[0] // groups, -1)
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
    """Which output positions of a batch to look at: `limit` of them at random, or None for all."""
    if layer.op.startswith("Conv"):
        total = x.shape[0] * prod(output_spatial(layer, tuple(x.shape[2:])))
    else:
        total = x.numel() // x.shape[_input_axis(layer, x)]
    if total <= limit:
        return None
    return torch.randperm(total, generator=rng)[:limit].to(x.device)


def rows(layer: Layer, x: Tensor, groups: int, chosen: Tensor | None) -> Tensor:
    """What each output position reads: (positions, groups, in). `chosen` as from `positions`."""
    if not layer.op.startswith("Conv"):
        flat = x.movedim(_input_axis(layer, x), -1).reshape(-1, x.shape[_input_axis(layer, x)])
        return (flat if chosen is None else flat[chosen])[:, None]
    out = output_spatial(layer, tuple(x.shape[2:]))
    x, strides = _padded(layer, x)
    flat = x.movedim(1, -1).reshape(-1, x.shape[1])
    spatial = tuple(x.shape[2:])
    index = torch.arange(x.shape[0] * prod(out), device=x.device) if chosen is None else chosen
    base = _start(index, out, spatial, strides)
    taps = [flat[base + offset] for offset in _offsets(layer, spatial)]
    return torch.stack(taps, dim=2).reshape(len(index), groups, -1)


def outputs(layer: Layer, y: Tensor, chosen: Tensor | None) -> Tensor:
    """The same positions of an output: (positions, out)."""
    axis = 1 if layer.op.startswith("Conv") else _input_axis(layer, y)
    flat = y.movedim(axis, -1).reshape(-1, y.shape[axis])
    return flat if chosen is None else flat[chosen]


def channel_rows(layer: Layer, x: Tensor, limit: int, rng: torch.Generator) -> Tensor:
    """Input positions, one channel vector each: (positions, channels), at most `limit` of them at random."""
    axis = 1 if layer.op.startswith("Conv") else _input_axis(layer, x)
    flat = x.movedim(axis, -1).reshape(-1, x.shape[axis])
    if len(flat) > limit:
        flat = flat[torch.randperm(len(flat), generator=rng)[:limit].to(flat.device)]
    return flat


def _input_axis(layer: Layer, x: Tensor) -> int:
    """The axis that a Gemm or MatMul contracts (and, in its output, the one that it makes)."""
    return x.ndim - 2 if layer.side == "left" else x.ndim - 1


def _padded(layer: Layer, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The input with its border of zeros, and the strides with which windows start; ConvTranspose zero-stuffed, stride 1."""
    g = layer.geometry
    rank = len(g.kernel)
    begins, ends, strides = list(g.pads[:rank]), list(g.pads[rank:]), g.strides
    if layer.op == "ConvTranspose":
        sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], g.strides, strict=True)]
        stuffed = x.new_zeros(*x.shape[:2], *sizes)
        stuffed[(slice(None), slice(None), *(slice(None, None, s) for s in g.strides))] = x
        reach = [(k - 1) * d for k, d in zip(g.kernel, g.dilations, strict=True)]
        begins = [r - b for r, b in zip(reach, begins, strict=True)]
        ends = [r - e + extra for r, e, extra in zip(reach, ends, g.output_padding, strict=True)]
        x, strides = stuffed, (1,) * rank
    # torch lists pads from the last axis to the first; negative amounts crop.
    amounts = [n for pair in reversed(list(zip(begins, ends, strict=True))) for n in pair]
    return functional.pad(x, amounts), strides


def _start(index: Tensor, out: tuple[int, ...], spatial: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """Flat position, in the padded input, of the first tap of each output position."""
    base = torch.zeros_like(index)
    scale = 1
    for n_out, n_in, stride in reversed(list(zip(out, spatial, strides, strict=True))):
        base += (index % n_out) * stride * scale
        index = index // n_out
        scale *= n_in
    return base + index * scale


def _offsets(layer: Layer, spatial: tuple[int, ...]) -> list[int]:
    """Flat distance of every kernel position from the first, in the order in which ONNX stores the kernel."""
    offsets = [0]
    for axis, (k, d) in enumerate(zip(layer.geometry.kernel, layer.geometry.dilations, strict=True)):
        step = d * prod(spatial[axis + 1 :])
        offsets = [o + i * step for o in offsets for i in range(k)]
    return offsets
