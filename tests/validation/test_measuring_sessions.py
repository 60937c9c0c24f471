"""The meters over real ONNX Runtime sessions: two models that differ by a known factor."""

import numpy as np
import onnx
import pytest

from onnxprune.runtime import Session, choose_device
from onnxprune.validation.accuracy import AccuracyMeter
from onnxprune.validation.deviation import measure
from onnxprune.validation.latency import measure_latency


def scaling(factor):
    """y = factor * x, for x of shape (N, 3)."""
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3]) for name in "xy"]
    weight = onnx.numpy_helper.from_array(np.float32(factor), "factor")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["x", "factor"], ["y"])], "scaling", ports[:1], ports[1:], [weight]
    )
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 13)])
    return Session(model, choose_device("cpu"), threads=1)


def test_deviation_accuracy_and_latency_of_sessions():
    original, pruned = scaling(1.0), scaling(-0.5)
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    accuracy = AccuracyMeter(np.array([0, 1, 2, 1]))
    found = measure(original, pruned, ({"x": part} for part in np.split(x, 2)), accuracy)
    assert found["y"]["max_abs"] == 1.5
    assert found["y"]["cosine"] == pytest.approx(-1)
    assert found["y"]["top1_agreement"] == 0
    assert accuracy.result() == {"original": 0.75, "pruned": 0.25}
    latency = measure_latency(original, pruned, {"x": x}, runs=6)
    assert (latency["runs"], latency["batch"]) == (6, 4)
    assert latency["speedup"] == pytest.approx(latency["original_ms"] / latency["pruned_ms"])
