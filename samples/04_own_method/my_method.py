"""A pruning method of one's own, registered and used: python my_method.py [FOLDER, default a temporary one]."""
# ruff: noqa: T201

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import onnxprune
from onnxprune.contract import ChannelMethod, ChannelView, Moments, method

SAMPLES = Path(__file__).resolve().parents[1]


@method
class VarianceNeuron(ChannelMethod):
    """Importance of unit c: sum over readers and positions p of Var(x_p) * ||W_p||^2.

    That is what the readers' outputs lose in variance when c goes, were the units independent; the mean that goes with it is
    for the bias to take. Var(x_p) is counted on the calibration data and 1 without any.
    """

    name = "variance-neuron"
    paper = "samples/04_own_method"
    target = "neuron"
    needs = (Moments,)

    def score(self, view: ChannelView) -> torch.Tensor:
        scores = torch.zeros(view.channels, dtype=torch.float64)
        for reader in view.readers:
            energy = reader.columns[reader.positions].double().square().sum(2).cpu()  # (channels, positions)
            moments = view.statistic(reader.layer, Moments)
            if moments is not None:
                energy = energy * moments.covariance.diagonal().cpu()[reader.positions.cpu()].clamp(min=0)
            scores += energy.sum(1)
        return scores


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("variance-neuron", "random-neuron"):
        result = onnxprune.prune(
            SAMPLES / "models" / "digits_lenet300.onnx",
            method=name,
            ratio=0.6,
            data=SAMPLES / "data" / "digits_calibration.npz",
            test_data=SAMPLES / "data" / "digits_test.npz",
            labels=SAMPLES / "data" / "digits_test_labels.npy",
            repair="mean",
        )
        result.save(folder / f"digits_lenet300.{name}.onnx")
        accuracy = result.report["accuracy"]
        assert accuracy is not None, "labels were given"
        print(f"{name:16} without 60 % of the units: accuracy {accuracy['original']:.3f} -> {accuracy['pruned']:.3f}")
    print(f"Both models are in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
