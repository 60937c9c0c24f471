"""The tables of Qian and Klabjan from few draws, within sampling error; its figures on the bundled models."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from onnxprune.experiments import EXPERIMENTS, Case, no_case, probabilistic
from onnxprune.experiments.probabilistic_tables import DRAWS2, QUANTILES, TABLE2, TABLE3

SAMPLES = Path(__file__).parents[2] / "samples"


def silent(stage, share):
    assert 0 <= share <= 1


def case(model):
    def array(name):
        stored = np.load(SAMPLES / "data" / name)
        return stored if isinstance(stored, np.ndarray) else stored[stored.files[0]]

    test, labels = array("digits_test.npz")[:60], array("digits_test_labels.npy")[:60]
    return Case(model, SAMPLES / "models" / f"{model}.onnx", array("digits_calibration.npz")[:64], test, labels)


def small(rows, most):
    return tuple(row for row in rows if max(getattr(row, "n2", 0), getattr(row, "d", 0)) <= most)


def test_table_2_within_sampling_error(monkeypatch):
    monkeypatch.setattr(probabilistic, "TABLE2", small(TABLE2, 128))
    found = EXPERIMENTS["probabilistic-table2"].run(no_case(), 2, silent)
    assert len(found.rows) == 12
    gaps = [float(row[3]) for row in found.rows]
    assert max(map(abs, gaps)) < 4
    assert math.sqrt(np.mean(np.square(gaps))) < 1.6
    for row, paper in zip(found.rows, small(TABLE2, 128), strict=True):
        assert row[2].endswith(f"({paper.mean:.3f})")
        ours = float(row[5].split()[0])
        assert ours == pytest.approx(paper.c0[0], abs=0.9 * paper.deviation)
    assert any("n = 32: 0.029 0.041 0.059 0.077;" in remark for remark in found.remarks), "as printed"
    norms, scaled = found.figures
    assert [line.label for line in norms.lines[:2]] == ["n1 = 32", "n1 = 32, paper"]
    assert norms.lines[0].y[0] == pytest.approx(float(found.rows[0][2].split()[0]), abs=0.001)
    assert scaled.lines[0].y[0] > 1.5 * norms.lines[0].y[0]


def test_table_3_within_sampling_error(monkeypatch):
    monkeypatch.setattr(probabilistic, "TABLE3", small(TABLE3, 64))
    found = EXPERIMENTS["probabilistic-table3"].run(no_case(), 2, silent)
    assert len(found.rows) == 12
    gaps = [float(row[7]) for row in found.rows]
    assert max(map(abs, gaps)) < 4
    assert math.sqrt(np.mean(np.square(gaps))) < 1.6
    for row, paper in zip(found.rows, small(TABLE3, 64), strict=True):
        assert float(row[8].split()[0]) == pytest.approx(paper.c, abs=0.012)
        assert float(row[5].split()[0]) == pytest.approx(paper.terms[2], rel=0.01)
    pruned = {line.label: line for line in found.figures[0].lines}["N(0,1/d), pruned, alpha = 0.5"]
    assert list(pruned.x) == [32, 64]
    assert pruned.y[0] == pytest.approx(float(found.rows[-2][8].split()[0]), abs=0.001)


def test_the_printed_tables_hold_together():
    """What was typed in: C is the norm over the sum of the terms, quantiles rise, and K scales everything."""
    for row in TABLE3:
        assert row.c == pytest.approx(row.norm / sum(row.terms), abs=1.1e-3)
    assert len(TABLE2) == 30
    assert DRAWS2 == 1000
    for one, root in zip(TABLE2[::2], TABLE2[1::2], strict=True):
        assert (one.n1, one.n2) == (root.n1, root.n2)
        assert root.mean / one.mean == pytest.approx(math.sqrt(3), abs=0.01)
        assert list(one.c0) == sorted(one.c0)
        assert len(one.c0) == len(QUANTILES)


def test_norms_are_the_largest_singular_values():
    import torch

    matrices = torch.randn((3, 7, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for found, matrix in zip(probabilistic.norms(matrices), matrices, strict=True):
        assert float(found) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)))
    assert torch.allclose(probabilistic.norms(matrices), probabilistic.norms(matrices.mT))


@pytest.mark.parametrize(("name", "model", "layers"), [("fig1", "digits_lenet300", 3), ("fig2", "digits_cnn", 17)])
def test_histograms_hold_every_weight_once(name, model, layers):
    found = EXPERIMENTS[f"probabilistic-{name}"].run(case(model), 1, silent)
    (figure,) = found.figures
    *drawn, gaussian = figure.lines
    assert len(drawn) == min(layers, probabilistic.SHOWN)
    width = drawn[0].x[1] - drawn[0].x[0]
    assert gaussian.level
    assert sum(gaussian.y) * width == pytest.approx(1, abs=1e-3)
    for line in drawn:
        assert 0.97 < sum(line.y) * width <= 1 + 1e-9, "all but what is farther than four deviations"
        spread = sum(x * x * y for x, y in zip(line.x, line.y, strict=True)) * width
        assert spread == pytest.approx(1, abs=0.25)
    assert len(found.rows) == layers + (6 if name == "fig1" else 0)


def test_magnitude_errs_less_than_chance_and_never_more_than_the_bound(monkeypatch):
    monkeypatch.setattr(probabilistic, "RATIOS", (0.1, 0.5))
    found = EXPERIMENTS["probabilistic-mlp"].run(case("digits_lenet300"), 2, silent)
    magnitude, random, limit = found.figures[1].lines
    for i in range(2):
        assert magnitude.y[i] < random.y[i]
        assert magnitude.y[i] <= limit.y[i]
    assert found.figures[0].lines[0].y[0] > 0.9
    assert found.verdict.startswith("Of 2 theorems 2 say nothing of this network; with 50% removed: magnitude ")
    assert any(remark.startswith("Theorem 1: outside its regime") for remark in found.remarks)


def test_filters_at_random_and_by_norm(monkeypatch):
    monkeypatch.setattr(probabilistic, "RATIOS", (0.05,))
    found = EXPERIMENTS["probabilistic-cnn"].run(case("digits_cnn"), 1, silent)
    assert [row[0] for row in found.rows] == ["magnitude-kernel", "random-kernel", "magnitude", "random"]
    by_name = {line.label: line.y[0] for line in found.figures[1].lines}
    assert 0 < by_name["magnitude"] < by_name["magnitude-kernel"]
    assert by_name["magnitude"] < by_name["random"]
