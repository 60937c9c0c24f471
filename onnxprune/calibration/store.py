"""Activations between two segments, batch by batch: in memory while they are few, on disk from then on."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _File:
    """An array on disk. numpy's files forget types that it does not know itself (bfloat16), so they are kept here."""

    path: Path
    dtype: np.dtype[Any]

    def read(self) -> NDArray[Any]:
        loaded: NDArray[Any] = np.load(self.path)
        return loaded.view(self.dtype)


class Store:
    """Keeps one dictionary of arrays per batch. Arrays beyond `budget` bytes go to files: memory does not grow with the samples.

    Use it as a context manager: the files go with it.
    """

    def __init__(self, budget: int = 1 << 28) -> None:
        self._budget, self._used = budget, 0
        self._batches: list[dict[str, NDArray[Any] | _File]] = []
        self._folder: Path | None = None
        self._files = 0

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._batches)

    def get(self, index: int) -> Arrays:
        """The arrays of a batch; those on disk are read."""
        return {name: held.read() if isinstance(held, _File) else held for name, held in self._batches[index].items()}

    def put(self, index: int, arrays: Arrays) -> None:
        """Replace what is held for a batch (or append the next one)."""
        if index == len(self._batches):
            self._batches.append({})
        old = self._batches[index]
        for name, held in old.items():
            if name not in arrays:
                self._release(held)
        self._batches[index] = {name: self._hold(name, value, old) for name, value in arrays.items()}

    def _hold(self, name: str, value: NDArray[Any], old: dict[str, NDArray[Any] | _File]) -> NDArray[Any] | _File:
        """A tensor that lives through several segments is held once: tensors never change."""
        if name in old:
            return old[name]
        if self._used + value.nbytes <= self._budget:
            self._used += value.nbytes
            return value
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="onnxprune-"))
        self._files += 1
        file = self._folder / f"{self._files}.npy"
        np.save(file, value)
        return _File(file, value.dtype)

    def _release(self, held: NDArray[Any] | _File) -> None:
        if isinstance(held, _File):
            held.path.unlink(missing_ok=True)
        else:
            self._used -= held.nbytes
