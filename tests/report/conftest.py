"""A realistic report (ResNet-56, ratio 0.4) and a small network for every form to show."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from onnxprune.network import Axis, Geometry, Group, Layer, Network, Pin, Term

EXAMPLE = json.loads((Path(__file__).parent / "example_report.json").read_text("utf-8"))


@pytest.fixture
def report():
    return copy.deepcopy(EXAMPLE)


@pytest.fixture
def compared():
    """A report of `onnxprune compare`: no method, no groups."""
    keys = ("schema", "tool", "device", "original", "pruned", "latency", "deviation", "accuracy", "gates", "timings", "warnings")
    return copy.deepcopy({key: EXAMPLE[key] for key in keys})


def layer(name, output, macs, **more):
    shapes = {"weight_shape": (8, 3, 3, 3), "input_shape": (1, 3, 8, 8), "output_shape": (1, 8, 8, 8)}
    fields = {"bias": None, "input": "x", "groups": 1, "transposed": False, **shapes, **more}
    return Layer(name=name, node=0, op="Conv", weight=f"{name}.weight", output=output, geometry=Geometry(), macs=macs, **fields)


@pytest.fixture
def network():
    """conv1 (3 -> 8) -> conv2 (8 -> 4); the 8 channels between them form one group."""
    group = Group("conv1[out]", "channel", np.arange(8), (), ("conv1",), ("conv2",), True)
    three, eight, four = Axis(3, {}), Axis(0, {"conv1[out]": 1}), Axis(4, {})
    return Network(
        layers=(layer("conv1", "c1", 13824), layer("conv2", "c2", 18432, input="c1")),
        groups=(group,),
        pins=(Pin("x", "graph input", 3), Pin("y", "graph output", 4), Pin("z", "graph output", 1)),
        slots=(),
        channel_count=8,
        tensor_channels={},
        shapes={},
        input_shapes={"x": (1, 3, 8, 8)},
        mac_terms=(Term("conv1", 576, (three, eight)), Term("conv2", 576, (eight, four))),
        parameter_terms=(Term("conv1.weight", 9, (three, eight)), Term("conv2.weight", 9, (eight, four))),
        element_bytes={"conv1.weight": 4, "conv2.weight": 4},
    )
