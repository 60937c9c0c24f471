"""Accuracy of both models on labels, and labels from every kind of file, good and bad."""

import numpy as np
import pytest

from onnxprune.errors import DataError
from onnxprune.validation.accuracy import AccuracyMeter, load_labels

LABELS = np.array([0, 1, 2, 1])
LOGITS = np.eye(3, dtype=np.float32)[LABELS]


def accuracy(original, pruned, labels=LABELS, batch=3):
    meter = AccuracyMeter(np.asarray(labels, np.int64))
    for start in range(0, len(original), batch):
        meter.add({"y": original[start : start + batch]}, {"y": pruned[start : start + batch]})
    return meter.result()


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1, 1), (4, 1, 3)])
def test_counts_both_models(shape):
    worse = LOGITS.copy()
    worse[0] = [0, 0, 9]
    assert accuracy(LOGITS.reshape(shape), worse.reshape(shape)) == {"original": 1.0, "pruned": 0.75}


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_single_logit_is_cut_at_zero(shape):
    logits = np.array([-2, 3, 0.2, -0.1], np.float32).reshape(shape)
    assert accuracy(logits, -logits, [0, 1, 1, 0]) == {"original": 1.0, "pruned": 0.0}


def test_single_probability_is_cut_at_a_half():
    probability = np.array([[0.1], [0.9], [0.7], [0.4]], np.float32)
    assert accuracy(probability, 1 - probability, [0, 1, 1, 0]) == {"original": 1.0, "pruned": 0.0}


def test_class_numbers_are_taken_as_they_are():
    assert accuracy(LABELS, np.zeros(4, np.int64)) == {"original": 1.0, "pruned": 0.25}


def test_nan_is_never_right():
    broken = LOGITS.copy()
    broken[0, 0] = np.nan
    assert accuracy(LOGITS, broken)["pruned"] == 0.75


def test_takes_the_first_output_that_classifies_samples():
    meter = AccuracyMeter(LABELS)
    outputs = {"features": np.zeros((4, 8, 2, 2), np.float32), "logits": LOGITS}
    meter.add(outputs, outputs)
    assert meter.output == "logits"


def test_refuses_outputs_that_do_not_classify():
    with pytest.raises(DataError, match="no output gives one class per sample"):
        accuracy(np.zeros((4, 8, 2, 2), np.float32), np.zeros((4, 8, 2, 2), np.float32))


@pytest.mark.parametrize("labels", [LABELS[:3], np.r_[LABELS, 0]])
def test_refuses_too_few_or_too_many_labels(labels):
    with pytest.raises(DataError, match="one label per sample"):
        accuracy(LOGITS, LOGITS, labels)


def test_refuses_labels_that_are_no_class():
    with pytest.raises(DataError, match=r"label 3 where output 'y' has the classes 0 \.\. 2"):
        accuracy(LOGITS, LOGITS, [0, 1, 2, 3])


def test_reads_every_format(tmp_path):
    np.save(tmp_path / "a.npy", LABELS.astype(np.uint8)[:, None])
    np.savez(tmp_path / "b.npz", labels=LABELS, images=np.zeros((4, 2)))
    np.savez(tmp_path / "c.npz", y=LABELS.astype(np.float32))
    (tmp_path / "d.txt").write_text("0\n1\n2\n1\n\n")
    (tmp_path / "e.csv").write_text("0\r\n1\r\n2\r\n1\r\n")
    for path in sorted(tmp_path.iterdir()):
        labels = load_labels(path)
        assert labels.dtype == np.int64
        assert labels.tolist() == LABELS.tolist(), path.name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.npy", None),
        ("cut.npy", b"\x93NUMPY\x01\x00"),
        ("empty.npy", b""),
        ("text.npy", b"1\n2\n"),
        ("cut.npz", b"PK\x03\x04 not a zip"),
        ("words.txt", b"cat\ndog\n"),
        ("columns.csv", b"1,2\n3,4\n"),
        ("empty.txt", b""),
        ("binary.txt", b"\xff\xfe\x00"),
        ("labels.json", b"[1]"),
    ],
)
def test_bad_files_are_data_errors(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError):
        load_labels(tmp_path / name)


def test_bad_arrays_are_data_errors(tmp_path):
    np.save(tmp_path / "one_hot.npy", LOGITS)
    np.save(tmp_path / "fractions.npy", np.array([0.5, 1.0]))
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=LABELS, b=LABELS)
    np.save(tmp_path / "renamed.npy", LABELS)
    (tmp_path / "renamed.npy").rename(tmp_path / "renamed.npz")
    for path in tmp_path.iterdir():
        with pytest.raises(DataError):
            load_labels(path)
