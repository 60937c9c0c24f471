"""The nine light_*.onnx topologies inside the onnx package: removed == masked with random weights, and the files as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.graph.find import find
from onnxprune.graph.load import load
from onnxprune.graph.prepare import prepare
from onnxprune.rewrite.cut import cut
from tests.graph.nets import check, feeds, half, run

FOLDER = Path(onnx.__file__).parent / "backend/test/data/light"
# Groups that are found in each.
GROUPS = {
    "bvlc_alexnet": 5,
    "densenet121": 120,
    "inception_v1": 55,
    "inception_v2": 69,
    "resnet50": 37,
    "shufflenet": 13,
    "squeezenet": 25,
    "vgg19": 18,
    "zfnet512": 5,
}
# One run of these takes a good part of a second: their groups are tried together, not one by one.
LARGE = ("densenet121", "inception_v1", "inception_v2", "resnet50", "vgg19", "zfnet512", "bvlc_alexnet")


def filled(name: str) -> onnx.ModelProto:
    """The topology with weights of its own: noise in the range that keeps activations alive; positive variances.

    Fully connected layers of 4096 get 256 units: they hold nine tenths of the bytes and none of what can go wrong.
    """
    model = load(FOLDER / f"light_{name}.onnx").model
    prepare(model)
    variances = {n.input[4] for n in model.graph.node if n.op_type == "BatchNormalization"}
    for number, tensor in enumerate(model.graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        shape, rng = tuple(256 if n == 4096 else n for n in tensor.dims), np.random.default_rng(number)
        spread = 2 * np.sqrt(6 / max(np.prod(shape[1:]), 1)) if len(shape) > 1 else 1
        value = (rng.random(shape, np.float32) - np.float32(0.5)) * np.float32(spread)
        tensor.CopyFrom(numpy_helper.from_array(value + np.float32(1) if tensor.name in variances else value, tensor.name))
    dims = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    for listed in model.graph.input:
        for dim, length in zip(listed.type.tensor_type.shape.dim, dims.get(listed.name, ()), strict=False):
            dim.dim_value = length
    return model


@pytest.mark.parametrize("name", GROUPS)
def test_the_files_as_they_are(name):
    """Weights are computed in the graph by ConstantOfShape: they are folded, and the groups are found."""
    graph, folded = prepare(load(FOLDER / f"light_{name}.onnx").model)
    network = find(graph)
    assert folded > 0
    assert len(network.groups) == GROUPS[name]
    assert all("computed in the graph" not in p.reason for p in network.pins)
    assert not any(n.op_type == "ConstantOfShape" for n in graph.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_half_of_every_group(name):
    model = filled(name)
    graph, _ = prepare(model)
    network = find(graph)
    made = cut(graph, network, network.alive(half(network, 0)))
    check(model, made, batches=(1,))
    given = feeds(model, 1)
    whole, small = run(model, given)[0], run(made.model, given)[0]
    assert np.abs(whole - small).max() > 1e-2 * np.abs(whole).max(), "the outputs would not show a wrong channel"


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in GROUPS if n not in LARGE])
def test_every_group_alone(name):
    model = filled(name)
    graph, _ = prepare(model)
    network = find(graph)
    for group in network.groups:
        made = cut(graph, network, network.alive(half(network, 1, only=group.name)))
        check(model, made, batches=(1,))
