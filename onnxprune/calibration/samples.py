"""The sample inputs of one run: some to calibrate on, others, kept apart, to judge by; and the graph at their sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.calibration.fitting import fixed_batch
from onnxprune.calibration.noise import UNFITTED, WARNING
from onnxprune.calibration.sources import InputSpec, Source, open_source, refuse_without_images, split
from onnxprune.errors import DataError, ModelError
from onnxprune.graph.load import ModelFile
from onnxprune.graph.prepare import prepare
from onnxprune.graph.structure import Graph, no_batch

# Ten batches at least, so that some can be kept from the fit to judge it.
FEWEST_BATCHES = 10


@dataclass(frozen=True)
class Samples:
    """`calibration` is fitted to, `test` only looked at. `whole`: all of --data where the test part was held out of it.

    `cut`: --data may hold more than was used.
    """

    calibration: Source
    test: Source
    whole: Source | None
    held_out: bool
    cut: bool = False

    def batch(self, size: int) -> int:
        return max(1, min(size, self.calibration.count // FEWEST_BATCHES))

    def few(self, size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """One small batch of calibration samples."""
        return islice(self.calibration.batches(size), 1)

    @property
    def warnings(self) -> list[str]:
        found = dict.fromkeys([*self.calibration.warnings, *self.test.warnings])
        # What was measured on real samples may be believed.
        return [UNFITTED if text == WARNING and self.test.real else text for text in found]

    def labels(self, given: NDArray[np.int64]) -> NDArray[np.int64]:
        """Labels of the test part: given for --test-data, else for all of --data, of which the test part was held out."""
        if not self.test.real:
            raise DataError("there are labels, but the inputs are made-up noise", "give the samples, with --test-data or --data")
        labelled = self.whole or self.test
        # Where only the first of many samples are used, the labels may well be those of all.
        if len(given) < labelled.count or (len(given) > labelled.count and not self.cut):
            problem = f"there are {len(given)} labels for {labelled.count} samples ({labelled.label})"
            raise DataError(problem, "give one label per sample")
        exact = fixed_batch(self.test.inputs) or 1
        return given[self.test.numbers[: self.test.count // exact * exact]]

    def describe(self) -> dict[str, Any]:
        return {
            "calibration": self.calibration.label, "calibration_samples": self.calibration.count, "test": self.test.label,
            "test_samples": self.test.count, "held_out": self.held_out, "real": self.calibration.real,
        }  # fmt: skip


def open_samples(
    file: ModelFile, data: Any, test_data: Any, *, samples: int, held_out: float, seed: int,
    input_shapes: Mapping[str, Sequence[int]] | None, mean: Any, std: Any, layout: str,
) -> tuple[Graph, Samples]:  # fmt: skip
    """Open the sources and trace the model at the sizes that the samples have."""
    graph, _ = prepare(file.model, input_shapes)
    specs = input_specs(graph)
    path = file.path or Path("model.onnx")

    def opened(what: Any, most: int) -> Source:
        return open_source(
            what,
            specs,
            model_path=path,
            seed=seed,
            samples=most,
            mean=mean,
            std=std,
            layout=layout,
            shapes=graph.inputs,
            int_high=valid_ids(graph),
        )

    most = samples
    if test_data is not None:
        calibration, test, whole = opened(data, samples), opened(test_data, 1 << 60), None
    else:
        # The held-out part comes on top of what was asked for.
        most = max(1, round(samples / (1 - held_out)))
        whole = opened(data, most)
        calibration, test = split(whole, held_out)
    refuse_without_images((calibration, test), mean, std, layout)
    found = Samples(calibration, test, whole, test_data is None, whole is not None and whole.count == most)
    if not calibration.real:
        return graph, found
    sizes = {name: value.shape for name, value in next(calibration.batches(1)).items()}
    if sizes != graph.inputs:
        graph, _ = prepare(file.model, sizes)
    return graph, found


def input_specs(graph: Graph) -> list[InputSpec]:
    """Names, types and shapes of the inputs that a user has to feed."""
    found = []
    others = no_batch(graph.model.graph)
    for value in graph.model.graph.input:
        if value.name not in graph.inputs:
            continue
        tensor = value.type.tensor_type
        if tensor.elem_type == onnx.TensorProto.STRING:
            raise ModelError(f"input {value.name!r} takes strings", "prune the part of the model behind the tokenizer")
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        batched = not shape or tensor.shape.dim[0].dim_param not in others
        found.append(InputSpec(value.name, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape, batched))
    return found


def valid_ids(graph: Graph) -> dict[str, int]:
    """For inputs that look something up in a table: the number of rows, so that made-up numbers are valid."""
    found: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        if node.op_type == "Gather" and node.input[0] in graph.constants:
            name = node.input[1]
            while (
                name not in graph.inputs
                and graph.producer.get(name) is not None
                and graph.nodes[graph.producer[name]].op_type in ("Cast", "Identity")
            ):
                name = graph.nodes[graph.producer[name]].input[0]
            if name in graph.inputs:
                axis = graph.attribute(index, "axis", 0)
                found[name] = min(found.get(name, 1 << 62), graph.shapes[node.input[0]][axis])
    return found
