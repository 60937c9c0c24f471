"""Sample inputs in files: .npz, .npy and ONNX test data sets, read piece by piece so that their size does not matter."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]
from numpy.lib import format as npy

from onnxprune.calibration.fitting import Array, Column, InputSpec, Item, array_column
from onnxprune.errors import DataError

ARRAY_SUFFIXES = (".npy", ".npz")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    # zipfile raises NotImplementedError for ways of packing that it cannot read.
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, DecodeError, NotImplementedError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} cannot be read: {reason}", "write it again with numpy.save, numpy.savez or onnx.numpy_helper"
        ) from error


def array_file(path: Path) -> Item:
    """One .npy (an array without a name) or .npz."""
    if path.suffix.lower() == ".npy":
        return Item(str(path), {path.stem: _npy_column(path)})
    with _readable(path), zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        return Item(str(path), {name.removesuffix(".npy"): _member_column(path, archive, name) for name in members})


def _npy_column(path: Path) -> Column:
    def blocks(rows: int) -> Iterator[Array]:
        with _readable(path):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        yield from array_column(str(path), array).blocks(rows)

    with _readable(path), path.open("rb") as file:
        shape, _, dtype = _header(file)
    return Column(str(path), shape, dtype, blocks)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"npy version {version} is for structured arrays")
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype


def _member_column(path: Path, archive: zipfile.ZipFile, member: str) -> Column:
    """A member of an archive has to be read from its start: np.load would hold all of it, this holds `rows` rows."""
    label = f"{path}: array {member.removesuffix('.npy')!r}"
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file)

    def blocks(rows: int) -> Iterator[Array]:
        with _readable(path), zipfile.ZipFile(path) as again, again.open(member) as stream:
            if fortran or not shape:
                # Rows of a column-major array are spread over the whole of it.
                yield from array_column(label, npy.read_array(stream, allow_pickle=False)).blocks(rows)
                return
            _header(stream)
            size = dtype.itemsize * int(np.prod(shape[1:]))
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                content = stream.read(count * size)
                if len(content) < count * size:
                    raise ValueError(f"array {member!r} ends too early")
                yield np.frombuffer(content, dtype).reshape(count, *shape[1:])

    return Column(label, shape, dtype, blocks)


def data_sets(folder: Path) -> list[Path]:
    """The ONNX test data sets in `folder`, or `folder` itself where it is one."""
    if any(folder.glob("input_*.pb")):
        return [folder]
    found = [path for path in folder.glob("test_data_set_*") if any(path.glob("input_*.pb"))]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def data_set_item(folder: Path, inputs: Sequence[InputSpec]) -> Item:
    """input_K.pb holds the K-th graph input; the name inside, where there is one, says the same more surely."""
    columns: dict[str, Column] = {}
    known = [spec.name for spec in inputs]
    for path in folder.glob("input_*.pb"):
        tensor = onnx.TensorProto()
        with _readable(path):
            tensor.ParseFromString(path.read_bytes())
            array = onnx.numpy_helper.to_array(tensor)
            place = int(path.stem.removeprefix("input_"))
        name = tensor.name if tensor.name in known or place >= len(known) else known[place]
        columns[name] = array_column(str(path), array)
    return Item(str(folder), columns)
