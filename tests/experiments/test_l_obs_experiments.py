"""The experiments of L-OBS on a small network: their order of merit, their comparison with the authors' table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from onnxprune.experiments import EXPERIMENTS, Case, l_obs

SAMPLES = Path(__file__).parents[2] / "samples"


@pytest.fixture
def case(tmp_path):
    model = tmp_path / "net.onnx"
    shutil.copy(SAMPLES / "models" / "digits_lenet300.onnx", model)
    calibration = np.load(SAMPLES / "data" / "digits_calibration.npz")["image"]
    test = np.load(SAMPLES / "data" / "digits_test.npz")["image"]
    return Case("digits", model, calibration, test, np.load(SAMPLES / "data" / "digits_test_labels.npy"))


def test_second_order_keeps_what_size_and_chance_lose(case, monkeypatch):
    monkeypatch.setattr(l_obs, "RATIOS", (0.3, 0.96))
    result = EXPERIMENTS["l-obs-fig2"].run(case, 2, lambda what, share: None)
    curves = {line.label: line.y for line in result.figures[0].lines}
    assert set(curves) == {"l-obs", "obs", "magnitude", "apozw", "apoz", "random"}
    assert min(curves["l-obs"][0], curves["obs"][0]) >= 0.98
    assert curves["obs"][1] > curves["l-obs"][1] > curves["magnitude"][1] + 0.2 > curves["random"][1]
    assert [row[0] for row in result.rows] == ["30%", "96%"]
    assert result.figures[0].lines[-1].spread is not None


def test_the_whole_network_and_the_authors_table(case, monkeypatch):
    levels = {"10": {"kept": 0.1, "acc": 0.9}, "50": {"kept": 0.5, "acc": 0.95}}
    table = {"LeNet300100": {"dense": 0.99, "fc1": levels, "fc2": levels, "fc3": levels}}
    (case.model.parent / l_obs.REFERENCE).write_text(json.dumps(table))
    monkeypatch.setattr(l_obs, "LEVELS", (10, 50))
    result = EXPERIMENTS["l-obs-table3"].run(case, 1, lambda what, share: None)
    rows = {row[0]: row for row in result.rows}
    errors = {name: float(row[2].rstrip("%")) for name, row in rows.items()}
    assert errors["obs"] <= errors["l-obs, update=stale"] < errors["magnitude"]
    assert errors["l-obs"] < errors["magnitude"]
    assert rows["l-obs"][1] == "11.2%"
    assert len(result.figures) == 3
    assert [line.paper for line in result.figures[0].lines] == [False, False, True]
    assert rows["obs, fc1"][3] == "5.00%"
