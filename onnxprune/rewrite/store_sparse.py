"""Write weights as sparse initializers: the numbers that are not zero and where they stand. The last step; the function stays.

ONNX Runtime makes them dense again on loading, so that the file alone gets smaller. An index takes 8 bytes: single precision
gains from two thirds of zeros on, half precision from four fifths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.devices import Device
from onnxprune.errors import OnnxpruneError
from onnxprune.graph.load import SERIALISABLE
from onnxprune.rewrite.cut import light_copy
from onnxprune.rewrite.prove import Feeds, outputs

# SparseTensorProto came with this version of the format.
FIRST_IR = 6
TYPES = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}


@dataclass(frozen=True)
class Stored:
    """The model, what became sparse (name -> bytes before and after), and what stays dense with the reason."""

    model: onnx.ModelProto = field(repr=False)
    sizes: Mapping[str, tuple[int, int]]
    left: Mapping[str, str]


def store_sparse(model: onnx.ModelProto, names: Iterable[str]) -> Stored:
    """A copy in which those of `names` are sparse that get smaller by it; `model` is left as it is."""
    held = {t.name: t for t in model.graph.initializer}
    # Before IR 4 every weight is listed as an input; later only those that a caller may replace, which cannot be sparse.
    offered = {i.name for i in model.graph.input} if model.ir_version >= 4 else set()
    sizes: dict[str, tuple[int, int]] = {}
    left: dict[str, str] = {}
    made: dict[str, onnx.SparseTensorProto] = {}
    for name in names:
        tensor = held.get(name)
        if tensor is None:
            left[name] = "it stands in a Constant node"
        elif name in offered:
            left[name] = "it is an input of the model too"
        elif tensor.data_type not in TYPES:
            left[name] = f"{TensorProto.DataType.Name(tensor.data_type)} has no sparse form here"
        else:
            sparse = _sparse(tensor)
            before, after = tensor.ByteSize(), sparse.ByteSize()
            if after >= before:
                left[name] = "it would be no smaller"
            elif sum(size for _, size in sizes.values()) + after > SERIALISABLE:
                left[name] = "the file would pass 2 GiB"
            else:
                sizes[name], made[name] = (before, after), sparse
    if not made:
        return Stored(model, {}, left)
    result = light_copy(model, lambda tensor: tensor.name in made)
    for field_ in (result.graph.initializer, result.graph.input):
        kept = [item for item in field_ if item.name not in made]
        if len(kept) < len(field_):
            copies = [type(item).FromString(item.SerializeToString()) for item in kept]
            del field_[:]
            field_.extend(copies)
    result.graph.sparse_initializer.extend(made.values())
    result.ir_version = max(result.ir_version, FIRST_IR)
    return Stored(result, sizes, left)


def same_function(sparse: onnx.ModelProto, dense: onnx.ModelProto, batches: Iterable[Feeds], device: Device) -> str:
    """Why the sparse form is no good: onnx.checker or ONNX Runtime refuses it, or it gives anything else. Empty where it is."""
    feeds = list(batches)
    try:
        if sparse.ByteSize() < SERIALISABLE:
            onnx.checker.check_model(sparse)
        got = outputs(sparse, feeds, device)
    except (onnx.checker.ValidationError, OnnxpruneError) as error:
        return f"refused in this form: {str(error).strip().splitlines()[0]}"
    expected = outputs(dense, feeds, device)
    same = all(
        np.array_equal(ours[name], value, equal_nan=value.dtype.kind == "f")
        for ours, theirs in zip(got, expected, strict=True)
        for name, value in theirs.items()
        if isinstance(value, np.ndarray)
    )
    return "" if same else "ONNX Runtime gives other outputs for it"


def _sparse(tensor: onnx.TensorProto) -> onnx.SparseTensorProto:
    """Linear indices, rising."""
    value = numpy_helper.to_array(tensor)
    where = np.flatnonzero(value).astype(np.int64)
    found = onnx.SparseTensorProto(dims=tensor.dims)
    found.values.CopyFrom(numpy_helper.from_array(value.reshape(-1)[where], tensor.name))
    found.indices.CopyFrom(numpy_helper.from_array(where))
    return found
