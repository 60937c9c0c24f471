"""Every kind of sample inputs gives the same samples, again and again, in batches the model takes; every misfit is named."""

from __future__ import annotations

import gc
import json
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from PIL import Image

from onnxprune.calibration.sources import InputSpec, open_source, split
from onnxprune.errors import DataError, UsageError

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


def test_an_endless_iterable_is_read_no_further_than_needed():
    given = []

    def endless():
        while True:
            given.append(1)
            yield X[0]

    assert open_source(endless(), [SPEC], samples=3).count == 3
    assert len(given) == 3


def test_what_was_kept_on_disk_goes_with_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = open_source(iter(X), [SPEC], samples=100)
    rest, held = split(source, 0.5)
    del source, rest
    gc.collect()
    assert len(list(tmp_path.iterdir())) == 1
    assert len(take(held)) == 5
    del held
    gc.collect()
    assert list(tmp_path.iterdir()) == []


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


# --- shapes and types


def test_a_sample_without_a_batch_axis_gets_one():
    np.testing.assert_array_equal(take(open_source(X[0], [SPEC])), X[:1])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((2, 3, 5), np.float32), r"array has shape \(2, 3, 5\), model input 'x' wants \(\?, 3, 4\)"),
        (np.ones((1, 2, 3, 4), np.float32), r"\(1, 2, 3, 4\)"),
        (np.ones(4, np.float32), r"\(4\)"),
        (np.ones((0, 3, 4), np.float32), "empty"),
        (np.full((2, 3, 4), "a"), "<U1"),
        (np.full((2, 3, 4), None), "Python objects"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array, words):
    with pytest.raises(DataError, match=words) as caught:
        take(open_source(array, [SPEC]))
    assert caught.value.remedy


def test_a_file_that_does_not_fit_is_named(tmp_path):
    np.savez(tmp_path / "c.npz", x=np.ones((2, 3, 5)))
    with pytest.raises(DataError, match=r"c\.npz: array 'x' has shape \(2, 3, 5\)"):
        open_source(tmp_path / "c.npz", [SPEC])


def test_channels_in_the_wrong_place_are_recognised():
    first = InputSpec("x", F32, (None, 3, 8, 9))
    last = InputSpec("x", F32, (None, 8, 9, 3))
    with pytest.raises(DataError, match=r"moveaxis\(array, -1, 1\)"):
        open_source(np.ones((2, 8, 9, 3)), [first])
    with pytest.raises(DataError, match=r"moveaxis\(array, 1, -1\)"):
        open_source(np.ones((2, 3, 8, 9)), [last])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_found_with_its_sample(tmp_path, bad):
    x = np.tile(X, (60, 1, 1))
    x[517, 1, 2] = bad
    np.save(tmp_path / "c.npy", x)
    with pytest.raises(DataError, match=r"c\.npy, sample 517, holds NaN"):
        take(open_source(tmp_path / "c.npy", [SPEC], samples=600))


@pytest.mark.parametrize(("given", "wanted"), [("f8", "f4"), ("f4", "f2"), ("i8", "f4"), ("u1", "f4"), ("?", "f4"), ("i8", "i4")])
def test_types_are_cast_where_only_precision_is_lost(given, wanted):
    array = np.arange(12).reshape(2, 6).astype(given)
    x = take(open_source(array, [InputSpec("x", np.dtype(wanted), (None, 6))]))
    assert x.dtype == np.dtype(wanted)
    np.testing.assert_array_equal(x, array.astype(wanted))


@pytest.mark.parametrize(
    ("array", "wanted", "words"),
    [
        (np.ones((1, 2)), "i8", "astype"),
        (np.ones((1, 2)), "?", "astype"),
        (np.full((1, 2), 1e6), "f2", "do not fit into float16"),
        (np.full((1, 2), 2**40), "i4", "do not fit into int32"),
        (np.full((1, 2), 2), "?", "do not fit into bool"),
    ],
)
def test_types_are_not_cast_where_values_would_change(array, wanted, words):
    with pytest.raises(DataError, match=words):
        take(open_source(array, [InputSpec("x", np.dtype(wanted), (None, 2))]))


def test_bfloat16_survives_the_disk():
    import ml_dtypes

    spec = InputSpec("x", np.dtype(ml_dtypes.bfloat16), (None, 3, 4))
    x = take(open_source(iter(X), [spec]))
    assert x.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(x, X.astype(ml_dtypes.bfloat16))


def test_the_users_array_is_never_handed_out():
    mine = X.copy()
    for batch in open_source(mine, [SPEC]).batches(4):
        batch["x"][:] = 0
    np.testing.assert_array_equal(mine, X)


# --- batches


def test_a_fixed_batch_overrules_the_size_and_drops_the_rest():
    source = open_source(X, [InputSpec("x", F32, (4, 3, 4))])
    batches = [batch["x"] for batch in source.batches(1)]
    assert [len(b) for b in batches] == [4, 4]
    np.testing.assert_array_equal(np.concatenate(batches), X[:8])


def test_too_few_samples_for_a_fixed_batch_are_refused():
    with pytest.raises(DataError, match="holds 10 samples, the model takes 16"):
        list(open_source(X, [InputSpec("x", F32, (16, 3, 4))]).batches(1))


def test_samples_of_different_sizes_never_meet():
    shapes = [(1, 8), (1, 8), (1, 9), (1, 8)]
    source = open_source([np.ones(s, np.float32) for s in shapes], [InputSpec("x", F32, (None, None))])
    assert [b["x"].shape for b in source.batches(4)] == [(2, 8), (1, 9), (1, 8)]


def test_inputs_without_a_batch_axis_go_with_their_samples():
    specs = [SPEC, InputSpec("size", F32, (2,), batched=False)]
    data = [{"x": X[i], "size": np.array([i // 4, 1.0])} for i in range(10)]
    batches = list(open_source(data, specs).batches(3))
    assert [len(b["x"]) for b in batches] == [3, 1, 3, 1, 2]
    assert [b["size"][0] for b in batches] == [0, 0, 1, 1, 2]


def test_contradicting_fixed_lengths_mean_that_there_is_no_batch():
    specs = [InputSpec("x", F32, (7, 4)), InputSpec("h", F32, (1, 4))]
    data = [{"x": np.full((7, 4), i), "h": np.full((1, 4), i)} for i in range(3)]
    batches = list(open_source(data, specs).batches(2))
    assert [(b["x"].shape, b["h"][0, 0]) for b in batches] == [((7, 4), 0), ((7, 4), 1), ((7, 4), 2)]
    rest, held = split(open_source(data, specs), 0.3)
    assert [b["h"][0, 0] for b in held.batches(1)] == [2]
    assert [b["h"][0, 0] for b in rest.batches(1)] == [0, 1]


def test_a_batch_needs_a_sample():
    with pytest.raises(UsageError, match="batch"):
        list(open_source(X, [SPEC]).batches(0))
    with pytest.raises(UsageError, match="samples"):
        open_source(X, [SPEC], samples=0)


# --- split


def test_a_single_sample_is_on_both_sides_with_a_warning():
    rest, held = split(open_source(X[:1], [SPEC]), 0.2)
    assert rest.count == held.count == 1
    assert "too few samples" in held.warnings[0]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_both_sides_of_a_split_hold_something(share):
    rest, held = split(open_source(X, [SPEC]), share)
    assert rest.count >= 1
    assert held.count >= 1
    assert sorted([*rest.numbers, *held.numbers]) == list(range(10))


def test_a_split_can_be_split_again():
    rest, _ = split(open_source(X, [SPEC]), 0.2)
    train, test = split(rest, 0.5)
    assert not set(train.numbers) & set(test.numbers)
    assert len(take(train)) + len(take(test)) == 8


def test_a_fixed_batch_is_held_out_whole():
    rest, held = split(open_source(X, [InputSpec("x", F32, (3, 3, 4))]), 0.3)
    np.testing.assert_array_equal(take(held), X[6:9])
    np.testing.assert_array_equal(take(rest), X[:6])


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(UsageError, match="between 0 and 1"):
        split(open_source(X, [SPEC]), share)


# --- files and functions that are not what they should be


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


@pytest.mark.parametrize(
    ("code", "function", "words"),
    [
        ("def f(): return 1 / 0", ":f", "ZeroDivisionError"),
        ("def f():\n    yield [1.0]\n    raise KeyError('late')", ":f", "late"),
        ("import nothing_of_the_kind", ":f", "nothing_of_the_kind"),
        ("raise SystemExit(3)", ":f", "SystemExit"),
        ("x = 1", ":f", "no function 'f'"),
        ("x = 1", "", "no function 'load_data'"),
        ("def f(): return []", ":f", "no samples"),
        ("def f(): return 3", ":f", "TypeError"),
    ],
)
def test_a_function_that_fails_is_named_with_its_message(tmp_path, code, function, words):
    (tmp_path / "s.py").write_text(code)
    path = list(sys.path)
    with pytest.raises(DataError, match=words) as caught:
        open_source(f"{tmp_path / 's.py'}{function}", [InputSpec("x", F32, (None, 1))])
    assert "s.py" in str(caught.value)
    assert sys.path == path


def test_a_function_may_give_arrays_and_use_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_the_loader.py").write_text("VALUE = 5.0")
    (tmp_path / "s.py").write_text(
        "import numpy\nfrom neighbour_of_the_loader import VALUE\ndef load_data(): return {'x': numpy.full((2, 3, 4), VALUE)}"
    )
    assert take(open_source(tmp_path / "s.py", [SPEC])).tolist() == np.full((2, 3, 4), 5.0).tolist()


def test_a_script_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.py"):
        open_source(f"{tmp_path}/nothing.py:f", [SPEC])


def test_errors_of_the_callers_own_iterable_are_left_alone():
    def breaks():
        yield X[0]
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        open_source(breaks(), [SPEC])


def test_a_used_up_iterator_is_recognised():
    with pytest.raises(DataError, match="gave no samples"):
        open_source(iter([]), [SPEC])


def test_torch_tensors_and_loaders_are_taken():
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.tensor(X), torch.zeros(10)), batch_size=3)
    np.testing.assert_array_equal(take(open_source(loader, [SPEC])), X)
    half = torch.tensor(X).bfloat16().requires_grad_()
    np.testing.assert_array_equal(take(open_source(half, [SPEC])), half.detach().float().numpy())


# --- images

NCHW = InputSpec("x", F32, (None, 3, 8, 8))


def paint(path, size=(8, 8), colour=(255, 0, 51), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_images_are_found_in_order_and_scaled_with_a_warning(tmp_path):
    paint(tmp_path / "b" / "1.png", colour=(0, 0, 255))
    paint(tmp_path / "a.JPG", colour=(255, 255, 255))
    paint(tmp_path / "c.bmp", size=(20, 8))
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(tmp_path, [NCHW])
    x = take(source, 2)
    assert (source.kind, source.real, source.count) == ("images", True, 3)
    assert "0..1" in source.warnings[0]
    np.testing.assert_allclose(x[:, :, 4, 4], [[1, 1, 1], [0, 0, 1], [1, 0, 0.2]], atol=1e-6)
    np.testing.assert_array_equal(take(source, 3), x)
    np.testing.assert_array_equal(take(split(source, 0.3)[1]), x[2:])


@pytest.mark.parametrize(
    ("mean", "std", "want"),
    [
        ((0.5, 0.5, 0.2), (0.5, 0.25, 0.1), (1, -2, 0)),
        ((127.5,), (127.5,), (1, -1, -0.6)),
        (0.0, 255.0, (1, 0, 0.2)),
        (0.0, 1.0, (1, 0, 0.2)),
        ((0, 0, 51), None, (255, 0, 0)),
    ],
)
def test_mean_and_std_may_be_given_for_0_to_1_or_0_to_255(tmp_path, mean, std, want):
    paint(tmp_path / "a.png")
    source = open_source(tmp_path, [NCHW], mean=mean, std=std)
    assert source.warnings == ()
    np.testing.assert_allclose(take(source)[0, :, 0, 0], want, atol=1e-5)


def test_mean_and_std_of_a_preprocessor_config_are_used(tmp_path):
    paint(tmp_path / "a.png")
    config = {"image_mean": [1, 0, 0.2], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    source = open_source(tmp_path / "a.png", [NCHW])
    assert source.warnings == ()
    np.testing.assert_allclose(take(source)[0, :, 0, 0], [0, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "layout", "want"),
    [
        ((None, 3, 8, 8), "auto", (1, 3, 8, 8)),
        ((None, 8, 8, 3), "auto", (1, 8, 8, 3)),
        ((None, 3, 8, 3), "nhwc", (1, 3, 8, 3)),
        ((None, 1, 8, 6), "auto", (1, 1, 8, 6)),
        ((1, 4, 8, 6), "auto", (1, 4, 8, 6)),
        ((None, None, None, None), "nchw", (1, 3, 224, 224)),
    ],
)
def test_layout_channels_and_size_follow_the_model(tmp_path, shape, layout, want):
    paint(tmp_path / "a.png", size=(30, 20))
    assert take(open_source(tmp_path, [InputSpec("x", F32, shape)], layout=layout)).shape == want


def test_open_sizes_come_from_the_trial_shape(tmp_path):
    paint(tmp_path / "a.png", size=(30, 20))
    spec = InputSpec("x", F32, (None, 3, None, None))
    assert take(open_source(tmp_path, [spec], shapes={"x": (1, 3, 10, 12)})).shape == (1, 3, 10, 12)


def test_images_are_cut_in_the_middle_not_squeezed(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert take(open_source(tmp_path, [NCHW])).min() == 1


def test_whole_numbers_are_raw_pixels(tmp_path):
    paint(tmp_path / "a.png")
    spec = InputSpec("x", np.dtype(np.uint8), (None, 8, 8, 3))
    assert take(open_source(tmp_path, [spec]))[0, 0, 0].tolist() == [255, 0, 51]
    with pytest.raises(UsageError, match="mean and std"):
        open_source(tmp_path, [spec], mean=0.5)


@pytest.mark.parametrize(
    ("specs", "options", "error", "words"),
    [
        ([NCHW, SPEC], {}, DataError, "one input"),
        ([InputSpec("x", F32, (None, 10))], {}, DataError, "rank 4"),
        ([InputSpec("x", F32, (None, 7, 8, 9))], {}, DataError, "7 channels"),
        ([NCHW], {"layout": "chwn"}, UsageError, "chwn"),
        ([NCHW], {"std": 0.0}, UsageError, "not positive"),
        ([NCHW], {"mean": (1, 2)}, UsageError, "3 channels"),
    ],
)
def test_images_that_cannot_be_used_are_refused(tmp_path, specs, options, error, words):
    paint(tmp_path / "a.png")
    with pytest.raises(error, match=words):
        open_source(tmp_path, specs, **options)


def test_a_broken_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"a\.png is no image"):
        take(open_source(tmp_path, [NCHW]))


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    paint(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"pip install onnxprune\[images\]"):
        open_source(tmp_path, [NCHW])
