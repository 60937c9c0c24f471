"""Where sample inputs come from, told apart by themselves, and given out in batches that are the same every time.

open_source   a path, array, iterable, reader, function in a file, or nothing  ->  Source
Source        batches(size): streams, may be asked again and again
split         two sources that share no sample, one of them held out
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.files import ARRAY_SUFFIXES, array_file, data_set_item, data_sets
from onnxprune.calibration.fitting import Array, Block, InputSpec, Item, fit, fixed_batch, settle
from onnxprune.calibration.images import SUFFIXES, Colour, frame_for, image_files, image_maker
from onnxprune.calibration.noise import WARNING, noise_maker
from onnxprune.calibration.streams import FUNCTION, Spool, is_array, items, load_function, to_item
from onnxprune.errors import DataError, UsageError

__all__ = ["InputSpec", "Source", "open_source", "refuse_without_images", "split"]

Numbers = NDArray[np.int64]
Read = Callable[[Numbers], Iterator[Block]]
"""Gives the samples of these rising numbers, in order, in blocks of any length."""

ACCEPTED = "give .npz, .npy, a folder of these, of images or of test_data_set_*, file.py:function, arrays or an iterable of them"


@dataclass(frozen=True, eq=False)
class Source:
    """Sample inputs. `label` says in one line what they are; `real` is False for made-up ones; `numbers` are those in use."""

    kind: str
    label: str
    real: bool
    inputs: tuple[InputSpec, ...]
    numbers: Numbers = field(repr=False)
    read: Read = field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.numbers)

    def batches(self, size: int) -> Iterator[Block]:
        """Batches by input name. A fixed batch axis of the model overrules `size` and drops what does not fill a batch."""
        if size < 1:
            raise UsageError(f"a batch of {size} samples", "use a batch size of 1 or more")
        exact = fixed_batch(self.inputs)
        empty = True
        for batch in rebatch(self.read(self.numbers), exact or size, exact is not None, self.inputs):
            empty = False
            yield batch
        if empty:
            raise DataError(
                f"{self.label} holds {self.count} samples, the model takes {exact} at a time", f"give at least {exact}"
            )


def rebatch(blocks: Iterator[Block], size: int, exact: bool, inputs: Sequence[InputSpec]) -> Iterator[Block]:
    """Cut and join blocks to batches of `size`. Samples of different shapes never meet in one batch."""
    batched = [spec.name for spec in inputs if spec.batched]
    held: list[Block] = []
    rows = 0
    for block in blocks:
        if held and not _alike(held[0], block, batched):
            if not exact:
                yield _join(held, batched)
            held, rows = [], 0
        length, start = (len(block[batched[0]]) if batched else 1), 0
        while start < length:
            stop = min(length, start + size - rows)
            held.append({name: array[start:stop] if name in batched else array for name, array in block.items()})
            rows, start = rows + stop - start, stop
            if rows == size:
                yield _join(held, batched)
                held, rows = [], 0
    if held and not exact:
        yield _join(held, batched)


def _alike(a: Block, b: Block, batched: Sequence[str]) -> bool:
    return all(a[n].shape[1:] == b[n].shape[1:] if n in batched else np.array_equal(a[n], b[n]) for n in a)


def _join(blocks: Sequence[Block], batched: Sequence[str]) -> Block:
    def joined(name: str) -> Array:
        parts = [block[name] for block in blocks]
        return np.concatenate(parts) if name in batched and len(parts) > 1 else parts[0]

    return {name: joined(name) for name in blocks[0]}


def split(source: Source, held_out: float) -> tuple[Source, Source]:
    """(the rest, the held-out share), spread evenly and with no sample in common; whole batches where their size is fixed."""
    if not 0 < held_out < 1:
        raise UsageError(f"a held-out share of {held_out}", "use a number between 0 and 1")
    unit = fixed_batch(source.inputs) or 1
    units = source.count // unit
    if units < 2:
        warning = "too few samples to hold any out: the result is judged by those it was made from"
        same = replace(source, warnings=(*source.warnings, warning))
        return same, same
    held = min(units - 1, max(1, round(units * held_out)))
    # Sample i goes out where i * held / units passes a whole number: evenly spread, and the same on every machine.
    unit_of = np.arange(source.count) // unit
    out = ((unit_of + 1) * held // units > unit_of * held // units) & (unit_of < units)
    return replace(source, numbers=source.numbers[~out]), replace(source, numbers=source.numbers[out])


def open_source(
    data: Any,
    inputs: Sequence[InputSpec],
    *,
    model_path: Path | None = None,
    seed: int = 0,
    samples: int = 256,
    mean: Colour = None,
    std: Colour = None,
    layout: str = "auto",
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    int_high: Mapping[str, int] = MappingProxyType({}),
) -> Source:
    """At most `samples` samples of `data`, whatever it is; None looks for test data beside the model, and makes noise up else.

    shapes     trial shapes, used where noise and images need a size the model leaves open
    int_high   by input name: whole numbers of the noise stay below it
    """
    if samples < 1:
        raise UsageError(f"{samples} samples", "use 1 or more")
    specs = settle(inputs)
    if data is None:
        make = noise_maker(specs, shapes, int_high, seed)
        return _without_data(model_path, specs, samples, f"noise (seed {seed})", make)
    if isinstance(data, str | Path):
        if FUNCTION.fullmatch(str(data)):
            return _from_python(load_function(str(data))(), "function", f"function {data}", specs, samples)
        return _from_path(Path(data), specs, samples, lambda folder: frame_for(specs, shapes, layout, mean, std, folder))
    return _from_python(data, "", "", specs, samples)


def refuse_without_images(sources: Sequence[Source], mean: Colour, std: Colour, layout: str) -> None:
    """Raises UsageError where something was said of images, and there are none: arrays are never scaled."""
    said = {"mean": mean is not None, "std": std is not None, "layout": layout != "auto"}
    given = [name for name, there in said.items() if there]
    if given and all(source.kind != "images" for source in sources):
        labels = " or ".join(dict.fromkeys(source.label for source in sources))
        problem = f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} for images, and there are none in {labels}"
        raise UsageError(problem, "leave it out, and scale arrays as the model wants them")


def _without_data(
    model_path: Path | None, specs: tuple[InputSpec, ...], samples: int, label: str, make: Callable[[int], Block]
) -> Source:
    """The test data that the ONNX model zoo puts beside a model, or noise."""
    warnings = [WARNING]
    if found := data_sets(model_path.parent) if model_path is not None else []:
        try:
            return _test_data(found, specs, samples)
        except DataError as error:
            # Nobody asked for it, so test data that does not fit is no reason to stop.
            warnings.append(f"the test data beside the model was passed over: {error.problem}")
    numbers = np.arange(max(samples, fixed_batch(specs) or 1))
    return Source("noise", label, False, specs, numbers, _one_by_one(make), tuple(warnings))


def _test_data(folders: Sequence[Path], specs: tuple[InputSpec, ...], samples: int) -> Source:
    label = f"test data {folders[0]}" + (f" and {len(folders) - 1} more" if len(folders) > 1 else "")
    return _from_items("test data", label, lambda: (data_set_item(folder, specs) for folder in folders), specs, samples)


def _from_path(path: Path, specs: tuple[InputSpec, ...], samples: int, frame: Callable[[Path], Any]) -> Source:
    if not path.exists():
        raise DataError(f"there is no file or folder {str(path)!r}", ACCEPTED)
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix in ARRAY_SUFFIXES:
            return _from_items(suffix[1:], f"{suffix[1:]} file {path}", lambda: iter([array_file(path)]), specs, samples)
        if suffix not in SUFFIXES:
            raise DataError(f"{path} is of no kind that is known as sample inputs", ACCEPTED)
        return _images([path], f"image {path}", specs, samples, frame(path.parent))
    if found := data_sets(path):
        return _test_data(found, specs, samples)
    if arrays := sorted(p for p in path.iterdir() if p.suffix.lower() in ARRAY_SUFFIXES):
        return _from_items("folder", f"folder {path} of arrays", lambda: map(array_file, arrays), specs, samples)
    if images := image_files(path):
        return _images(images, f"folder {path} of images", specs, samples, frame(path))
    raise DataError(f"{path} holds no sample inputs", ACCEPTED)


def _images(paths: Sequence[Path], label: str, specs: tuple[InputSpec, ...], samples: int, frame: Any) -> Source:
    make = image_maker(paths, frame[0])
    return Source("images", label, True, specs, np.arange(min(samples, len(paths))), _one_by_one(make), frame[1])


def _from_python(data: Any, kind: str, label: str, specs: tuple[InputSpec, ...], samples: int) -> Source:
    """Arrays are used where they lie; anything else is read once and kept on disk, for it may not give the same again."""
    if is_array(data) or isinstance(data, Mapping):
        kind, noun = kind or "array", label or ("dict of arrays" if isinstance(data, Mapping) else "array")
        item = to_item(data, noun)
        return _from_items(kind, noun, lambda: iter([item]), specs, samples)
    if not (hasattr(data, "get_next") or isinstance(data, Iterable)):
        raise DataError(f"{type(data).__name__} is of no kind that is known as sample inputs", ACCEPTED)
    kind = kind or ("reader" if hasattr(data, "get_next") else "iterable")
    spool = Spool(items(data), specs, samples)
    label = label or f"{kind} {type(data).__name__}"
    if not spool.rows:
        raise DataError(f"{label} gave no samples", "an iterator that was used up gives nothing again; make a new one")
    return Source(kind, label, True, specs, np.arange(min(samples, spool.rows)), _picked(spool.blocks, specs))


def _from_items(kind: str, label: str, give: Callable[[], Iterator[Item]], specs: tuple[InputSpec, ...], samples: int) -> Source:
    """Every header is read now, so that a file which does not fit is found before any work is done."""
    rows = 0
    for item in give():
        rows += fit(item, specs).rows
        if rows >= samples:
            break

    def blocks() -> Iterator[Block]:
        for item in give():
            yield from fit(item, specs).blocks()

    return Source(kind, label, True, specs, np.arange(min(samples, rows)), _picked(blocks, specs))


def _one_by_one(make: Callable[[int], Block]) -> Read:
    return lambda numbers: (make(int(i)) for i in numbers)


def _picked(blocks: Callable[[], Iterator[Block]], specs: Sequence[InputSpec]) -> Read:
    """Read on from the start and leave out what is not wanted; stops at the last sample that is."""
    batched = [spec.name for spec in specs if spec.batched]

    def read(numbers: Numbers) -> Iterator[Block]:
        first = 0
        for block in blocks():
            length = len(block[batched[0]]) if batched else 1
            rows = numbers[(numbers >= first) & (numbers < first + length)] - first
            first += length
            if len(rows) == length:
                yield block
            elif len(rows):
                yield {name: array[rows] if name in batched else array for name, array in block.items()}
            if first > numbers[-1]:
                return

    return read
