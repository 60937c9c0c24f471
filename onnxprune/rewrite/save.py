"""Put a model on disk whole or not at all: one atomic rename, after the data files it points to are complete.

External data keeps its style. Data files are named after their content, so that replacing an older result never touches the bytes
an older model file still points to: whoever is killed in between finds the old pair or the new one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import onnx
from google.protobuf.message import DecodeError, EncodeError

from onnxprune.errors import SaveError
from onnxprune.graph.external import tensors
from onnxprune.graph.load import SERIALISABLE
from onnxprune.rewrite.cut import light_copy

# ONNX Runtime maps external data in pages; tensors that start at a page need no copy.
PAGE = 4096
# Hexadecimal digits of the content's sha256 in the name of a data file.
HASH = 12
# What onnx reads as text by its suffix; we write protobuf.
TEXT = {".json", ".onnxjson", ".onnxtext", ".onnxtxt", ".pbtxt", ".prototxt", ".textproto", ".txtpb"}


def save(model: onnx.ModelProto, path: Path, external: Mapping[str, str] | None = None, inputs: Iterable[Path] = ()) -> int:
    """Write `model` to `path`; returns the bytes written, data files included.

    external   tensor name -> location in the original: tensors stored outside stay outside, in one file or in many as they were.
               Above 2 GiB everything large goes into one data file, for ONNX knows no other way.
    inputs     files that stay even if an earlier result pointed to them
    Raises SaveError (disk full, no permission, no such folder); then `path` is what it was before.
    """
    outside = _outside(model, path, external or {})
    stale = _data_files(path)
    written: list[Path] = []
    try:
        places, sizes = _write_data(model, path, outside, written)
        content = _serialise(_pointing(model, places) if places else model)
        with _new_file(path) as (stream, temporary):
            stream.write(content)
            _durable(stream)
            temporary.replace(path)
    except BaseException as error:
        for file in written:
            with suppress(OSError):
                file.unlink()
        if isinstance(error, OSError):
            raise SaveError(f"cannot write {path}: {_reason(error)}", _remedy(error)) from error
        raise
    _sync_folder(path.parent)
    _tidy(path, stale - {place.location for place in places.values()}, inputs)
    return sizes + len(content)


def _outside(model: onnx.ModelProto, path: Path, external: Mapping[str, str]) -> dict[str, str]:
    """tensor name -> location of all that goes into data files; a clone ('weight@node') goes where its original lay."""
    stored = dict(tensors(model))
    found: dict[str, str] = {}
    for name in stored:
        parts = name.split("@")
        origins = ("@".join(parts[:n]) for n in range(len(parts), 0, -1))
        origin = next((o for o in origins if o in external), None)
        if origin is not None:
            found[name] = external[origin]
    if sum(len(t.raw_data) for name, t in stored.items() if name not in found) >= SERIALISABLE:
        large = (name for name, t in stored.items() if name not in found and len(t.raw_data) >= 1024)
        found |= dict.fromkeys(large, f"{path.name}.data")
    return found


def check_target(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse before any work is done what cannot be written after it: an input, a folder, a place without permission.

    inputs     the files of the original: the model's own and those of its external data
    """
    for source in inputs:
        if _same(path, source):
            what = "is the input" if path.name == source.name else f"is the input {source}"
            raise SaveError(f"{path} {what}", "name another file with -o; the input is never overwritten")
    if path.is_dir():
        raise SaveError(f"{path} is a folder", "name the file to write")
    if path.exists() and not path.is_file():
        raise SaveError(f"{path} is no regular file", "name the file to write")
    if path.suffix.lower() in TEXT:
        raise SaveError(f"{path} would be read as text, but models are written in binary form", "end the name in .onnx")
    if not path.parent.is_dir():
        raise SaveError(f"the folder {path.parent} does not exist", "make it first, or name another place with -o")
    if not os.access(path.parent, os.W_OK):
        raise SaveError(f"cannot write into the folder {path.parent}", "check its permissions, or name another place with -o")


def _serialise(model: onnx.ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise SaveError("the model is larger than 2 GiB even without its weights", "report this with the model") from error


@contextmanager
def _new_file(path: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A temporary file beside `path`, gone again unless it was renamed."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            temporary.chmod(0o666 & ~_umask())
            yield stream, temporary
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _durable(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """A rename survives a power cut once the folder is on disk; not every system lets folders be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Place(NamedTuple):
    """Where a tensor lies outside."""

    location: str
    offset: int
    length: int


def _write_data(
    model: onnx.ModelProto, path: Path, outside: Mapping[str, str], written: list[Path]
) -> tuple[dict[str, Place], int]:
    """Write the data files; returns tensor name -> place, and the bytes written. File names carry a hash of the content.

    `written` collects files that were not there before.
    """
    by_file: dict[str, list[tuple[str, onnx.TensorProto]]] = {}
    for name, tensor in tensors(model):
        if name in outside:
            by_file.setdefault(outside[name], []).append((name, tensor))
    places: dict[str, Place] = {}
    total = 0
    for location, group in by_file.items():
        stem = f"{path.name}.{Path(location).name}" if len(by_file) > 1 else path.name
        with _new_file(path) as (stream, temporary):
            found, digest = _write_tensors(stream, group)
            _durable(stream)
            final = path.parent / f"{stem}.{digest[:HASH]}.data"
            if not final.exists():
                written.append(final)
            temporary.replace(final)
        places |= {name: Place(final.name, *span) for name, span in found.items()}
        total += final.stat().st_size
    return places, total


def _write_tensors(stream: IO[bytes], group: Iterable[tuple[str, onnx.TensorProto]]) -> tuple[dict[str, tuple[int, int]], str]:
    """Tensor name -> (offset, length), and the hash of all that was written."""
    digest, spans = hashlib.sha256(), {}
    for name, tensor in group:
        data = raw(tensor)
        padding = b"\0" * (-stream.tell() % PAGE)
        spans[name] = stream.tell() + len(padding), len(data)
        for part in (padding, data):
            digest.update(part)
            stream.write(part)
    return spans, digest.hexdigest()


def raw(tensor: onnx.TensorProto) -> bytes:
    """The bytes of a tensor in the layout of raw_data, however it is stored."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    return bytes(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data)


def _pointing(model: onnx.ModelProto, places: Mapping[str, Place]) -> onnx.ModelProto:
    """A copy of the model whose external tensors point to the data files instead of holding bytes."""
    pointing = light_copy(model, lambda t: t.name in places)
    sources = dict(tensors(model))
    for name, tensor in tensors(pointing):
        if name not in places:
            continue
        source = sources[name]
        tensor.CopyFrom(onnx.TensorProto(data_type=source.data_type, dims=source.dims, metadata_props=source.metadata_props))
        if source.HasField("name"):
            tensor.name = source.name
        if source.HasField("doc_string"):
            tensor.doc_string = source.doc_string
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in places[name]._asdict().items():
            tensor.external_data.add(key=key, value=str(value))
    return pointing


def _data_files(path: Path) -> set[str]:
    """Data files of an earlier result under this name: what it points to, and what a run that was killed left; ours alone."""
    own = re.compile(re.escape(path.name) + rf"\..*\b[0-9a-f]{{{HASH}}}\.data")
    left = re.compile(re.escape(path.name) + rf"\.[0-9a-f]{{{HASH}}}\.data")
    found = {file.name for file in path.parent.iterdir() if left.fullmatch(file.name)} if path.parent.is_dir() else set()
    try:
        before = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (OSError, ValueError, DecodeError):
        return found
    locations = {e.value for _, t in tensors(before) for e in t.external_data if e.key == "location"}
    return found | {name for name in locations if own.fullmatch(name)}


def _tidy(path: Path, stale: set[str], inputs: Iterable[Path]) -> None:
    """Data files of an earlier result are of no use once the new model is in place, unless it was made from them."""
    kept = list(inputs)
    for file in (path.parent / name for name in stale):
        if not any(_same(file, source) for source in kept):
            with suppress(OSError):
                file.unlink()


def _same(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def _reason(error: OSError) -> str:
    known = {
        errno.ENOSPC: "the disk is full",
        errno.EFBIG: "the file is larger than this system allows",
        errno.EDQUOT: "the quota is used up",
    }
    return known.get(error.errno or 0, error.strerror or str(error))


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room or name another place with -o; nothing was left behind"
    return "check the folder and its permissions, or name another place with -o"
