"""Prunes the digits CNN from Python and checks the saved file: python prune_digits.py [FOLDER, default a temporary one]."""
# ruff: noqa: T201

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

import onnxprune

SAMPLES = Path(__file__).resolve().parents[1]


def accuracy(model: Path) -> float:
    """The share of test digits that the model reads right, by ONNX Runtime alone."""
    images = np.load(SAMPLES / "data" / "digits_test.npz")["image"]
    labels = np.load(SAMPLES / "data" / "digits_test_labels.npy")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return float((session.run(["logits"], {"image": images})[0].argmax(1) == labels).mean())


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    result = onnxprune.prune(
        SAMPLES / "models" / "digits_cnn.onnx",
        method="coreset-channel",
        ratio=0.4,
        data=SAMPLES / "data" / "digits_calibration.npz",
        test_data=SAMPLES / "data" / "digits_test.npz",
        labels=SAMPLES / "data" / "digits_test_labels.npy",
    )
    report = result.report
    before, after = report["original"], report["pruned"]
    for figure in ("parameters", "macs", "bytes"):
        print(f"{figure:12} {before[figure]:>12,} -> {after[figure]:>12,}")
    for group in report["groups"]:
        print(f"{group['name']:40} keeps {group['kept']} of {group['channels']} channels")
    if report["accuracy"]:
        print(f"accuracy     {report['accuracy']['original']:.3f} -> {report['accuracy']['pruned']:.3f}")

    pruned = folder / "digits_cnn.pruned.onnx"
    result.save(pruned)
    print(f"{pruned} was saved; measured again, it has an accuracy of {accuracy(pruned):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
