"""rows @ matrix is the layer: against torch for convolutions of every geometry, against ONNX Runtime for Gemm and MatMul."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnxprune.devices import choose_device
from onnxprune.matrix import channel_rows, from_matrix, group_count, output_spatial, outputs, positions, rows, to_matrix
from onnxprune.network import Geometry, Layer
from onnxprune.runtime import Session

CONV = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
TRANSPOSED = {
    1: torch.nn.functional.conv_transpose1d,
    2: torch.nn.functional.conv_transpose2d,
    3: torch.nn.functional.conv_transpose3d,
}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(op, weight, x, *, groups=1, geometry=Geometry(), **more):  # noqa: B008  (a frozen dataclass)
    fields = {"bias": None, "input": "x", "output": "y", "output_shape": (), "macs": 0, "transposed": False, "node": 0}
    return Layer(
        name="layer", op=op, weight="w", weight_shape=tuple(weight.shape), input_shape=tuple(x.shape), groups=groups,
        geometry=geometry, **(fields | more),
    )  # fmt: skip


def apply(one, weight, x, chosen=None):
    """(positions, out): what the matrix makes of the rows, groups side by side."""
    matrix = to_matrix(one, weight)
    found = rows(one, x, matrix.shape[0], chosen)
    return torch.einsum("ngi,goi->ngo", found, matrix).flatten(1)


# name -> (spatial sizes of x, in, out, groups, kernel, strides, dilations, begins, ends)
CONVS = {
    "1-D": ((11,), 4, 6, 1, (3,), (1,), (1,), (0,), (0,)),
    "1-D strided, dilated, padded on one side": ((12,), 3, 5, 1, (3,), (2,), (2,), (3,), (0,)),
    "pointwise": ((5, 4), 6, 7, 1, (1, 1), (1, 1), (1, 1), (0, 0), (0, 0)),
    "2-D": ((7, 6), 3, 5, 1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    "2-D asymmetric kernel, strides and pads": ((9, 8), 3, 4, 1, (3, 2), (2, 3), (1, 1), (0, 1), (2, 0)),
    "2-D dilated": ((9, 10), 2, 3, 1, (3, 3), (1, 2), (2, 3), (2, 1), (1, 3)),
    "2-D grouped": ((6, 6), 6, 9, 3, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    "2-D depthwise": ((6, 5), 5, 5, 5, (3, 3), (2, 1), (1, 1), (1, 1), (0, 1)),
    "2-D depthwise with multiplier": ((5, 5), 3, 6, 3, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    "3-D grouped": ((4, 5, 3), 4, 6, 2, (2, 3, 1), (1, 2, 1), (1, 1, 2), (1, 0, 0), (0, 1, 0)),
}


def convolution(name):
    spatial, inputs, out, groups, kernel, strides, dilations, begins, ends = CONVS[name]
    x, weight = draw(3, inputs, *spatial), draw(out, inputs // groups, *kernel, seed=1)
    one = layer("Conv", weight, x, groups=groups, geometry=Geometry(kernel, strides, dilations, (*begins, *ends)))
    around = [n for pair in zip(reversed(begins), reversed(ends), strict=True) for n in pair]
    y = CONV[len(spatial)](torch.nn.functional.pad(x, around), weight, None, strides, 0, dilations, groups)
    return one, weight, x, y


# name -> (spatial, in, out, groups, kernel, strides, dilations, pads, output_padding)
TRANSPOSES = {
    "1-D": ((5,), 3, 4, 1, (3,), (2,), (1,), (1,), (1,)),
    "2-D": ((4, 5), 3, 4, 1, (3, 3), (2, 2), (1, 1), (1, 1), (0, 1)),
    "2-D without strides": ((4, 5), 3, 4, 1, (3, 2), (1, 1), (1, 1), (0, 1), (0, 0)),
    "2-D dilated": ((4, 5), 2, 3, 1, (3, 2), (3, 2), (2, 3), (1, 0), (1, 0)),
    "2-D grouped": ((4, 3), 6, 4, 2, (2, 3), (2, 1), (1, 1), (0, 1), (0, 0)),
    "2-D depthwise": ((4, 4), 5, 5, 5, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
    "2-D kernel narrower than the stride": ((3, 4), 2, 3, 1, (2, 1), (3, 2), (1, 1), (0, 0), (0, 1)),
    "3-D": ((3, 2, 4), 2, 3, 1, (2, 1, 3), (2, 1, 2), (1, 1, 1), (0, 0, 1), (0, 0, 1)),
}


def transposed(name):
    spatial, inputs, out, groups, kernel, strides, dilations, pads, extra = TRANSPOSES[name]
    x, weight = draw(3, inputs, *spatial), draw(inputs, out // groups, *kernel, seed=1)
    one = layer("ConvTranspose", weight, x, groups=groups, geometry=Geometry(kernel, strides, dilations, (*pads, *pads), extra))
    y = TRANSPOSED[len(spatial)](x, weight, None, strides, pads, extra, groups, dilations)
    return one, weight, x, y


CASES = [("Conv", name) for name in CONVS] + [("ConvTranspose", name) for name in TRANSPOSES]


def case(op, name):
    return convolution(name) if op == "Conv" else transposed(name)


@pytest.mark.parametrize(("op", "name"), CASES)
def test_rows_times_matrix_is_the_convolution(op, name):
    one, weight, x, y = case(op, name)
    assert output_spatial(one, tuple(x.shape[2:])) == tuple(y.shape[2:])
    torch.testing.assert_close(apply(one, weight, x), outputs(one, y, None), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("op", "name"), CASES)
def test_chosen_positions_are_those_of_the_whole(op, name):
    one, weight, x, y = case(op, name)
    rng = torch.Generator().manual_seed(0)
    samples, places = len(y), y[0, 0].numel()
    chosen = positions(one, x, samples * (places // 2), rng)
    assert chosen is not None
    assert len(chosen) == places // 2 == len(set(chosen.tolist()))
    groups = to_matrix(one, weight).shape[0]
    flat = (torch.arange(samples)[:, None] * places + chosen).reshape(-1)
    assert torch.equal(rows(one, x, groups, chosen), rows(one, x, groups, None)[flat])
    assert torch.equal(outputs(one, y, chosen), outputs(one, y, None)[flat])
    assert positions(one, x, samples * places, rng) is None


@pytest.mark.parametrize(("op", "name"), CASES)
def test_from_matrix_is_the_inverse(op, name):
    one, weight, _, _ = case(op, name)
    assert torch.equal(from_matrix(one, to_matrix(one, weight), tuple(weight.shape)), weight)


@pytest.mark.parametrize("name", ["2-D depthwise", "2-D depthwise with multiplier"])
def test_a_cut_depthwise_layer_has_a_group_for_each_channel_left(name):
    one, weight, x, _ = convolution(name)
    times = weight.shape[0] // x.shape[1]
    keep = torch.tensor([0, 2])
    left = weight.unflatten(0, (x.shape[1], times))[keep].flatten(0, 1)
    assert group_count(one, tuple(left.shape)) == 2
    y = (
        torch.nn.functional.conv2d(x[:, keep], left, None, one.geometry.strides, one.geometry.pads[:2], 1, 2)
        if times > 1
        else None
    )
    if y is not None:
        torch.testing.assert_close(apply(one, left, x[:, keep]), outputs(one, y, None), atol=1e-5, rtol=1e-5)
    whole = apply(one, weight, x).unflatten(1, (x.shape[1], times))[:, keep].flatten(1)
    torch.testing.assert_close(apply(one, left, x[:, keep]), whole)


def test_a_cut_depthwise_conv_transpose_too():
    one, weight, x, _ = transposed("2-D depthwise")
    keep = torch.tensor([1, 3, 4])
    assert group_count(one, tuple(weight[keep].shape)) == 3
    torch.testing.assert_close(apply(one, weight[keep], x[:, keep]), apply(one, weight, x)[:, keep])


def test_a_cut_grouped_layer_keeps_its_groups():
    one, weight, _, _ = convolution("2-D grouped")
    assert group_count(one, tuple(weight[[0, 3, 6], :1].shape)) == 3
    one, weight, _, _ = transposed("2-D grouped")
    assert group_count(one, (4, 1, 2, 3)) == 2


# --- Gemm and MatMul on ONNX Runtime


def on_onnx_runtime(op, names, x, weight, **attributes):
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.numpy(), "w")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return torch.from_numpy(Session(model, choose_device("cpu")).run({"x": x.numpy()})["y"])


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("turned", [False, True])
def test_gemm(turned, alpha):
    x, weight = draw(9, 4), draw(*((6, 4) if turned else (4, 6)), seed=1)
    y = on_onnx_runtime("Gemm", ["x", "w"], x, weight, transB=int(turned), alpha=alpha)
    one = layer("Gemm", weight, x, transposed=not turned, scale=alpha)
    torch.testing.assert_close(apply(one, weight, x), outputs(one, y, None))
    torch.testing.assert_close(from_matrix(one, to_matrix(one, weight), tuple(weight.shape)), weight)


@pytest.mark.parametrize("shape", [(9, 4), (2, 5, 4), (2, 3, 5, 4)])
def test_matmul_with_the_constant_on_the_right(shape):
    x, weight = draw(*shape), draw(4, 6, seed=1)
    y = on_onnx_runtime("MatMul", ["x", "w"], x, weight)
    one = layer("MatMul", weight, x, transposed=True)
    torch.testing.assert_close(apply(one, weight, x), outputs(one, y, None))
    assert torch.equal(from_matrix(one, to_matrix(one, weight), (4, 6)), weight)


@pytest.mark.parametrize("shape", [(4, 9), (2, 4, 5), (2, 3, 4, 5)])
def test_matmul_with_the_constant_on_the_left(shape):
    x, weight = draw(*shape), draw(6, 4, seed=1)
    y = on_onnx_runtime("MatMul", ["w", "x"], x, weight)
    one = layer("MatMul", weight, x, side="left")
    torch.testing.assert_close(apply(one, weight, x), outputs(one, y, None))
    assert torch.equal(from_matrix(one, to_matrix(one, weight), (6, 4)), weight)
    total = x.numel() // 4
    chosen = positions(one, x, total - 2, torch.Generator().manual_seed(0))
    assert torch.equal(outputs(one, y, chosen), outputs(one, y, None)[chosen])
    torch.testing.assert_close(apply(one, weight, x, chosen), outputs(one, y, chosen))


# --- channel vectors


def test_channel_rows_are_all_positions_or_a_sample_of_them():
    rng = torch.Generator().manual_seed(0)
    x = draw(2, 3, 4, 5)
    one = layer("Conv", draw(6, 3, 3, 3), x, geometry=Geometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)))
    whole = channel_rows(one, x, 1000, rng)
    assert torch.equal(whole, x.permute(0, 2, 3, 1).reshape(-1, 3))
    some = channel_rows(one, x, 7, rng)
    assert some.shape == (8, 3)  # the same places of both samples
    known = {tuple(row) for row in whole.tolist()}
    assert len({tuple(row) for row in some.tolist()} & known) == 8


@pytest.mark.parametrize(("side", "axis"), [("right", 2), ("left", 1)])
def test_channel_rows_of_a_matmul_lie_along_the_axis_it_contracts(side, axis):
    x = draw(2, 3, 4)
    one = layer("MatMul", draw(5, x.shape[axis]), x, side=side)
    found = channel_rows(one, x, 1000, torch.Generator())
    assert torch.equal(found, x.movedim(axis, -1).reshape(-1, x.shape[axis]))


def test_half_and_double_precision_pass_through():
    one, weight, x, y = convolution("2-D")
    for kind in (torch.float16, torch.float64):
        got = rows(one, x.to(kind), 1, None)
        assert got.dtype in (kind, torch.promote_types(kind, torch.float32))
        matrix = to_matrix(one, weight.double())
        torch.testing.assert_close((got[:, 0].double() @ matrix[0].T).float(), outputs(one, y, None), atol=5e-2, rtol=5e-2)
