"""Every kind of sample inputs gives the same samples, again and again, in batches the model takes; every misfit is named."""

from __future__ import annotations

import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune.calibration.sources import InputSpec, open_source, split
from onnxprune.errors import DataError

F32 = np.dtype(np.float32)
SPEC = InputSpec("x", F32, (None, 3, 4))
TWO = [SPEC, InputSpec("ids", np.dtype(np.int64), (None, 5))]
X = np.random.default_rng(0).standard_normal((10, 3, 4)).astype(np.float32)
IDS = np.arange(50).reshape(10, 5)


def take(source, size=4, name="x"):
    return np.concatenate([batch[name] for batch in source.batches(size)])


class Reader:
    """A calibration reader as ONNX Runtime's tools define it."""

    def __init__(self):
        self.rest = iter(X)

    def get_next(self):
        row = next(self.rest, None)
        return None if row is None else {"x": row[None]}


class Tensor:
    """Stands for a torch tensor: no numpy array, but can be made one."""

    def __init__(self, array):
        self.array = array
        self.dtype = array.dtype

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.array


def pb(folder: Path, *arrays, names=None):
    folder.mkdir(parents=True)
    for i, array in enumerate(arrays):
        tensor = numpy_helper.from_array(array, names[i] if names else "")
        (folder / f"input_{i}.pb").write_bytes(tensor.SerializeToString())


def npz(folder):
    np.savez(folder / "c.npz", x=X, label=np.zeros(3))
    return folder / "c.npz"


def compressed(folder):
    np.savez_compressed(folder / "c.npz", x=X)
    return str(folder / "c.npz")


def column_major(folder):
    np.savez(folder / "c.npz", x=np.asfortranarray(X))
    return folder / "c.npz"


def npy(folder):
    np.save(folder / "c.npy", X)
    return folder / "c.npy"


def npy_folder(folder):
    for i, row in enumerate(X):
        np.save(folder / f"{i}.npy", row)
    return folder


def npz_folder(folder):
    np.savez(folder / "a.npz", x=X[:7])
    np.savez(folder / "b.npz", x=X[7:])
    return folder


def sets(folder):
    for i, row in enumerate(X):
        pb(folder / f"test_data_set_{i}", row[None])
    return folder


def script(folder):
    np.save(folder / "c.npy", X)
    (folder / "loader.py").write_text(
        textwrap.dedent("""
        import pathlib, numpy
        def samples():
            for row in numpy.load(pathlib.Path(__file__).with_name("c.npy")):
                yield {"x": row}
        """)
    )
    return f"{folder / 'loader.py'}:samples"


KINDS = {
    "npz": npz,
    "compressed npz": compressed,
    "column-major npz": column_major,
    "npy": npy,
    "folder of npy": npy_folder,
    "folder of npz": npz_folder,
    "test data sets": sets,
    "function": script,
    "array": lambda _: X,
    "dict": lambda _: {"x": X},
    "tensor": lambda _: Tensor(X),
    "dict of tensors": lambda _: {"x": Tensor(X)},
    "list of arrays": lambda _: list(X),
    "generator of batches": lambda _: (X[i : i + 3] for i in range(0, 10, 3)),
    "generator of dicts": lambda _: ({"x": row} for row in X),
    "labelled batches": lambda _: ((Tensor(X[i : i + 4]), 7) for i in range(0, 10, 4)),
    "labelled lists": lambda _: ([X[i : i + 5], 7] for i in range(0, 10, 5)),
    "reader": lambda _: Reader(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_samples_in_order_as_often_as_asked(tmp_path, kind):
    source = open_source(KINDS[kind](tmp_path), [SPEC], samples=100)
    assert source.real
    assert source.count == 10
    assert source.label
    assert "\n" not in source.label
    for size in (1, 4, 3, 100):
        batches = [batch["x"] for batch in source.batches(size)]
        assert [len(b) for b in batches] == [size] * (10 // size) + [10 % size] * (10 % size > 0)
        assert all(b.dtype == F32 for b in batches)
        np.testing.assert_array_equal(np.concatenate(batches), X)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_stops_at_the_number_of_samples_asked_for(tmp_path, kind):
    source = open_source(KINDS[kind](tmp_path), [SPEC], samples=6)
    assert source.count == 6
    np.testing.assert_array_equal(take(source), X[:6])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_split(tmp_path, kind):
    rest, held = split(open_source(KINDS[kind](tmp_path), [SPEC], samples=100), 0.2)
    assert (rest.count, held.count) == (8, 2)
    np.testing.assert_array_equal(take(held), X[[4, 9]])
    np.testing.assert_array_equal(take(rest), np.delete(X, [4, 9], axis=0))


def test_files_beyond_the_samples_asked_for_are_not_opened(tmp_path):
    npy_folder(tmp_path)
    (tmp_path / "6.npy").write_bytes(b"broken")
    np.testing.assert_array_equal(take(open_source(tmp_path, [SPEC], samples=6)), X[:6])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_file(tmp_path, save):
    save(tmp_path / "c.npz", x=np.zeros((40_000, 3, 100), np.float32))  # 48 MB
    source = open_source(tmp_path / "c.npz", [InputSpec("x", F32, (None, 3, 100))], samples=40_000)
    tracemalloc.start()
    try:
        rows = sum(len(batch["x"]) for batch in source.batches(64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 40_000
    assert peak < 10_000_000


# --- several inputs, names


def test_two_inputs_stay_together(tmp_path):
    np.savez(tmp_path / "c.npz", ids=IDS, x=X)
    source = open_source(tmp_path / "c.npz", TWO, samples=100)
    np.testing.assert_array_equal(take(source, 3), X)
    np.testing.assert_array_equal(take(source, 3, "ids"), IDS)


def test_two_inputs_from_an_iterable_stay_together():
    source = open_source(({"x": X[i : i + 4], "ids": IDS[i : i + 4]} for i in range(0, 10, 4)), TWO, samples=100)
    np.testing.assert_array_equal(take(source, 3), X)
    np.testing.assert_array_equal(take(source, 3, "ids"), IDS)


def test_test_data_goes_by_name_first_and_then_by_place(tmp_path):
    pb(tmp_path / "test_data_set_0", X[:1], IDS[:1])
    pb(tmp_path / "test_data_set_1", IDS[1:2], X[1:2], names=["ids", "x"])
    source = open_source(tmp_path, TWO, samples=100)
    np.testing.assert_array_equal(take(source), X[:2])
    np.testing.assert_array_equal(take(source, name="ids"), IDS[:2])


def test_test_data_sets_count_up(tmp_path):
    for i in (10, 9, 2):
        pb(tmp_path / f"test_data_set_{i}", X[i % 10][None])
    np.testing.assert_array_equal(take(open_source(tmp_path, [SPEC])), X[[2, 9, 0]])


def test_one_test_data_set_can_be_named(tmp_path):
    pb(tmp_path / "test_data_set_3", X[:2])
    np.testing.assert_array_equal(take(open_source(tmp_path / "test_data_set_3", [SPEC])), X[:2])


def test_test_data_beside_the_model_is_found_without_asking(tmp_path):
    pb(tmp_path / "test_data_set_0", X[:1])
    source = open_source(None, [SPEC], model_path=tmp_path / "m.onnx")
    assert source.real
    np.testing.assert_array_equal(take(source), X[:1])


def test_test_data_that_does_not_fit_is_passed_over_with_a_warning(tmp_path):
    pb(tmp_path / "test_data_set_0", np.ones((1, 9), np.float32))
    source = open_source(None, [SPEC], model_path=tmp_path / "m.onnx", samples=3)
    assert source.kind == "noise"
    assert any("passed over" in warning for warning in source.warnings)


def test_the_only_array_feeds_the_only_input_whatever_its_name(tmp_path):
    np.savez(tmp_path / "c.npz", X)
    np.testing.assert_array_equal(take(open_source(tmp_path / "c.npz", [SPEC])), X)


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(DataError, match="no array for model input 'ids'; rename array 'idx'"):
        open_source({"x": X, "idx": IDS}, TWO)
    with pytest.raises(DataError, match="its arrays are: a, b"):
        open_source({"a": X, "b": X}, [SPEC])


def test_different_numbers_of_samples_are_refused():
    with pytest.raises(DataError, match="different numbers"):
        open_source({"x": X, "ids": IDS[:9]}, TWO)


# --- files that are not what they should be


def test_what_is_not_there_or_not_known_is_refused(tmp_path):
    (tmp_path / "c.csv").write_text("1,2")
    (tmp_path / "empty").mkdir()
    for path, words in (("nowhere", "no file"), ("c.csv", "no kind"), ("empty", "no sample inputs")):
        with pytest.raises(DataError, match=words) as caught:
            open_source(tmp_path / path, [SPEC])
        assert "npz" in caught.value.remedy
    with pytest.raises(DataError, match="int"):
        open_source(3, [SPEC])


@pytest.mark.parametrize("name", ["c.npz", "c.npy", "input_0.pb"])
def test_a_broken_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xff nothing of the kind")
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        open_source(tmp_path if name.endswith("pb") else tmp_path / name, [SPEC])


def test_a_truncated_file_is_named(tmp_path):
    path = npy(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"c\.npy cannot be read"):
        take(open_source(path, [SPEC]))


def test_pickles_are_not_opened(tmp_path):
    np.save(tmp_path / "c.npy", np.full((2, 3, 4), None), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects"):
        open_source(tmp_path / "c.npy", [SPEC])
