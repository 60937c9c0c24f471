"""Norms of layers against the whole matrix of the operator, written out input by input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from onnxprune.matrix import output_spatial, to_matrix
from onnxprune.network import Geometry, Layer
from onnxprune.theory.operator_norm import apply, circular_norm, matrix_norm, norm_bound, operator_norm, reads_of


def layer(op, weight_shape, input_shape, *, strides=None, dilations=None, pads=None, output_padding=None, groups=1):
    rank = len(weight_shape) - 2
    g = Geometry(
        weight_shape[2:], strides or (1,) * rank, dilations or (1,) * rank, pads or (0,) * 2 * rank, output_padding or (0,) * rank
    )
    made = Layer("c", 0, op, "w", None, "x", "y", weight_shape, input_shape, (), groups, g, False, 0)
    channels = weight_shape[0] if op == "Conv" else weight_shape[1] * groups
    shape = (1, channels, *output_spatial(made, input_shape[2:]))
    return Layer("c", 0, op, "w", None, "x", "y", weight_shape, input_shape, shape, groups, g, False, 0)


def weights(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def written_out(found, weight):
    """(outputs, inputs): what the layer makes of every unit vector."""
    columns = []
    for place in range(math.prod(found.input_shape)):
        x = torch.zeros(found.input_shape, dtype=torch.float64)
        x.view(-1)[place] = 1.0
        y = apply(found, weight.double(), x)
        assert y.shape == found.output_shape
        columns.append(y.flatten())
    return torch.stack(columns, 1)


CASES = {
    "plain": layer("Conv", (3, 2, 3, 3), (1, 2, 6, 5)),
    "padded": layer("Conv", (3, 2, 3, 3), (1, 2, 6, 6), pads=(1, 1, 1, 1)),
    "pads that differ": layer("Conv", (2, 2, 3, 2), (1, 2, 5, 6), pads=(2, 0, 1, 1)),
    "strided": layer("Conv", (3, 2, 3, 3), (1, 2, 7, 7), strides=(2, 2), pads=(1, 1, 1, 1)),
    "dilated": layer("Conv", (2, 2, 3, 3), (1, 2, 8, 8), dilations=(2, 3), pads=(2, 3, 2, 3)),
    "dilated as far as strided": layer("Conv", (2, 2, 3, 3), (1, 2, 9, 9), strides=(2, 2), dilations=(2, 2), pads=(2, 2, 2, 2)),
    "grouped": layer("Conv", (6, 2, 3, 3), (1, 4, 5, 5), groups=2, pads=(1, 1, 1, 1)),
    "depthwise": layer("Conv", (4, 1, 3, 3), (1, 4, 5, 5), groups=4, pads=(1, 1, 1, 1)),
    "one by one, strided": layer("Conv", (3, 4, 1, 1), (1, 4, 5, 5), strides=(2, 2)),
    "one by one, padded": layer("Conv", (3, 4, 1, 1), (1, 4, 3, 3), pads=(1, 1, 1, 1)),
    "kernel as large as the map": layer("Conv", (3, 2, 4, 4), (1, 2, 4, 4)),
    "one axis": layer("Conv", (3, 2, 5), (1, 2, 9), pads=(2, 2)),
    "three axes": layer("Conv", (2, 2, 2, 2, 2), (1, 2, 3, 3, 3), pads=(1, 0, 0, 0, 0, 1)),
    "transposed": layer("ConvTranspose", (3, 2, 3, 3), (1, 3, 4, 4), strides=(2, 2), pads=(1, 1, 1, 1), output_padding=(1, 1)),
    "transposed, grouped": layer("ConvTranspose", (4, 3, 2, 2), (1, 4, 4, 4), strides=(2, 2), groups=2),
    "transposed, dilated": layer("ConvTranspose", (2, 3, 3, 3), (1, 2, 4, 5), dilations=(2, 1), pads=(0, 1, 2, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_power_iteration_finds_the_norm_and_the_bound_is_above_it(name):
    found = CASES[name]
    for seed in range(5):
        weight = weights(found.weight_shape, seed)
        exact = float(torch.linalg.matrix_norm(written_out(found, weight), 2))
        matrix = to_matrix(found, weight)
        measured = operator_norm(found, matrix, iterations=1000, tolerance=1e-12)
        assert measured <= exact * (1 + 1e-9)
        assert measured == pytest.approx(exact, rel=1e-3)
        assert norm_bound(found, matrix) >= exact * (1 - 1e-9)


@pytest.mark.parametrize("name", ["padded", "grouped", "dilated", "one axis"])
def test_without_strides_the_bound_is_near(name):
    found, ratios = CASES[name], []
    for seed in range(5):
        weight = weights(found.weight_shape, seed)
        ratios.append(
            norm_bound(found, to_matrix(found, weight)) / operator_norm(found, to_matrix(found, weight), iterations=500)
        )
    assert max(ratios) < 1.5


@pytest.mark.parametrize("sizes", [(6, 6), (5, 7), (3, 4)])
@pytest.mark.parametrize("dilations", [(1, 1), (2, 1)])
def test_frequencies_give_the_norm_of_circular_padding(sizes, dilations):
    """Against the doubly block circulant matrix of equations (8) and (9), entry by entry."""
    kernels = weights((3, 2, 3, 3))
    p, r = sizes
    matrix = torch.zeros(3 * p * r, 2 * p * r, dtype=torch.float64)
    for s, t, a, b, i, j in itertools.product(range(3), range(2), range(p), range(r), range(3), range(3)):
        column = (t * p + (a + i * dilations[0]) % p) * r + (b + j * dilations[1]) % r
        matrix[(s * p + a) * r + b, column] += float(kernels[s, t, i, j])
    assert circular_norm(kernels, sizes, dilations) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)))


@pytest.mark.parametrize(("size", "norm"), [(6, 4.0), (8, 4.0), (7, 4 * math.cos(math.pi / 14) ** 2)])
def test_the_highest_frequency_counts(size, norm):
    """Differences along both axes: longest on a chequered map, which goes around only where the size is even."""
    kernel = torch.tensor([[[[1.0, -1.0], [-1.0, 1.0]]]])
    assert circular_norm(kernel, (size, size)) == pytest.approx(norm)


def test_the_frobenius_norm_is_no_bound_for_convolutions():
    """A constant 3 x 3 kernel: Frobenius 3, and nine times as long on a large constant map."""
    found = layer("Conv", (1, 1, 3, 3), (1, 1, 40, 40), pads=(1, 1, 1, 1))
    matrix = to_matrix(found, torch.ones(1, 1, 3, 3))
    assert float(matrix.norm()) == pytest.approx(3)
    measured = operator_norm(found, matrix, iterations=1000)
    assert measured > 2.9 * float(matrix.norm())
    assert measured <= norm_bound(found, matrix) == pytest.approx(9)


def test_work_beyond_the_limit_falls_back_to_the_coarse_bound(monkeypatch):
    monkeypatch.setattr("onnxprune.theory.operator_norm.MOST_WORK", 0)
    for found in CASES.values():
        weight = weights(found.weight_shape)
        exact = float(torch.linalg.matrix_norm(written_out(found, weight), 2))
        bound = norm_bound(found, to_matrix(found, weight))
        assert exact * (1 - 1e-9) <= bound <= 5 * exact


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_how_many_windows_one_input_can_be_in(kernel, stride, dilation):
    windows = [
        sum(start + tap * dilation == place for start in range(0, 60, stride) for tap in range(kernel)) for place in range(60)
    ]
    assert reads_of(kernel, stride, dilation) == max(windows)


def test_matrices_of_groups_count_as_one_block_diagonal_matrix():
    blocks = weights((3, 4, 6))
    assert matrix_norm(blocks) == pytest.approx(float(torch.linalg.matrix_norm(torch.block_diag(*blocks), 2)))
    assert matrix_norm(torch.zeros(1, 3, 4)) == 0


def test_a_layer_of_zeros_has_no_norm():
    found = CASES["padded"]
    assert operator_norm(found, torch.zeros(1, 3, 18)) == 0
    assert norm_bound(found, torch.zeros(1, 3, 18)) == 0
