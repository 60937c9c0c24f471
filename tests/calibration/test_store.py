"""The store of activations: in memory up to its budget, on disk from then on, and nothing left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from onnxprune.calibration.store import Store


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files(folder):
    return [p for p in Path(folder).rglob("*") if p.is_file()]


def batch(seed, **kinds):
    rng = np.random.default_rng(seed)
    kinds = kinds or {"a": np.float32, "b": np.int64}
    return {name: (rng.standard_normal((4, 5)) * 100).astype(kind) for name, kind in kinds.items()}


def test_what_is_put_in_comes_out(scratch):
    for budget in (0, 200, 1 << 20):
        with Store(budget) as store:
            for i in range(3):
                store.put(i, batch(i))
            assert len(store) == 3
            for i in range(3):
                for name, value in batch(i).items():
                    got = store.get(i)[name]
                    assert got.dtype == value.dtype
                    np.testing.assert_array_equal(got, value)


def test_beyond_the_budget_it_goes_to_disk_and_disk_is_tidied(scratch):
    with Store(200) as store:
        store.put(0, batch(0, a=np.float32))  # 80 bytes
        assert files(scratch) == []
        store.put(1, batch(1, a=np.float64))  # 160 more
        assert len(files(scratch)) == 1
    assert list(scratch.iterdir()) == []


def test_an_error_inside_leaves_nothing_behind(scratch):
    def interrupted():
        with Store(0) as store:
            store.put(0, batch(0))
            assert files(scratch)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert list(scratch.iterdir()) == []


def test_what_is_no_longer_put_is_forgotten(scratch):
    with Store(0) as store:
        store.put(0, batch(0))
        assert len(files(scratch)) == 2
        store.put(0, {"c": np.zeros(3)})
        assert set(store.get(0)) == {"c"}
        assert len(files(scratch)) == 1


def test_a_tensor_that_stays_is_neither_copied_nor_written_again(scratch):
    with Store(0) as store:
        first = batch(0)
        store.put(0, first)
        before = {p: p.stat().st_mtime_ns for p in files(scratch)}
        store.put(0, first | {"c": np.zeros(3)})
        after = {p: p.stat().st_mtime_ns for p in files(scratch)}
        assert before.items() <= after.items()
        assert len(after) == 3


def test_memory_that_is_given_back_can_be_used_again(scratch):
    with Store(100) as store:
        for i in range(20):
            store.put(0, {f"t{i}": np.zeros(10)})  # 80 bytes each, one at a time
        assert files(scratch) == []
        store.put(0, {"u": np.zeros(12), "v": np.zeros(12)})
        assert len(files(scratch)) == 1


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "bool", "int8", "uint16", "float64"])
def test_every_type_survives_the_disk(scratch, kind):
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    value = np.arange(12).reshape(3, 4).astype(dtype)
    with Store(0) as store:
        store.put(0, {"x": value})
        got = store.get(0)["x"]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(np.float64), value.astype(np.float64))
