"""Put a model on disk whole or not at all: one atomic rename, after the data files it points to are complete.

External data keeps its style. Data files are named after their content, so that replacing an older result never touches the bytes
an older model file still points to: whoever is killed in between finds the old pair or the new one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import onnx
from google.protobuf.message import EncodeError

from onnxprune.errors import SaveError
from onnxprune.graph.load import SERIALISABLE, stored_bytes, tensors

# ONNX Runtime maps external data in pages; tensors that start at a page need no copy.
PAGE = 4096


def save(model: onnx.ModelProto, path: Path, external: Mapping[str, str] | None = None) -> int:
    """Write `model` to `path`; returns the bytes written, data files included.

    external   tensor name -> location in the original: tensors stored outside stay outside, in one file or in many as they were.
               Above 2 GiB everything large goes into one data file, for ONNX knows no other way.
    Raises SaveError (disk full, no permission, no such folder); then `path` is what it was before.
    """
    external = dict(external or {})
    if not external and stored_bytes(model) >= SERIALISABLE:
        external = {t.name: f"{path.name}.data" for t in tensors(model) if len(t.raw_data) >= 1024}
    written: list[Path] = []
    try:
        sizes = _write_data(model, path, external, written) if external else 0
        content = _serialise(_pointing(model, path, external) if external else model)
        with _new_file(path) as (stream, temporary):
            stream.write(content)
            _durable(stream)
            temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        for file in written:
            with suppress(OSError):
                file.unlink()
        raise SaveError(f"cannot write {path}: {_reason(error)}", _remedy(error)) from error
    _tidy(path, written)
    return sizes + len(content)


def check_target(path: Path, source: Path | None) -> None:
    """Refuse before any work is done what cannot be written after it: the input itself, a folder, a place without permission."""
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise SaveError(f"{path} is the input", "name another file with -o; the input is never overwritten")
    if path.is_dir():
        raise SaveError(f"{path} is a folder", "name the file to write")
    if path.exists() and not path.is_file():
        raise SaveError(f"{path} is no regular file", "name the file to write")
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


def _write_data(model: onnx.ModelProto, path: Path, external: dict[str, str], written: list[Path]) -> int:
    """Write the data files and turn `external` into tensor -> new location. Names carry a hash of the content."""
    by_file: dict[str, list[onnx.TensorProto]] = {}
    for tensor in tensors(model):
        if tensor.name in external:
            by_file.setdefault(external[tensor.name], []).append(tensor)
    total = 0
    many = len(by_file) > 1
    for location, group in by_file.items():
        with _new_file(path) as (stream, temporary):
            digest = hashlib.sha256()
            for tensor in group:
                stream.write(b"\0" * (-stream.tell() % PAGE))
                data = raw(tensor)
                digest.update(data)
                stream.write(data)
            size = stream.tell()
            _durable(stream)
            stem = f"{path.name}.{Path(location).name}" if many else path.name
            name = f"{stem}.{digest.hexdigest()[:12]}.data"
            if not (path.parent / name).exists():
                written.append(path.parent / name)
            temporary.replace(path.parent / name)
        total += size
        for tensor in group:
            external[tensor.name] = name
    return total


def raw(tensor: onnx.TensorProto) -> bytes:
    """The bytes of a tensor in the layout of raw_data, however it is stored."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    return bytes(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data)


def _pointing(model: onnx.ModelProto, path: Path, external: Mapping[str, str]) -> onnx.ModelProto:
    """A copy of the model whose external tensors point to the data files instead of holding bytes."""
    from onnxprune.rewrite.cut import light_copy

    pointing = light_copy(model, lambda t: t.name in external)
    offsets: dict[str, int] = {}
    sources = {t.name: t for t in tensors(model)}
    for tensor in tensors(pointing):
        if tensor.name not in external:
            continue
        source, location = sources[tensor.name], external[tensor.name]
        begin = offsets.get(location, 0)
        begin += -begin % PAGE
        length = len(raw(source))
        offsets[location] = begin + length
        doc = source.doc_string
        tensor.CopyFrom(onnx.TensorProto(name=source.name, data_type=source.data_type, dims=source.dims))
        if doc:
            tensor.doc_string = doc
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", begin), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    return pointing


def _tidy(path: Path, written: list[Path]) -> None:
    """Data files of an earlier result under the same name are of no use once the new model is in place."""
    keep = {p.name for p in written} | set(_locations(path))
    for old in path.parent.glob(f"{path.name}.*.data"):
        if old.name not in keep:
            with suppress(OSError):
                old.unlink()


def _locations(path: Path) -> list[str]:
    model: Any = onnx.load(str(path), load_external_data=False)
    return [e.value for t in tensors(model) for e in t.external_data if e.key == "location"]


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
