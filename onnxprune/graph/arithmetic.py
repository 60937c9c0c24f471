"""Shape arithmetic on known numbers: what exporters write by the thousand by numpy, the rest by ONNX's evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Values = Sequence[NDArray[Any]]


def compute(node: onnx.NodeProto, inputs: Mapping[str, NDArray[Any]], opsets: Mapping[str, int]) -> list[NDArray[Any]] | None:
    """The outputs of a node, None where they cannot be told (an operator that the evaluator lacks is no error)."""
    quick = QUICK.get(node.op_type) if len(node.output) == 1 and all(node.input) and node.domain in ("", "ai.onnx") else None
    names = [o for o in node.output if o]
    try:
        with np.errstate(all="ignore"):  # relative positions take the logarithm of 0, and do not use it
            if quick is not None:
                return [np.asarray(quick(node, [inputs[name] for name in node.input]))]
            found = ReferenceEvaluator(node, opsets=dict(opsets)).run(names, dict(inputs))
            return None if any(isinstance(f, list) for f in found) else [np.asarray(f) for f in found]  # a list: a sequence
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


def _slice(node: onnx.NodeProto, values: Values) -> NDArray[Any]:
    """Starts, ends, axes and steps: attributes up to opset 9, inputs since."""
    data, *given = values
    starts, ends, axes, steps = (
        given[i].tolist() if i < len(given) else _attribute(node, name, None)
        for i, name in enumerate(("starts", "ends", "axes", "steps"))
    )
    taken = [slice(None)] * data.ndim
    for i, axis in enumerate(range(len(starts)) if axes is None else axes):
        taken[axis] = slice(starts[i], ends[i], None if steps is None else steps[i])
    return data[tuple(taken)]


def _reshape(node: onnx.NodeProto, values: Values) -> NDArray[Any]:
    """0 takes over the length of the input, unless `allowzero`."""
    data, target = values
    zeros = _attribute(node, "allowzero", 0)
    return data.reshape([data.shape[i] if n == 0 and not zeros else n for i, n in enumerate(target.tolist())])


def _filled(node: onnx.NodeProto, values: Values) -> NDArray[Any]:
    value = _attribute(node, "value", None)
    return np.full(values[0].tolist(), np.float32(0) if value is None else numpy_helper.to_array(value).reshape(-1)[0])


def _cast(node: onnx.NodeProto, values: Values) -> NDArray[Any]:
    return values[0].astype(helper.tensor_dtype_to_np_dtype(_attribute(node, "to", 1)))


QUICK: dict[str, Callable[[onnx.NodeProto, Values], Any]] = {
    "Add": lambda _, v: v[0] + v[1],
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Equal": lambda _, v: v[0] == v[1],
    "Gather": _gather,
    "Identity": lambda _, v: v[0],
    "Mul": lambda _, v: v[0] * v[1],
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": lambda _, v: v[0] - v[1],
    "Unsqueeze": _unsqueeze,
    "Where": lambda _, v: np.where(v[0], v[1], v[2]),
}
