"""Figures 4, 5 and 6a of the coreset paper on the bundled MLP, with few sizes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.experiments import EXPERIMENTS, Case, coreset
from onnxprune.experiments.scoring import accuracy, answers

SAMPLES = Path(__file__).parents[2] / "samples"


def opened(model):
    data = SAMPLES / "data"
    return Case(
        "digits", SAMPLES / f"models/{model}.onnx", np.load(data / "digits_calibration.npz")["image"][:100],
        np.load(data / "digits_test.npz")["image"][:100], np.load(data / "digits_test_labels.npy")[:100],
    )  # fmt: skip


def quiet(stage, share):
    assert 0 <= share <= 1


def test_fig4_has_all_three_settings_and_no_error_where_all_points_stay(monkeypatch):
    monkeypatch.setattr(coreset, "POINTS", 60)
    result = EXPERIMENTS["coreset-fig4"].run(opened("digits_lenet300"), 2, quiet)
    assert len(result.rows) == 18
    assert len(result.figures) == 3
    for figure in result.figures:
        assert [line.label for line in figure.lines] == ["coreset", "uniform", "percentile"]
        for line in figure.lines:
            assert line.y[-1] == pytest.approx(0, abs=1e-6)
            assert np.mean(line.y[:5]) > np.mean(line.y[-5:]) > 0
    trained = {line.label: np.mean(line.y) for line in result.figures[2].lines}
    assert trained["coreset"] < trained["uniform"], "as the paper finds on trained weights"
    shown = [float(error) for row in result.rows if row[0] == "(c) trained" for error in row[2:3]]
    assert shown == [pytest.approx(line.y[1], rel=0.01) for line in result.figures[2].lines]
    uniform, percentile, unsigned = re.findall(r"at (\d+) of 19, (\d+), (\d+)", result.verdict)
    for place, told in ((1, uniform), (2, percentile)):
        curves = [(figure.lines[0].y, figure.lines[place].y) for figure in result.figures]
        assert [int(n) for n in told] == [sum(a < b for a, b in zip(ours[:-1], other, strict=False)) for ours, other in curves]
    assert [int(n) for n in unsigned[:2]] == [19, 19], "where nothing cancels, dropping small terms is biased"


def test_fig5_and_fig6a_count_what_the_models_answer(monkeypatch):
    monkeypatch.setattr(coreset, "KEPT", (0.8, 0.3))
    monkeypatch.setattr(coreset, "COMPETITORS", ("coreset-neuron", "corenet+", "not-there"))
    case = opened("digits_lenet300")
    result = EXPERIMENTS["coreset-fig5"].run(case, 2, quiet)
    errors = {line.label: line.y for line in result.figures[0].lines}
    assert set(errors) == {"coreset-neuron", "corenet+", coreset.OURS}
    assert "coreset-neuron is number 2, 2 of 2" in result.verdict
    assert "The least error has corenet+" in result.verdict
    assert all(0 < y[0] < y[1] for y in errors.values())
    assert "Not among the methods: not-there." in result.remarks
    original = answers(case.model, case.test)
    model = coreset._pruned(case, "corenet+", 0.3, 0)
    assert np.abs(answers(model, case.test) - original).sum(1).mean() == pytest.approx(errors["corenet+"][1], rel=0.5)

    result = EXPERIMENTS["coreset-fig6a"].run(case, 2, quiet)
    shares = {line.label: line.y for line in result.figures[0].lines}
    assert shares[coreset.OURS][1] > shares["coreset-neuron"][1]
    assert all(0 <= v <= 1 for y in shares.values() for v in y)
    assert f"refitted, it has {100 * shares[coreset.OURS][1]:.1f} %" in result.verdict
    refitted = coreset._pruned(case, coreset.OURS, 0.3, 0)
    assert accuracy(answers(refitted, case.test), case.labels) == pytest.approx(shares[coreset.OURS][1], abs=0.15)


def test_fig4_needs_a_fully_connected_first_layer():
    with pytest.raises(UsageError, match="take an MLP"):
        EXPERIMENTS["coreset-fig4"].run(opened("digits_cnn"), 1, quiet)
