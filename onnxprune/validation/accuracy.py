"""Top-1 accuracy of both models against labels, counted while the outputs stream by; and how labels are read from a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import DataError
from onnxprune.figures import Accuracy
from onnxprune.validation.deviation import class_axis

Array = NDArray[Any]
Labels = NDArray[np.int64]


@dataclass
class Tally:
    """Right answers of one model. A single score per sample is cut at 0 (logit) and at 0.5 (probability); the range decides."""

    right: int = 0
    right_as_probability: int = 0
    low: float = 0.0
    high: float = 0.0

    def add(self, output: Array, labels: Labels) -> None:
        scores = output.reshape(len(labels), -1) if output.size == len(labels) else output
        if np.issubdtype(output.dtype, np.integer):
            self.right += int((scores.ravel() == labels).sum())
            self.right_as_probability = self.right
        elif output.size == len(labels):
            values = scores.ravel().astype(np.float64)
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
            self.right += int(((values > 0) == labels).sum())
            self.right_as_probability += int(((values > 0.5) == labels).sum())
        else:
            axis = class_axis(output.shape)
            assert axis is not None
            # A row with NaN has no arg max worth the name; it is never right.
            valid = ~np.isnan(output.astype(np.float64)).any(axis).ravel()
            self.right += int(((output.argmax(axis).ravel() == labels) & valid).sum())
            self.right_as_probability = self.right


class AccuracyMeter:
    """Counts right answers of both models; `labels` are in the order in which the samples will come.

    The classifying output is the first that gives one class per sample: (N, C) or (N, C, 1, 1) scores, (N,) or (N, 1) scores of
    two classes (cut at 0, or at 0.5 when all of them lie in 0 .. 1), or integer class numbers.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.seen = 0
        self.output: str | None = None
        self.original, self.pruned = Tally(), Tally()

    def add(self, original: Mapping[str, Array], pruned: Mapping[str, Array]) -> None:
        name = self.output = self.output or self._classifier(original)
        count = len(original[name])
        labels = self.labels[self.seen : self.seen + count]
        if len(labels) < count:
            raise DataError(f"there are only {len(self.labels)} labels for more samples than that", "give one label per sample")
        self._check_range(original[name], labels)
        self.original.add(original[name], labels)
        self.pruned.add(pruned[name], labels)
        self.seen += count

    def result(self) -> Accuracy:
        if not self.seen or self.seen != len(self.labels):
            raise DataError(f"there are {len(self.labels)} labels for {self.seen} samples", "give one label per sample")
        tallies = (self.original, self.pruned)
        probability = all(t.low >= 0 and t.high <= 1 for t in tallies)
        right = [t.right_as_probability if probability else t.right for t in tallies]
        return Accuracy(original=right[0] / self.seen, pruned=right[1] / self.seen)

    @staticmethod
    def _classifier(outputs: Mapping[str, Array]) -> str:
        for name, value in outputs.items():
            if _classes(value):
                return name
        shapes = ", ".join(f"{name} {getattr(value, 'shape', type(value).__name__)}" for name, value in outputs.items())
        raise DataError(f"no output gives one class per sample, as labels need: {shapes}", "leave the labels out for this model")

    def _check_range(self, output: Array, labels: Labels) -> None:
        classes = _classes(output)
        wrong = labels[(labels < 0) | (labels >= classes)] if not np.issubdtype(output.dtype, np.integer) else labels[:0]
        if len(wrong):
            problem = f"label {int(wrong[0])} where output {self.output!r} has the classes 0 .. {classes - 1}"
            raise DataError(problem, "count classes as the model does, from 0")


def _classes(output: Array) -> int:
    """Number of classes an output tells apart per sample; 0 where it does not classify samples."""
    if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiuV" or not output.ndim or not output.size:
        return 0
    if output.size == len(output):
        return 2
    axis = class_axis(output.shape)
    if axis is None or output.dtype.kind in "iu" or output.size != len(output) * output.shape[axis]:
        return 0
    return int(output.shape[axis])


def as_labels(given: Any) -> Labels:
    """Labels from a path (see load_labels) or from anything numpy takes for a list of integers."""
    if isinstance(given, str | os.PathLike):
        return load_labels(given)
    values = np.asarray(given).reshape(-1)
    if values.dtype.kind not in "iufb" or not np.array_equal(values, np.trunc(values)):
        raise DataError("the labels are not whole numbers", "give one class number per sample")
    return values.astype(np.int64)


def load_labels(path: str | os.PathLike[str]) -> Labels:
    """Integer labels from .npy, .npz (key 'labels', or the only key) or .txt/.csv with one integer per line."""
    path = Path(path)
    try:
        values = _read(path)
    except (OSError, ValueError, TypeError, EOFError, BadZipFile) as exc:  # TypeError: an .npy named .npz
        reason = "it holds Python objects" if "pickle" in str(exc) else getattr(exc, "strerror", None) or exc
        raise DataError(f"cannot read labels from {path}: {reason}", "save them as an array of whole numbers") from exc
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or not len(values):
        raise DataError(f"labels in {path} have shape {values.shape}", "give one class number per sample")
    if values.dtype.kind not in "iufb" or not np.array_equal(values, np.trunc(values)):
        raise DataError(f"labels in {path} are not whole numbers", "give one class number per sample")
    return values.astype(np.int64)


def _read(path: Path) -> Array:
    match path.suffix.lower():
        case ".npy":
            # Opened here: numpy leaves a file open that it cannot read.
            with path.open("rb") as file:
                return np.asarray(np.load(file, allow_pickle=False))
        case ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                key = "labels" if "labels" in archive.files or len(archive.files) != 1 else archive.files[0]
                if key not in archive.files:
                    raise DataError(f"{path} has no array 'labels'", f"it has {', '.join(archive.files) or 'none at all'}")
                return np.asarray(archive[key])
        case ".txt" | ".csv":
            lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
            return np.array([int(line) for line in lines if line], dtype=np.int64)
        case suffix:
            raise DataError(f"labels cannot be read from a {suffix or 'nameless'} file: {path}", "use .npy, .npz, .txt or .csv")
