"""JSON is strict, complete, in order, and stands everything that a report may hold."""

import json
from pathlib import Path

import numpy as np
import pytest

from onnxprune.figures import Report
from onnxprune.report.json import render


def test_round_trip_in_order(report):
    text = render(report)
    assert json.loads(text) == report
    assert list(json.loads(text)) == list(report)
    assert text.endswith("}\n")


def test_the_example_is_a_whole_report(report):
    assert set(report) == set(Report.__annotations__)


def test_numpy_paths_and_undefined_numbers():
    held = {"a": np.float32(0.5), "b": np.int64(3), "c": np.arange(2), "d": float("nan"), "e": float("-inf"), "f": Path("x/y")}
    assert json.loads(render(held | {"g": (1, None, True), 7: "é"})) == {
        "a": 0.5, "b": 3, "c": [0, 1], "d": None, "e": None, "f": str(Path("x/y")), "g": [1, None, True], "7": "é",
    }  # fmt: skip


def test_names_that_are_no_utf8():
    assert json.loads(render({"path": "caf\udce9.onnx"})) == {"path": "caf\\xe9.onnx"}
    assert json.loads(render({"path": "\ud83d.onnx"})) == {"path": "\\ud83d.onnx"}


def test_names_that_python_read_as_ascii():
    """LC_ALL=C without Python's UTF-8 mode."""
    assert json.loads(render({"path": "caf\udcc3\udca9.onnx"})) == {"path": "café.onnx"}


def test_what_json_cannot_hold_is_an_error():
    with pytest.raises(TypeError, match="holds a object"):
        render({"a": object()})
