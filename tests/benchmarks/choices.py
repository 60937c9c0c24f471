"""The defaults against their alternatives, judged on images that neither calibration nor the accuracy table sees.

    python tests/benchmarks/choices.py --models DIR --train cifar10/train4000_lossless.npz [--seeds 3]

--train: x (images, height, width, channels) uint8, y; the first 1024 calibrate, the others judge. The nets were trained on them,
so that only what is lost says something. One row per choice: accuracy before and after, mean over the seeds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

NETS = ("resnet20", "resnet56")
CALIBRATION = 1024
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CHOICES = {
    "defaults": {},
    "the paper's single draw": {"options": {"draws": 1}},
    "uniform budget": {"budget": "uniform"},
    "global budget": {"budget": "global"},
    "refit on the original's inputs": {"sequential": False},
    "mean and variance alone": {"repair": "mean"},
    "no repair": {"repair": "none"},
    "l2-channel": {"method": "l2-channel"},
    "obs-channel": {"method": "obs-channel"},
    "thinet-channel": {"method": "thinet-channel"},
    "fpgm-channel": {"method": "fpgm-channel"},
    "random-channel": {"method": "random-channel"},
}


def score(model: bytes | str, images: np.ndarray, labels: np.ndarray) -> float:
    import onnxruntime as ort

    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [session.run(None, {name: images[i : i + 64]})[0].argmax(1) for i in range(0, len(images), 64)]
    return float((np.concatenate(found) == labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", default="macs=0.6")
    given = parser.parse_args()
    import onnxprune

    stored = np.load(given.train)
    images = ((stored["x"] / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    labels = stored["y"]
    calibration, judged, truth = images[:CALIBRATION], images[CALIBRATION:], labels[CALIBRATION:]
    for net in NETS:
        path = next(given.models.glob(f"*/{net}.onnx"))
        before = score(str(path), judged, truth)
        for name, choice in CHOICES.items():
            after = []
            for seed in range(given.seeds):
                options = {"target": given.target, "data": calibration, "test_data": judged[:64], "latency": False, "seed": seed}
                pruned = onnxprune.prune(path, **options | choice)  # type: ignore[arg-type]
                after.append(100 * score(pruned.model.SerializeToString(), judged, truth))
            spread = f" (+-{np.std(after):.1f})" if len(after) > 1 else ""
            sys.stdout.write(f"| {net} | {name} | {100 * before:.1f} | {np.mean(after):.1f}{spread} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
