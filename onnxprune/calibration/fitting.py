"""From arrays as people have them to blocks of samples as the model wants them, or an error that says which array is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import DataError

Array = NDArray[Any]
Block = dict[str, Array]
"""Samples by input name; axis 0 of every batched input counts them."""

BLOCK_BYTES = 16_000_000
BLOCK_ROWS = 256


@dataclass(frozen=True)
class InputSpec:
    """One model input; None is a dynamic dimension. Axis 0 counts samples unless `batched` is False (a scalar never has one)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    batched: bool = True

    @property
    def sample_shape(self) -> tuple[int | None, ...]:
        return self.shape[1:] if self.batched else self.shape


def settle(inputs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The inputs, with `batched` taken away where axis 0 is no batch: scalars, and fixed lengths that contradict each other."""
    specs = [replace(spec, batched=spec.batched and bool(spec.shape)) for spec in inputs]
    fixed = {spec.shape[0] for spec in specs if spec.batched and spec.shape[0] is not None}
    return tuple(replace(spec, batched=False) if len(fixed) > 1 else spec for spec in specs)


def fixed_batch(inputs: Sequence[InputSpec]) -> int | None:
    """The only batch size the model takes; None where it takes any."""
    if not any(spec.batched for spec in inputs):
        return 1
    return next((spec.shape[0] for spec in inputs if spec.batched and spec.shape[0] is not None), None)


@dataclass(frozen=True)
class Column:
    """One array, wherever it lies: `blocks(n)` reads it again from the start, n rows at a time."""

    label: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Callable[[int], Iterator[Array]]


def array_column(label: str, array: Array) -> Column:
    def blocks(rows: int) -> Iterator[Array]:
        yield from (array[i : i + rows] for i in range(0, len(array), rows)) if array.ndim else iter([array])

    return Column(label, array.shape, array.dtype, blocks)


@dataclass(frozen=True)
class Item:
    """Arrays that belong together (one file, one thing an iterable gave), by the names they came with."""

    label: str
    columns: Mapping[str, Column]


@dataclass(frozen=True)
class Fitted:
    """An item whose arrays were found to fit; `rows` samples."""

    rows: int
    columns: tuple[tuple[InputSpec, Column], ...]

    def blocks(self) -> Iterator[Block]:
        """The samples, cast and checked, in blocks small enough for any machine."""
        sizes = [column.dtype.itemsize * int(np.prod(column.shape[1:])) for _, column in self.columns]
        step = int(max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, *sizes, 1))))
        still = {spec.name: _whole(spec, column) for spec, column in self.columns if not spec.batched}
        moving = [(spec, column, self._rows(spec, column, step)) for spec, column in self.columns if spec.batched]
        for start in range(0, self.rows, step):
            block = {spec.name: cast(column.label, next(rows), spec, start) for spec, column, rows in moving}
            yield block | still

    @staticmethod
    def _rows(spec: InputSpec, column: Column, step: int) -> Iterator[Array]:
        if len(column.shape) == len(spec.shape):
            return column.blocks(step)
        return iter([_read(column)[None]])


def _read(column: Column) -> Array:
    return np.concatenate(list(column.blocks(BLOCK_ROWS))) if column.shape else next(column.blocks(1))


def _whole(spec: InputSpec, column: Column) -> Array:
    return cast(column.label, _read(column), spec, None)


def fit(item: Item, inputs: Sequence[InputSpec]) -> Fitted:
    """Find each input's array and check its shape; reads no data."""
    columns = _match(item, inputs)
    counts = {column.label: _row_count(column, spec) for spec, column in columns if spec.batched}
    for spec, column in columns:
        if not spec.batched:
            _row_count(column, spec)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{label}: {count}" for label, count in counts.items())
        raise DataError(f"the arrays hold different numbers of samples ({listed})", "give every input the same number")
    return Fitted(next(iter(counts.values()), 1), columns)


def _match(item: Item, inputs: Sequence[InputSpec]) -> tuple[tuple[InputSpec, Column], ...]:
    missing = [spec.name for spec in inputs if spec.name not in item.columns]
    if not missing:
        return tuple((spec, item.columns[spec.name]) for spec in inputs)
    if len(inputs) == 1 and len(item.columns) == 1:
        return ((inputs[0], next(iter(item.columns.values()))),)
    names = sorted(item.columns)
    near = difflib.get_close_matches(missing[0], names, n=1, cutoff=0.5)
    remedy = f"rename array {near[0]!r} to {missing[0]!r}" if near else f"its arrays are: {', '.join(names) or 'none'}"
    raise DataError(f"{item.label} has no array for model input {missing[0]!r}", remedy)


def _row_count(column: Column, spec: InputSpec) -> int:
    """How many samples the array holds; an array one rank short is a single sample."""
    if column.dtype.hasobject:
        raise DataError(f"{column.label} holds Python objects", "save it as an array of numbers")
    got, want = column.shape, spec.sample_shape
    batch = spec.batched and len(got) == len(want) + 1
    if 0 in got:
        raise DataError(f"{column.label} is empty (shape {show(got)})", "give at least one sample")
    sample = got[1:] if batch else got
    if not _same(sample, want):
        problem = f"{column.label} has shape {show(got)}, model input {spec.name!r} wants {show(spec.shape)}"
        raise DataError(problem, _shape_remedy(sample, want))
    return got[0] if batch else 1


def _same(got: Sequence[int], want: Sequence[int | None]) -> bool:
    return len(got) == len(want) and all(b is None or a == b for a, b in zip(got, want, strict=True))


def _shape_remedy(sample: tuple[int, ...], want: tuple[int | None, ...]) -> str:
    if len(sample) == len(want) >= 2:
        if _same((sample[-1], *sample[:-1]), want):
            return "the channels come last in the data and first in the model: use numpy.moveaxis(array, -1, 1)"
        if _same((*sample[1:], sample[0]), want):
            return "the channels come first in the data and last in the model: use numpy.moveaxis(array, 1, -1)"
    return "reshape or resize the data to what the model wants"


def show(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"


def _is_float(dtype: np.dtype[Any]) -> bool:
    # The short floats of ml_dtypes are a kind of their own to numpy.
    return dtype.kind == "f" or dtype.name == "bfloat16" or dtype.name.startswith("float8")


def cast(label: str, array: Array, spec: InputSpec, first: int | None) -> Array:
    """A copy in the model's type; refuses NaN, infinity and what would lose more than precision. `first` is row 0's number."""
    want = spec.dtype
    if not (_is_float(array.dtype) or array.dtype.kind in "biu"):
        raise DataError(f"{label} holds {array.dtype}, model input {spec.name!r} wants {want}", "save it as an array of numbers")
    if _is_float(array.dtype) and not _is_float(want):
        raise DataError(
            f"{label} holds {array.dtype}, model input {spec.name!r} wants {want}", f"convert it with .astype('{want}')"
        )
    _refuse(~np.isfinite(array) if _is_float(array.dtype) else None, label, first, "holds NaN or infinity", "clean the data")
    with np.errstate(over="ignore"):
        result: Array = array.astype(want)
    lost = ~np.isfinite(result) if _is_float(want) else result != array
    _refuse(lost, label, first, f"holds values that do not fit into {want}", "scale the data as in training")
    return result


def _refuse(bad: Array | None, label: str, first: int | None, problem: str, remedy: str) -> None:
    if bad is None or not bad.any():
        return
    where = "" if first is None else f", sample {first + int(np.argwhere(bad)[0][0])},"
    raise DataError(f"{label}{where} {problem}", remedy)
