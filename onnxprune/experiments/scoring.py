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
    """(n, outputs): the first output, flattened per sample; where the batch size is fixed, of the samples that fill batches."""
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    fixed = isinstance(entry.shape[0], int)
    step = entry.shape[0] if fixed else BATCH
    parts = [samples[i : i + step] for i in range(0, len(samples) // step * step if fixed else len(samples), step)]
    return np.concatenate([session.run(None, {entry.name: part})[0].reshape(len(part), -1) for part in parts]).astype(np.float64)


def accuracy(found: Floats, labels: NDArray[Any]) -> float:
    """The share of `answers` whose largest is that of the label; labels beyond the last answer do not count."""
    return float((found.argmax(1) == labels.reshape(-1)[: len(found)]).mean())


def l1_error(found: Floats, original: Floats) -> float:
    """Mean over the samples of ||f^(x) - f(x)||_1 (CoreNet; Mussay et al., section IV-A)."""
    return float(np.abs(found - original).sum(1).mean())


def network_of(model: onnx.ModelProto | Path, samples: NDArray[Any]) -> tuple[Graph, Network]:
    graph, _ = open_samples(
        load(model), samples[:8], samples[:8], samples=8, held_out=0.5, seed=0, input_shapes=None, mean=None, std=None,
        layout="auto",
    )  # fmt: skip
    return graph, find(graph)
