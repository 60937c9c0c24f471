"""Sampling, ranking, and operators that nothing passes."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from tests.graph.cases import CASES, Case, ints, simple
from tests.graph.nets import net, node, values

FLOAT = TensorProto.FLOAT
simple("grid_sample", [node("GridSample", "a g", "b")], {"g": values(1, 5, 4, 2)}, opset=16)
