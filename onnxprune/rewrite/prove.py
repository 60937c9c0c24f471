"""The proof: the smaller model, repair and reweighing switched off, gives what its masked twin gives on real inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnxprune.devices import Device
from onnxprune.errors import DataError, ModelError, ProofError
from onnxprune.graph.load import SERIALISABLE, stored_bytes
from onnxprune.graph.structure import Graph
from onnxprune.network import Bools, Network
from onnxprune.rewrite.cut import light_copy, replace_numbers
from onnxprune.rewrite.mask import masked_twin
from onnxprune.rewrite.sparsify import stored_tensors
from onnxprune.runtime import Session

Feeds = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]
ROUNDED = 0.1
TOLERANCE: dict[int, float] = {TensorProto.FLOAT16: 1e-2, TensorProto.BFLOAT16: 5e-2}


def prove(
    graph: Graph, network: Network, alive: Bools, pruned: onnx.ModelProto, batches: Iterable[Feeds], device: Device,
    broken: Set[str] = frozenset(),
) -> float:  # fmt: skip
    """The largest difference to the twin over all outputs and batches, relative to the largest value of that output.

    broken   weights that hold NaN or infinity, the same in both models; see `outputs`

    Raises ProofError above 1e-4 (float16: 1e-2): then the rewrite is wrong, and the result must not leave.

    Where activations are rounded to integers (which ONNX Runtime also does of its own accord in front of quantised weights),
    products of integers are exact and so is the proof. But a float that lies between two integers up to its last digit may be
    rounded to either when sums are taken in another order: one quantisation step there, some more of them behind it. So whole
    outputs are compared, by their norms, and may differ by a tenth.
    """
    feeds = list(batches)
    twin = outputs(masked_twin(graph, network, alive), feeds, device, broken)
    try:
        small = outputs(pruned, feeds, device, broken)
    except (DataError, ModelError) as error:
        problem = f"the pruned model does not run where its masked twin does: {error.problem}"
        raise ProofError(problem, "nothing was written; please report this with the model") from error
    return _worst(small, twin, graph, "the pruned model differs from its masked twin")


def prove_arranged(
    graph: Graph, expected: Sequence[Outputs], batches: Iterable[Feeds], device: Device, broken: Set[str] = frozenset()
) -> float:
    """The same for channels that changed places: `graph` gives what the original gave."""
    found = outputs(graph.model, batches, device, broken)
    return _worst(found, expected, graph, "the model with its channels in another order differs")


def prove_factorised(
    graph: Graph, twin: onnx.ModelProto, pruned: onnx.ModelProto, batches: Iterable[Feeds], device: Device,
    broken: Set[str] = frozenset(),
) -> float:  # fmt: skip
    """The same for layers that became two: `twin` has the product of both as weights.

    In half precision whole outputs are compared: the twin rounds the product, the result what lies between the two.
    """
    feeds = list(batches)
    expected = outputs(twin, feeds, device, broken)
    half = bool({t.data_type for t in graph.parameters.values()} & set(TOLERANCE))
    found = outputs(pruned, feeds, device, broken)
    return _worst(found, expected, graph, "the thin layers differ from their product", whole=half)


def _worst(got: Sequence[Outputs], expected: Sequence[Outputs], graph: Graph, problem: str, *, whole: bool = False) -> float:
    worst = 0.0
    half = {t.data_type for t in graph.parameters.values()} & set(TOLERANCE)
    rounds = any("uantize" in node.op_type or "NBits" in node.op_type or node.op_type.startswith("Q") for node in graph.nodes)
    limit = ROUNDED if rounds else max((TOLERANCE[t] for t in half), default=1e-4)
    for ours, theirs in zip(got, expected, strict=True):
        for name, value in theirs.items():
            difference = _difference(ours[name], value, whole=rounds or whole)
            worst = max(worst, difference)
            if not difference <= limit:
                raise ProofError(
                    f"{problem} in output {name!r} by {difference:.1e} (limit: {limit:.0e})",
                    "nothing was written; please report this with the model",
                )
    return worst


def check_valid(model: onnx.ModelProto, original: onnx.ModelProto) -> list[str]:
    """onnx.checker with full_check, and strict shape inference: what the original passes, the result must pass.

    Returns warnings for checks that the original fails itself. Raises ProofError for those that only the result fails.
    """
    if stored_bytes(model) >= SERIALISABLE:
        return ["the model is above 2 GiB, where onnx.checker cannot be asked; ONNX Runtime loads it"]
    warnings = []
    for name, check in (("onnx.checker", _full_check), ("strict shape inference", _strict_shapes)):
        problem = check(model)
        if problem and not check(original):
            raise ProofError(
                f"the pruned model fails {name}: {problem}", "nothing was written; please report this with the model"
            )
        if problem:
            warnings.append(f"the original fails {name} already, so the result was not held to it: {problem}")
    return warnings


def _full_check(model: onnx.ModelProto) -> str:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return ""


def _strict_shapes(model: onnx.ModelProto) -> str:
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return ""


def outputs(model: onnx.ModelProto, batches: Iterable[Feeds], device: Device, broken: Set[str] = frozenset()) -> list[Outputs]:
    """broken: weights whose NaN and infinity are replaced by draws, the same in every model: they would hide all differences."""
    session = Session(_with_numbers(model, broken) if broken else model, device)
    try:
        return [session.run(feeds) for feeds in batches]
    finally:
        session.free()


def _with_numbers(model: onnx.ModelProto, broken: Set[str]) -> onnx.ModelProto:
    made = light_copy(model, lambda _: False)
    for name, stored in stored_tensors(made).items():
        if name in broken:
            value = numpy_helper.to_array(stored)
            drawn = np.random.default_rng(0).standard_normal(value.shape) / np.sqrt(max(value.size, 1))
            replace_numbers(stored, stored, np.where(np.isfinite(value.astype(np.float32)), value, drawn.astype(value.dtype)))
    return made


def _difference(got: Any, expected: Any, *, whole: bool = False) -> float:
    """max |got - expected| / max |expected|; infinite where only one of them is finite or the shapes differ.

    whole: of all values together, by the root of their squared sums.
    """
    if not isinstance(expected, np.ndarray) or expected.dtype.kind not in "fiubV":
        return 0.0
    if got.shape != expected.shape:
        return float("inf")
    a, b = got.astype(np.float64), expected.astype(np.float64)
    if not a.size:
        return 0.0
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if bool(same.all()):
        return 0.0
    if not bool((np.isfinite(a) == np.isfinite(b)).all()):
        return float("inf")
    finite = np.isfinite(b)
    if whole:
        return float(np.linalg.norm((a - b)[finite])) / max(float(np.linalg.norm(b[finite])), 1e-30)
    return float(np.abs(a - b)[finite].max() / max(np.abs(b[finite]).max(), 1e-30))
