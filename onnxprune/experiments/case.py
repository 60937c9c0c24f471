"""A case for an experiment from what a person has: a model, samples to calibrate on, labelled samples to judge by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.samples import Samples, open_samples
from onnxprune.errors import UsageError
from onnxprune.experiments.experiment import Case
from onnxprune.graph import load
from onnxprune.validation.accuracy import as_labels


def open_case(model: Path, data: Any, test_data: Any, labels: Any, samples: int) -> Case:
    """Everything in memory, as the experiments run it again and again.

    data: see calibration.sources; test_data with `labels` are what results are judged by. Raises UsageError where a model has
    more than one input, and the errors of calibration where the arrays do not fit.
    """
    graph, opened = open_samples(
        load(model), data, test_data, samples=samples, held_out=0.0, seed=0, input_shapes=None, mean=None, std=None, layout="auto"
    )
    if len(graph.inputs) != 1:
        raise UsageError(f"{model} has {len(graph.inputs)} inputs", "the experiments need a model with one")
    known = opened.labels(as_labels(labels))
    return Case(model.stem, model, _all(opened, "calibration"), _all(opened, "test"), np.asarray(known))


def no_case() -> Case:
    """For experiments on random matrices."""
    nothing = np.zeros(0, np.float32)
    return Case("random matrices", Path(), nothing, nothing, nothing)


def _all(opened: Samples, which: str) -> NDArray[Any]:
    source = getattr(opened, which)
    return np.concatenate([next(iter(batch.values())) for batch in source.batches(opened.batch(64))])
