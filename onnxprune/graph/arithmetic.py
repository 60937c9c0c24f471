"""Shape arithmetic on known numbers: what exporters write by the thousand by numpy, the rest by ONNX's evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

Values = Sequence[NDArray[Any]]


def compute(node: onnx.NodeProto, inputs: Mapping[str, NDArray[Any]], opsets: Mapping[str, int]) -> list[NDArray[Any]] | None:
    """The outputs of a node, None where they cannot be told (an operator that the evaluator lacks is no error)."""
    quick = QUICK.get(node.op_type) if node.domain in ("", "ai.onnx") and len(node.output) == 1 else None
    names = [o for o in node.output if o]
    try:
        with np.errstate(all="ignore"):  # relative positions take the logarithm of 0, and do not use it
            if quick is not None:
                return [np.asarray(quick(node, [inputs[name] for name in node.input]))]
            return [np.asarray(f) for f in ReferenceEvaluator(node, opsets=dict(opsets)).run(names, dict(inputs))]
    except Exception:  # whatever numpy or the evaluator objects to: the value is just not known
        return None


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _axes(node: onnx.NodeProto, values: Values) -> tuple[int, ...] | None:
    """Axes of Squeeze and Unsqueeze: an attribute up to opset 12, an input since."""
    given = values[1] if len(values) > 1 else _attribute(node, "axes", None)
    return None if given is None else tuple(int(a) for a in given)


def _unsqueeze(node: onnx.NodeProto, values: Values) -> NDArray[Any]:
    return np.expand_dims(values[0], _axes(node, values) or ())


def _squeeze(node: onnx.NodeProto, values: Values) -> NDArray[Any]:
    return np.squeeze(values[0], _axes(node, values))


def _gather(node: onnx.NodeProto, values: Values) -> NDArray[Any]:
    return np.asarray(np.take(values[0], values[1], axis=_attribute(node, "axis", 0)))


def _concat(node: onnx.NodeProto, values: Values) -> NDArray[Any]:
    return np.concatenate(values, axis=_attribute(node, "axis", 0))


def _cast(node: onnx.NodeProto, values: Values) -> NDArray[Any]:
    return values[0].astype(helper.tensor_dtype_to_np_dtype(_attribute(node, "to", 1)))


QUICK: dict[str, Callable[[onnx.NodeProto, Values], Any]] = {
    "Add": lambda _, v: v[0] + v[1],
    "Cast": _cast,
    "Concat": _concat,
    "Equal": lambda _, v: v[0] == v[1],
    "Gather": _gather,
    "Identity": lambda _, v: v[0],
    "Mul": lambda _, v: v[0] * v[1],
    "Squeeze": _squeeze,
    "Sub": lambda _, v: v[0] - v[1],
    "Unsqueeze": _unsqueeze,
    "Where": lambda _, v: np.where(v[0], v[1], v[2]),
}
