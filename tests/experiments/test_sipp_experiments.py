"""SiPP's curves on a small network: all variants at every ratio, what little pruning costs, and what a refit brings back."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxprune.experiments import EXPERIMENTS, Case, sipp

SAMPLES = Path(__file__).parents[2] / "samples"


def test_all_variants_against_weight_thresholding(monkeypatch):
    data = SAMPLES / "data"
    calibration, test = (np.load(data / f"digits_{name}.npz")["image"] for name in ("calibration", "test"))
    case = Case(
        "digits", SAMPLES / "models" / "digits_cnn.onnx", calibration[:64], test, np.load(data / "digits_test_labels.npy")
    )
    monkeypatch.setattr(sipp, "RATIOS", (0.05, 0.7))
    result = EXPERIMENTS["sipp-curves"].run(case, 2, lambda what, share: None)
    assert len(result.rows) == 7
    assert {len(row) for row in result.rows} == {len(result.header)}
    (figure,) = result.figures
    plain = {line.label: line for line in figure.lines}
    refitted = {line.like: line for line in figure.lines if line.like}
    assert set(plain) == {
        "SiPPDet", "SiPPRand", "SiPPHybrid", "SiPPSimple", "WT", "SiPPDet, refitted", "WT, refitted", "unpruned",
    }  # fmt: skip
    before = plain["unpruned"].y[0]
    assert before > 0.9
    assert plain["SiPPRand"].spread is not None
    assert plain["SiPPDet"].spread is None
    for label in ("SiPPDet", "SiPPSimple", "WT"):
        assert plain[label].y[0] > before - 0.1
    for label in ("SiPPDet", "WT"):
        assert refitted[label].y[1] > plain[label].y[1]
    assert list(plain["SiPPDet"].y) == list(plain["SiPPSimple"].y)
    gap = 100 * (np.mean(plain["SiPPDet"].y) - np.mean(plain["WT"].y))
    assert f"SiPPDet {gap:+.1f}" in result.verdict
