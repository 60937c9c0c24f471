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
    assert set(curves) == {"l-obs", "obs", "magnitude", "apozw", "apoz", "random", "l-obs, paper", "random, paper"}
    assert min(curves["l-obs"][0], curves["obs"][0]) >= 0.98
    assert curves["obs"][1] > curves["l-obs"][1] > curves["magnitude"][1] + 0.2 > curves["random"][1]
    assert [row[0] for row in result.rows] == ["30%", "96%"]
    wrong = {line.label: line.y for line in result.figures[1].lines}
    assert wrong["obs"] == pytest.approx([1 - right for right in curves["obs"]])
    assert [line.label for line in result.figures[0].lines if line.spread is not None] == ["random"]
    assert "30% at random" in result.verdict


def test_the_whole_network_and_the_authors_table(case, monkeypatch):
    levels = {"10": {"kept": 0.1, "acc": 0.9}, "50": {"kept": 0.5, "acc": 0.95}}
    combo = {"layers": {"fc1": 10, "fc2": 10, "fc3": 50}, "kept": 0.104, "acc_no_retrain": 0.9}
    table = {"LeNet300100": {"dense": 0.99, "fc1": levels, "fc2": levels, "fc3": levels, "combo": combo}}
    (case.model.parent / l_obs.REFERENCE).write_text(json.dumps(table))
    monkeypatch.setattr(l_obs, "LEVELS", (10, 50))
    result = EXPERIMENTS["l-obs-table3"].run(case, 1, lambda what, share: None)
    whole, combined, *single = (dict(zip(result.header, row, strict=True)) for row in result.rows)
    errors = {name: float(whole[name].rstrip("%")) for name in ("obs", "l-obs", "l-obs stale", "magnitude")}
    assert errors["obs"] <= errors["l-obs stale"] < errors["magnitude"]
    assert errors["l-obs"] < errors["magnitude"]
    assert whole["weights kept"] == "11.2%"
    assert (combined["weights kept"], combined["paper's, authors' own"]) == ("10.4%", "10.00%")
    assert f"{combined['l-obs']} and {combined['obs']}" in result.verdict
    assert f"{whole['magnitude']} by magnitude" in result.verdict
    assert len(single) == 6
    assert single[1]["paper's, authors' own"] == "5.00%"
    assert len(result.figures) == 4
    kept = {line.label: line for line in result.figures[0].lines}
    assert kept["l-obs"].x[3] == pytest.approx(0.112, abs=1e-3)
    assert kept["l-obs"].y[3] == pytest.approx(errors["l-obs"] / 100)
    assert [line.paper for line in result.figures[1].lines] == [False, False, True]


def test_without_the_authors_table_there_is_still_a_picture(case, monkeypatch):
    monkeypatch.setattr(l_obs, "POWERS", (1.0,))
    result = EXPERIMENTS["l-obs-table3"].run(case, 1, lambda what, share: None)
    assert len(result.rows) == 1
    assert [figure.title for figure in result.figures] == ["Every layer pruned, nothing retrained"]
    assert "authors" not in result.claim
