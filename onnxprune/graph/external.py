"""Weights outside the model file: where they may lie, and how they come in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.parser
from google.protobuf import json_format, text_format
from google.protobuf.message import DecodeError

from onnxprune.errors import ModelError

# Kinds of attribute that have tensors inside.
HOLDING = {onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}


def tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every stored tensor with a name of its own: initializers by theirs, values inside nodes and subgraphs by their place."""
    return _of_graph(model.graph, "")


def _of_graph(graph: onnx.GraphProto, prefix: str) -> Iterator[tuple[str, onnx.TensorProto]]:
    for tensor in graph.initializer:
        yield prefix + tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type not in HOLDING:
                continue
            place = f"{prefix}{' '.join(node.output)} {attribute.name} "
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield place, attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _of_graph(attribute.g, place)
            for number, graph_ in enumerate(attribute.graphs):
                yield from _of_graph(graph_, f"{place}{number} ")


def read_external(model: onnx.ModelProto, folder: Path, file: Path | None) -> dict[str, str]:
    """Bring all external tensors into `model`, which lies in `folder` as `file`; returns name (see `tensors`) -> location."""
    found: dict[str, str] = {}
    beside = file.resolve().parent if file else folder.resolve()
    for key, tensor in tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {e.key: e.value for e in tensor.external_data}
            data = _allowed(folder, beside, entry.get("location", ""), tensor.name)
            tensor.raw_data = _content(data, entry, tensor)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            found[key] = entry["location"]
    return found


def data_files(path: Path) -> list[Path]:
    """The files that a model points to, unread and whether they are there or not; none where the model itself cannot be read."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, ValueError, DecodeError, json_format.Error, text_format.Error, onnx.parser.ParseError):
        return []
    locations = (e.value for _, tensor in tensors(model) for e in tensor.external_data if e.key == "location")
    return [path.parent / location for location in dict.fromkeys(locations)]


def _content(file: Path, entry: dict[str, str], tensor: onnx.TensorProto) -> bytes:
    try:
        offset, length = int(entry.get("offset", 0)), int(entry.get("length", -1))
    except ValueError as error:
        raise ModelError(f"the external data entry of tensor {tensor.name!r} is damaged ({entry})", "export it again") from error
    try:
        size = file.stat().st_size
        length = size - offset if length < 0 else length
        if offset < 0 or length < 0 or offset + length > size:
            raise ModelError(
                f"{file} holds {size} bytes, but tensor {tensor.name!r} lies at {offset}..{offset + max(length, 0)}",
                "the data file was cut short or belongs to another model",
            )
        with file.open("rb") as stream:
            stream.seek(offset)
            content = stream.read(length)
    except OSError as error:
        raise ModelError(f"external data file {file} cannot be read ({error.strerror})", "check its permissions") from error
    needed = bytes_of(tensor)
    if needed is not None and len(content) != needed:
        raise ModelError(
            f"tensor {tensor.name!r} {list(tensor.dims)} needs {needed} bytes, but its entry in {file} has {len(content)}",
            "the data file was cut short or belongs to another model",
        )
    return content


def bytes_of(tensor: onnx.TensorProto) -> int | None:
    """Bytes of a tensor; None where elements are packed or unknown."""
    try:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, TypeError, ValueError):
        return None
    packed = kind.name.startswith(("int4", "uint4", "float4", "int2", "uint2"))
    return None if packed else math.prod(tensor.dims) * kind.itemsize


def _allowed(folder: Path, beside: Path, location: str, tensor: str) -> Path:
    """The data file, if it lies where a model may point: in its folder, or (`beside`) in that of the file its link points to.

    Model hubs keep snapshots/model.onnx -> ../blobs/1 and snapshots/model.onnx_data -> ../blobs/2: both links end in one folder.
    """
    if not location or Path(location).is_absolute() or ".." in Path(location).parts or "\\" in location or "\0" in location:
        raise ModelError(
            f"tensor {tensor!r} points outside the model's folder ({location!r})",
            "this may be hostile; re-save the model with its data file beside it",
        )
    file = folder / location
    if not file.is_file():
        raise ModelError(f"external data file {file} of tensor {tensor!r} is missing", "put it beside the model")
    real = file.resolve()
    if real.is_relative_to(folder.resolve()) or real.parent == beside:
        return file
    raise ModelError(
        f"external data file {file} is a link that leaves the model's folder (to {real})",
        f"copy it: cp -L {file} {file}.copy && mv {file}.copy {file}",
    )
