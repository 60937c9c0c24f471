"""The norm of a layer as an operator: by how much it can lengthen its input. Of a convolution that is not its matrix's norm.

matrix_norm      the largest singular value of matrices: exact, what a fully connected layer does
operator_norm    power iteration through the layer itself, with its strides, pads, dilations and groups: from below
circular_norm    Lemma 7 of Qian and Klabjan (Sedghi, Gupta, Long 2018): exact for circular padding and stride 1
norm_bound       from above, for every kind of padding and stride

A convolution with zero padding is a part of a circular one on a map that is large enough to hold the padding, and one with a
stride a part of that without: rows and columns are left out, which makes no norm larger. So the circular norm bounds them all.
The Frobenius norm of the weights bounds nothing: 3 x 3 ones have 3, and lengthen a constant map 9 times.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product, starmap
from math import ceil, gcd, inf, prod, sqrt

import torch
import torch.nn.functional as fn
from torch import Tensor

from onnxprune.matrix import from_matrix
from onnxprune.network import Layer

# Multiplications above which the singular values at every frequency are not computed: the coarser bound is taken alone.
MOST_WORK = 3e10


def matrix_norm(matrix: Tensor) -> float:
    """The largest singular value of any of the matrices (..., out, in), in float64, through the smaller of the products."""
    values = matrix if matrix.is_complex() else matrix.double()
    gram = values @ values.mH if values.shape[-2] <= values.shape[-1] else values.mH @ values
    return sqrt(max(float(torch.linalg.eigvalsh(gram)[..., -1].max()), 0.0))


def circular_norm(kernels: Tensor, sizes: Sequence[int], dilations: Sequence[int] | None = None) -> float:
    """max over frequencies (u, v) of ||P(u, v)||_2, P_st = the discrete Fourier transform of kernel F[s, t] on a map of `sizes`.

    kernels (..., out, in, *kernel). Of frequencies that are conjugates of one another one is enough, for kernels are real.
    """
    rank = len(sizes)
    steps = dilations or (1,) * rank
    taps = kernels.double().to(torch.complex128)
    waves = []
    for axis, (size, step) in enumerate(zip(sizes, steps, strict=True)):
        frequencies = torch.arange(size if axis < rank - 1 else size // 2 + 1, dtype=torch.float64)
        places = torch.arange(kernels.shape[axis - rank], dtype=torch.float64) * step
        waves.append(torch.exp(-2j * torch.pi * torch.outer(frequencies, places) / size).to(taps.device))
    taps = taps @ waves[-1].T  # the last axis at all frequencies; the others one after another: memory
    largest = 0.0
    for place in product(*(range(size) for size in sizes[:-1])):
        found = taps
        for axis, u in enumerate(place):
            found = torch.tensordot(found, waves[axis][u], dims=([-(rank - axis)], [0]))
        largest = max(largest, matrix_norm(found.movedim(-1, 0)))
    return largest


def norm_bound(layer: Layer, matrix: Tensor) -> float:
    """At least the operator's norm, whatever strides, pads, dilations and groups; the norm itself where there is no convolution.

    The smaller of the circular norm and of sqrt(how many outputs can read one input) * the matrix's norm.
    """
    g = layer.geometry
    if not layer.op.startswith("Conv") or prod(g.kernel) == 1:
        return matrix_norm(matrix)
    taps = matrix.reshape(*matrix.shape[:2], -1, *g.kernel)
    reads = prod(starmap(reads_of, zip(g.kernel, g.strides, g.dilations, strict=True)))
    if layer.op == "ConvTranspose":
        # Its adjoint is the convolution with the same strides, whose rows are our input channels.
        coarse = matrix_norm(taps.transpose(1, 2).flatten(2)) * sqrt(reads)
    else:
        coarse = matrix_norm(matrix) * sqrt(reads)
    sizes = _circle(layer)
    work = prod(sizes) / 2 * min(taps.shape[1:3]) ** 2 * max(taps.shape[1:3]) * taps.shape[0] * 8
    return min(coarse, circular_norm(taps, sizes, g.dilations) if work <= MOST_WORK else inf)


def reads_of(kernel: int, stride: int, dilation: int) -> int:
    """How many windows one input can be in, along one axis: those of its taps that a multiple of the stride leads to."""
    return ceil(kernel / (stride // gcd(stride, dilation)))


def _circle(layer: Layer) -> tuple[int, ...]:
    """Sizes of a circular map on which nothing that is padded meets anything else by going around."""
    g = layer.geometry
    spatial = (layer.output_shape if layer.op == "ConvTranspose" else layer.input_shape)[2:]
    sizes = []
    for axis, n in enumerate(spatial):
        begin, end = g.pads[axis], g.pads[axis + len(spatial)]
        window = (g.kernel[axis] - 1) * g.dilations[axis] + 1
        sizes.append(max(n + max(begin, end), n + begin + end - window + 1, window))
    return tuple(sizes)


def operator_norm(layer: Layer, matrix: Tensor, *, iterations: int = 100, tolerance: float = 1e-7) -> float:
    """||A||_2 by v <- A'Av from a seeded start: never above the norm, mostly within a percent of it, exact without a kernel."""
    if not layer.op.startswith("Conv") or prod(layer.geometry.kernel) == 1:
        return matrix_norm(matrix)
    weight = from_matrix(layer, matrix, layer.weight_shape).double()
    start = torch.Generator().manual_seed(0)
    x = torch.randn((1, *layer.input_shape[1:]), generator=start, dtype=torch.float64).to(weight.device)
    found = 0.0
    for _ in range(iterations):
        x = (x / x.norm()).detach().requires_grad_()
        y = apply(layer, weight, x)
        (there_and_back,) = torch.autograd.grad(y.square().sum() / 2, x)
        before, found = found, sqrt(float(there_and_back.norm()))
        if found == 0 or found - before <= tolerance * found:
            break
        x = there_and_back
    return found


def apply(layer: Layer, weight: Tensor, x: Tensor) -> Tensor:
    """What a convolution makes of x, without bias."""
    g = layer.geometry
    rank = len(g.kernel)
    ends = [(g.pads[axis], g.pads[axis + rank]) for axis in reversed(range(rank))]
    if layer.op == "Conv":
        padded = fn.pad(x, [n for pair in ends for n in pair])
        convolve = (fn.conv1d, fn.conv2d, fn.conv3d)[rank - 1]
        return convolve(padded, weight, None, g.strides, 0, g.dilations, layer.groups)
    transpose = (fn.conv_transpose1d, fn.conv_transpose2d, fn.conv_transpose3d)[rank - 1]
    whole = transpose(x, weight, None, g.strides, 0, 0, layer.groups, g.dilations)
    more = g.output_padding or (0,) * rank
    crop = [(-begin, more[rank - 1 - i] - end) for i, (begin, end) in enumerate(ends)]
    return fn.pad(whole, [n for pair in crop for n in pair])
