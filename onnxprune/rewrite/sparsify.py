"""Set weights to zero and write new values: tensors keep their shapes, names and types, nodes are not touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.contract import LayerPlan
from onnxprune.errors import ProofError
from onnxprune.graph.structure import Graph
from onnxprune.matrix import from_matrix
from onnxprune.network import Layer
from onnxprune.rewrite.cut import light_copy, replace_numbers


@dataclass(frozen=True)
class Thinned:
    """What is written to one parameter: the plan, and the layer whose matrix it speaks of."""

    layer: Layer
    plan: LayerPlan


def sparsify(graph: Graph, plans: Mapping[str, Thinned]) -> onnx.ModelProto:
    """A new model with every plan carried out; `graph.model` is left as it is. Weights that stay unchanged keep their bytes."""
    model = light_copy(graph.model, lambda tensor: tensor.name in plans)
    stored = stored_tensors(model)
    for name, thinned in plans.items():
        replace_numbers(stored[name], graph.parameters[name], _value(graph.array(name), thinned))
    return model


def stored_tensors(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers and the values of Constant nodes, by name."""
    constants = {
        node.output[0]: node.attribute[0].t
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t")
    }
    return constants | {tensor.name: tensor for tensor in model.graph.initializer}


def stored_arrays(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Every initializer and constant tensor, by name."""
    return {name: numpy_helper.to_array(tensor) for name, tensor in stored_tensors(model).items()}


def _value(value: NDArray[Any], thinned: Thinned) -> NDArray[Any]:
    keep = kept(thinned, value.shape)
    if thinned.plan.matrix is None:
        return np.where(keep, value, np.zeros_like(value))
    new = from_matrix(thinned.layer, thinned.plan.matrix, value.shape).cpu().numpy().astype(value.dtype)
    return np.where(keep, new, np.zeros_like(value))


def kept(thinned: Thinned, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which stored weights stay."""
    # A Gemm's alpha scales values, not marks.
    marks = from_matrix(thinned.layer, thinned.plan.keep.double(), shape)
    return np.asarray((marks != 0).cpu().numpy())


def prove_zeros(model: onnx.ModelProto, plans: Mapping[str, Thinned]) -> int:
    """The zeros of the pruned parameters. Raises ProofError where a weight that had to go is there, or is not a number."""
    stored = stored_tensors(model)
    zeros = 0
    for name, thinned in plans.items():
        value = numpy_helper.to_array(stored[name]).astype(np.float64)
        if not bool(np.isfinite(value).all()) or bool((value[~kept(thinned, value.shape)] != 0).any()):
            raise ProofError(f"weights of {name!r} that had to go are still there", "nothing was written; please report this")
        zeros += int((value == 0).sum())
    return zeros
