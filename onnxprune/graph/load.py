"""Read an ONNX file from disk, external data included, and refuse with one clear line what is not a usable model."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
from google.protobuf import json_format, text_format
from google.protobuf.message import DecodeError, EncodeError

from onnxprune.errors import ModelError
from onnxprune.graph import surgeon
from onnxprune.graph.dense import densify
from onnxprune.graph.external import bytes_of, read_external, tensors
from onnxprune.graph.inline import inline
from onnxprune.graph.light import SMALL, light
from onnxprune.graph.unfuse import unfuse

# Above this a protobuf cannot be serialised (2 GiB) and the checker cannot be asked.
SERIALISABLE = 1_900_000_000
# What the checker says of operators that ONNX Runtime has.
RUNS_ALL_THE_SAME = ("Op registered for GroupNormalization is deprecated", "No Op registered for SimplifiedLayerNormalization")


@dataclass(frozen=True)
class ModelFile:
    """A model in memory and where it came from.

    model      all weights inside, whatever way they were stored
    external   tensor name -> location of its external data, relative to the model; empty when the weights lay in the file
    """

    model: onnx.ModelProto = field(repr=False)
    path: Path | None
    sha256: str
    size: int
    external: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return self.path.name if self.path else "model"

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that it was read from: they are never written to."""
        return (self.path, *_beside(self.path, self.external)) if self.path else ()


def load(source: str | os.PathLike[str] | onnx.ModelProto) -> ModelFile:
    """Read `source` (a path or a ModelProto, which is copied) and check it.

    Raises ModelError for what is missing, truncated, not ONNX, cyclic or refused by onnx.checker.
    """
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        path, external = None, read_external(model, Path(), None)
        fingerprint, size = _fingerprint(model)
    elif not isinstance(source, str | os.PathLike):
        raise ModelError(
            f"an object of type {type(source).__name__} is no model", "give the path of an .onnx file, or an onnx.ModelProto"
        )
    else:
        path = Path(source)
        model, digest, size = _parse(path)
        external = read_external(model, path.parent, path)
        size += _digest(digest, _beside(path, external))
        fingerprint = digest.hexdigest()
    if not model.graph.node:
        raise ModelError(f"{path or 'the model'} holds no nodes", "give a file that an ONNX exporter wrote")
    if not model.graph.output:
        raise ModelError(f"{path or 'the model'} has no outputs", "export it again: nothing says what it is to compute")
    notes = [*_dissolve(model), *_check(model, str(path or "the model"))]
    return ModelFile(model, path, fingerprint, size, external, tuple(notes))


def _dissolve(model: onnx.ModelProto) -> list[str]:
    """Sparse weights become dense, nodes that stand for several become those: what is inside can be followed then."""
    sparse, functions, fused = densify(model), inline(model), unfuse(model)
    notes = []
    if sparse:
        notes.append(f"{sparse} sparse weights were made dense on loading; --sparse-storage writes those of layers sparse again")
    if functions:
        notes.append(f"{functions} functions of the model were replaced by the nodes inside them")
    if fused:
        notes.append(f"{fused} nodes that ONNX Runtime had fused were written as their parts; it fuses them again on loading")
    return notes


def _parse(path: Path) -> tuple[onnx.ModelProto, hashlib._Hash, int]:
    """The model as it stands in its file, its digest so far and its size: it is read once only."""
    form: Any = onnx.serialization.registry.get_format_from_file_extension(path.suffix) or "protobuf"
    try:
        _look_at(path)
        content = path.read_bytes()
        with warnings.catch_warnings(action="ignore"):  # onnx calls its own text form experimental
            model = onnx.load_model_from_string(content, form)
    except (DecodeError, json_format.Error, text_format.Error, onnx.parser.ParseError, ValueError) as error:
        raise ModelError(f"{path} is not an ONNX model or was cut short", "export or download it again") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})", "check the path and its permissions") from error
    if model.ir_version < 1 or not model.HasField("graph"):
        raise ModelError(f"{path} is not an ONNX model or was cut short", "export or download it again")
    return model, hashlib.sha256(content), len(content)


def _look_at(path: Path) -> None:
    if not path.exists():
        raise ModelError(f"{path} does not exist", "check the path")
    if path.is_dir():
        raise ModelError(f"{path} is a folder", "name the .onnx file inside it")
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty", "export or download it again")


def _beside(path: Path, external: Mapping[str, str]) -> list[Path]:
    """The data files of the model in `path`."""
    return [path.parent / location for location in sorted(set(external.values()))]


def _digest(digest: hashlib._Hash, files: list[Path]) -> int:
    """Take data files into the digest; returns their size together."""
    size = 0
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                size += len(block)
    return size


def _fingerprint(model: onnx.ModelProto) -> tuple[str, int]:
    """The same for a model that never was a file; deterministic serialisation, weight by weight above 2 GiB."""
    digest, size = hashlib.sha256(), 0
    parts = (model,) if stored_bytes(model) < SERIALISABLE else (*model.graph.initializer, *model.graph.node)
    for part in parts:
        block = part.SerializeToString(deterministic=True)
        digest.update(block)
        size += len(block)
    return digest.hexdigest(), size


def stored_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the weights inside; close enough to the file's size to know whether it can be one protobuf."""
    return sum(bytes_of(t) or t.ByteSize() for _, t in tensors(model))


def _check(model: onnx.ModelProto, name: str) -> list[str]:
    notes = []
    if not surgeon.is_sorted(model.graph):
        surgeon.sort(model, name)
        notes.append("the nodes were not in topological order; the result has them sorted")
    listed = {i.name for i in model.graph.input}
    if model.ir_version < 4 and any(t.name not in listed for t in model.graph.initializer):
        model.ir_version = 4
        notes.append("IR version 3 wants every weight listed as an input, which they are not; the result has IR version 4")
    try:
        _ask_checker(model)
    except (onnx.checker.ValidationError, EncodeError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        if not any(words in line for words in RUNS_ALL_THE_SAME):
            raise ModelError(f"{name} is not valid ONNX: {line.rstrip('. ')}", "export it again, or ask its maker") from error
        notes.append(f"onnx.checker refuses the model, ONNX Runtime may take it: {line.rstrip('. ')}")
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest:
            raise ModelError(
                f"{name} uses opset {entry.version}, the installed onnx knows them up to {newest}",
                "pip install -U onnx, or export it with an older opset",
            )
    for _, tensor in tensors(model):
        if len(tensor.dims) > 1 and 0 in tensor.dims:
            raise ModelError(f"weight {tensor.name!r} of {name} has the shape {list(tensor.dims)}", "export it with real sizes")
    return notes


def _ask_checker(model: onnx.ModelProto) -> None:
    """The model without its large weights, which would be copied twice for it; these by their own size."""
    small = light(model)
    small.graph.name = model.graph.name
    onnx.checker.check_model(small)
    for _, tensor in tensors(model):
        if math.prod(tensor.dims) > SMALL and not (tensor.HasField("raw_data") and len(tensor.raw_data) == bytes_of(tensor)):
            onnx.checker.check_tensor(tensor)
