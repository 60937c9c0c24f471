"""Sample inputs from Python: arrays, iterables, readers and functions in a file; what can be read only once is kept on disk."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibration.fitting import Array, Block, InputSpec, Item, array_column, fit
from onnxprune.errors import DataError

FUNCTION = re.compile(r"(?P<file>.+\.py)(?::(?P<function>\w+))?")


def to_numpy(value: Any) -> Array:
    """An array of anything like one; torch tensors are known by what they can do, so torch is not imported."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # numpy has no bfloat16; float32 holds every value of it.
        value = value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DataError(f"a sample is no array: {error}", "give arrays of one shape") from error


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def to_item(value: Any, label: str) -> Item:
    """A dict of arrays, an array, or a tuple whose first element is one of these (a labelled sample)."""
    if isinstance(value, tuple | list) and value and (is_array(value[0]) or isinstance(value[0], Mapping)):
        value = value[0]
    if isinstance(value, Mapping):
        return Item(label, {str(k): array_column(f"{label}: array {str(k)!r}", to_numpy(v)) for k, v in value.items()})
    return Item(label, {"the array": array_column(label, to_numpy(value))})


def items(data: Any) -> Iterator[Any]:
    """What an iterable or a reader (get_next, None at its end) gives, one after the other."""
    if hasattr(data, "get_next"):
        yield from iter(data.get_next, None)
    else:
        yield from data


class Spool:
    """Blocks of a source that can be read once, kept in a temporary folder for as long as this object lives."""

    def __init__(self, data: Iterable[Any], inputs: Sequence[InputSpec], samples: int) -> None:
        self.inputs = tuple(inputs)
        self.folder = Path(tempfile.mkdtemp(prefix="onnxprune-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.rows = 0
        self.files = 0
        # Stops as soon as there is enough, because the source may be endless.
        for number, value in enumerate(data):
            fitted = fit(to_item(value, f"item {number} of the data"), self.inputs)
            for block in fitted.blocks():
                self._write(block)
            self.rows += fitted.rows
            if self.rows >= samples:
                break

    def _write(self, block: Block) -> None:
        for place, spec in enumerate(self.inputs):
            np.save(self.folder / f"{self.files}_{place}.npy", block[spec.name])
        self.files += 1

    def blocks(self) -> Iterator[Block]:
        for number in range(self.files):
            arrays = (np.load(self.folder / f"{number}_{place}.npy") for place in range(len(self.inputs)))
            # A type that numpy does not know comes back as plain bytes: the view names it again.
            yield {spec.name: array.view(spec.dtype) for spec, array in zip(self.inputs, arrays, strict=True)}


def load_function(spelling: str) -> Callable[[], Any]:
    """The function that 'file.py:function' names ('load_data' where only the file is named)."""
    match = FUNCTION.fullmatch(spelling)
    assert match is not None, "the caller has matched it"
    path, name = Path(match["file"]), match["function"] or "load_data"
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}", "name a Python file and a function: file.py:function")
    spec = importlib.util.spec_from_file_location(f"onnxprune_data_{path.stem}", path)
    assert spec is not None, "the name ends in .py"
    assert spec.loader is not None, "a file has a loader"
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up, and a script expects its neighbours to be importable.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _script_error(spelling, error) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(
            f"{path} has no function {name!r}", "name one that takes no arguments and gives samples: file.py:function"
        )
    return lambda: _guarded_call(spelling, function)


def _guarded_call(spelling: str, function: Callable[[], Any]) -> Any:
    try:
        data = function()
    except (Exception, SystemExit) as error:
        raise _script_error(spelling, error) from error
    return data if is_array(data) or isinstance(data, Mapping) else _guarded(spelling, data)


def _guarded(spelling: str, data: Any) -> Iterator[Any]:
    try:
        yield from items(data)
    except (Exception, SystemExit) as error:
        raise _script_error(spelling, error) from error


def _script_error(spelling: str, error: BaseException) -> DataError:
    return DataError(f"{spelling} failed: {type(error).__name__}: {error}", "make it run by itself first")
