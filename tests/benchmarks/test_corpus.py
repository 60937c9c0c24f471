"""The corpus table on three nets that are at hand, and on what it is there to find: wrong cuts, crashes, hangs."""

import json
from pathlib import Path

import corpus
import corpus_measure
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.testing import tiny_network

MODELS = Path(__file__).resolve().parents[2] / "samples" / "models"
RATIOS = [0.25, 0.5]


@pytest.fixture
def folder(tmp_path):
    """Three nets: two of the samples, one with batch norm and an open batch."""
    for name in ("digits_cnn.onnx", "digits_lenet300.onnx"):
        (tmp_path / name).write_bytes((MODELS / name).read_bytes())
    onnx.save(tiny_network(), tmp_path / "tiny.onnx")
    return tmp_path


@pytest.mark.parametrize("name", ["digits_cnn.onnx", "digits_lenet300.onnx", "tiny.onnx"])
def test_a_row_shows_that_removed_is_zeroed(folder, name):
    row = {"file": name} | corpus_measure.measure(folder / name, RATIOS)
    assert corpus.problem(row) == corpus.doubt(row) == ""
    quarter, half = row["cuts"]
    assert 0.2 < quarter["lost"] < half["lost"] < row["share"] <= 1
    assert half["batch1"] is half["batch3"] is True
    assert half["difference"] <= 1e-4 < half["moved"]
    assert row["seconds"] > 0 < row["reference_seconds"]


def test_the_rows_are_written_once_and_make_a_table(folder, capsys):
    out = folder / "rows.jsonl"
    assert corpus.main([str(folder), "--out", str(out), "--ratio", "0.5", "--only", "^tiny"]) == 0
    assert corpus.main([str(folder), "--out", str(out), "--ratio", "0.5", "--only", "^tiny"]) == 0
    assert [json.loads(line)["file"] for line in out.read_text(encoding="utf-8").splitlines()] == ["tiny.onnx"]
    capsys.readouterr()
    assert corpus.main(["--table", str(out)]) == 0
    said = capsys.readouterr().out
    assert "| tiny.onnx | " in said
    assert "1 files, 1 without a problem, 0 of them without proof" in said


def test_a_crash_and_a_hang_are_rows(folder):
    broken = folder / "broken.onnx"
    broken.write_bytes(b"no model")
    assert "ModelError" in corpus.problem(corpus.measured(broken, RATIOS, 0, 60))
    assert "not done after 0.01 s" in corpus.problem(corpus.measured(folder / "tiny.onnx", RATIOS, 0, 0.01))


def test_a_wrong_cut_is_found(folder, monkeypatch):
    right = corpus_measure.finish

    def wrong(model, graph, provenance):
        right(model, graph, provenance)
        weight = next(t for t in model.graph.initializer if t.name == "w2")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, ::-1].copy(), "w2"))

    monkeypatch.setattr(corpus_measure, "finish", wrong)
    row = corpus_measure.measure(folder / "tiny.onnx", RATIOS)
    assert "removed and zeroed differ" in corpus.problem(row)


def test_a_cut_that_does_not_run_is_found(folder, monkeypatch):
    def wrong(model, graph, provenance):
        weight = next(t for t in model.graph.initializer if t.name == "w2")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, 1:], "w2"))

    monkeypatch.setattr(corpus_measure, "finish", wrong)
    row = corpus_measure.measure(folder / "tiny.onnx", RATIOS)
    assert row["cuts"][0]["batch1"] is False
    assert "at 0.25: " in corpus.problem(row)


@pytest.mark.parametrize(
    ("expected", "got", "wanted"),
    [
        ([1, -4], [1, -3], 0.25),
        ([0, 0], [0, 0], 0.0),
        ([], [], 0.0),
        ([np.inf, 2], [np.inf, 1], 0.5),
        ([np.inf, 2], [1, 2], np.inf),
        ([1, 2], [np.nan, 2], np.inf),
        ([np.nan, 2], [np.nan, 2], np.inf),
        ([1, 2], [1], np.inf),
    ],
)
def test_difference(expected, got, wanted):
    assert corpus_measure.difference(np.array(expected, np.float32), np.array(got, np.float32)) == wanted


def test_what_quantises_may_differ_by_a_step():
    model = tiny_network()
    assert corpus_measure.tolerance_of(model) == 1e-4
    model.graph.node[0].op_type = "QLinearConv"
    assert corpus_measure.tolerance_of(model) == 2 / 255
