"""Arrays that fit become batches of the model's shapes and types; those that do not are refused with what to do."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.calibration.sources import InputSpec, open_source, split
from onnxprune.errors import DataError, UsageError

F32 = np.dtype(np.float32)
SPEC = InputSpec("x", F32, (None, 3, 4))
X = np.random.default_rng(0).standard_normal((10, 3, 4)).astype(np.float32)


def take(source):
    return np.concatenate([batch["x"] for batch in source.batches(4)])


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
