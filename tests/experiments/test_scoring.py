"""What experiments measure with: answers of models that take any number of samples, and of those that take so many at a time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.experiments.scoring import accuracy, answers


def echo(batch):
    """A model that gives back its input, (batch, 3, 1)."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "net", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("batch", "count"), [("n", 10), (1, 10), (4, 8)])
def test_what_does_not_fill_a_fixed_batch_is_left_out_of_answers_and_accuracy(batch, count, tmp_path):
    samples = np.random.default_rng(0).standard_normal((10, 3, 1)).astype(np.float32)
    onnx.save(echo(batch), tmp_path / "net.onnx")
    for model in (echo(batch), tmp_path / "net.onnx"):
        found = answers(model, samples)
        assert np.array_equal(found, samples[:count, :, 0])
        labels = samples[:, :, 0].argmax(1)
        assert accuracy(found, labels) == 1
        labels[:2] = (labels[:2] + 1) % 3
        assert accuracy(found, labels[:, None]) == 1 - 2 / count
