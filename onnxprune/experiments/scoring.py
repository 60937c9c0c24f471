"""What the experiments look at: a model's layers, and its outputs on the test samples, in plain ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from onnxprune.calibration.samples import open_samples
from onnxprune.graph import Graph, find, load
from onnxprune.network import Network

Floats = NDArray[np.float64]
BATCH = 256


def answers(model: onnx.ModelProto | Path, samples: NDArray[Any]) -> Floats:
    """(n, outputs): the first output, flattened per sample."""
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    step = entry.shape[0] if isinstance(entry.shape[0], int) else BATCH
    found = [
        session.run(None, {entry.name: samples[i : i + step]})[0].reshape(min(step, len(samples) - i), -1)
        for i in range(0, len(samples), step)
    ]
    return np.concatenate(found).astype(np.float64)


def accuracy(found: Floats, labels: NDArray[Any]) -> float:
    return float((found.argmax(1) == labels).mean())


def l1_error(found: Floats, original: Floats) -> float:
    """Mean over the samples of ||f^(x) - f(x)||_1 (CoreNet; Mussay et al., section IV-A)."""
    return float(np.abs(found - original).sum(1).mean())


def network_of(model: onnx.ModelProto | Path, samples: NDArray[Any]) -> tuple[Graph, Network]:
    graph, _ = open_samples(
        load(model), samples[:8], samples[:8], samples=8, held_out=0.5, seed=0, input_shapes=None, mean=None, std=None,
        layout="auto",
    )  # fmt: skip
    return graph, find(graph)
