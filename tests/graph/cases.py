"""The small nets of the rule tests, and what is expected of them: one file of cases per family of operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto

from tests.graph.nets import conv_net, net


@dataclass(frozen=True)
class Case:
    """groups: name -> size, all of them. pins: (tensor, words of the reason), all but those of graph outputs."""

    model: onnx.ModelProto = field(repr=False)
    groups: dict[str, int]
    pins: tuple[tuple[str, str], ...] = ()


CASES: dict[str, Callable[[], Case]] = {}


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def simple(name: str, middle, weights=None, groups=None, pins=(), **fields) -> None:
    """A case from nets.conv_net. Without `groups`, all channels of 'first' can go."""
    found = {"first": fields.get("channels", 6)} if groups is None else groups
    CASES[name] = lambda: Case(conv_net(middle, weights, **fields), found, tuple(pins))


def dense(nodes, weights, groups, pins=(), shape=("N", 5), **fields) -> Callable[[], Case]:
    return lambda: Case(net(nodes, weights, {"x": shape}, **fields), groups, tuple(pins))


def with_input(model: onnx.ModelProto, name: str, length: int) -> onnx.ModelProto:
    del model.graph.node[0]
    model.graph.input.append(onnx.helper.make_tensor_value_info(name, TensorProto.INT64, [length]))
    return model
