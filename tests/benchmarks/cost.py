"""What pruning costs and what it gains, as ratios measured in one run: seconds, passes, memory, latency against MACs.

    python tests/benchmarks/cost.py [--net resnet50] [--samples 64] [--ratio 0.4]

Limits aimed at: find + decide + rewrite without data under 5 s for ResNet-50; calibration with repair at most 4 plain passes over
the same samples, plus the solves; peak memory at most 3 times the model plus one batch of taps; the measured speed-up at least
0.85 of the MACs ratio for ResNet-18 and MobileNetV2 at ratio 0.4.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from topologies import NETS


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def plain_pass(path: Path, images: np.ndarray, batch: int) -> float:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {"image": images[:batch]})
    begin = time.perf_counter()
    for i in range(0, len(images), batch):
        session.run(None, {"image": images[i : i + batch]})
    return time.perf_counter() - begin


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=sorted(NETS), default="resnet50")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args()
    import onnxprune

    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((given.samples, 3, 14, 14)).astype(np.float32)
    images = np.repeat(np.repeat(coarse, 16, 2), 16, 3) + 0.2 * rng.standard_normal((given.samples, 3, 224, 224)).astype(
        np.float32
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(NETS[given.net](), path)
        size = path.stat().st_size
        say(f"{given.net}: {size / 1e6:.1f} MB, ratio {given.ratio}")
        plain = {"budget": "uniform", "repair": "none", "method": "l1-channel", "samples": 2, "latency": False}
        onnxprune.prune(path, ratio=given.ratio, **plain)  # type: ignore[arg-type]  # imports and first sessions
        timings = onnxprune.prune(path, ratio=given.ratio, **plain).report["timings"]  # type: ignore[arg-type]
        say(f"find + decide + rewrite without data: {sum(timings[k] for k in ('find', 'decide', 'rewrite')):.2f} s")
        before = peak()
        held = rng.standard_normal((4, 3, 224, 224)).astype(np.float32)
        result = onnxprune.prune(path, ratio=given.ratio, data=images, test_data=held, batch=given.batch)
        grown = peak() - before
        report = result.report
        one = plain_pass(path, images, given.batch)
        spent = report["timings"]["observe"] + report["timings"]["repair"]
        say(f"calibration and repair: {spent:.1f} s = {spent / one:.1f} plain passes of {one:.1f} s over {given.samples} samples")
        say(f"memory on top of what was in use: {grown / size:.1f} x the model ({grown / 1e6:.0f} MB)")
        latency = report["latency"]
        assert latency is not None  # it was asked for
        macs = report["original"]["macs"] / report["pruned"]["macs"]
        say(f"MACs {macs:.2f}x fewer, {latency['speedup']:.2f}x faster: {latency['speedup'] / macs:.2f} of it realised")
        say("timings: " + ", ".join(f"{k} {v:.1f} s" for k, v in report["timings"].items()))


if __name__ == "__main__":
    main()
