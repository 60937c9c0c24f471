"""What pruning costs and what it gains, as ratios measured in one run: seconds, passes, memory, latency against MACs.

    python tests/benchmarks/cost.py [--net resnet50] [--samples 64] [--ratio 0.4]
    python tests/benchmarks/cost.py --model FILE.onnx --data FILE.npz [--samples 1024]

Limits aimed at: find + decide + rewrite without data under 5 s for ResNet-50; calibration with repair at most 4 plain passes over
the same samples, plus the solves; peak memory at most 3 times the model plus one batch of taps; the measured speed-up at least
0.85 of the MACs ratio for ResNet-18 and MobileNetV2 at ratio 0.4. Passes are counted in wall time and in processor time of this
process, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from topologies import NETS


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Meter:
    """Wall and processor seconds between begin and end, added up by name."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - begin[0]
            self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - begin[1]

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Count every call of owner.attribute under `name`."""
        real = getattr(owner, attribute)

        def timed(*args: Any, **more: Any) -> Any:
            with self.stage(name):
                return real(*args, **more)

        setattr(owner, attribute, timed)


def plain_pass(path: Path, name: str, images: np.ndarray, batch: int, meter: Meter) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {name: images[:batch]})
    with meter.stage("plain"):
        for i in range(0, len(images), batch):
            session.run(None, {name: images[i : i + batch]})


def passes(meter: Meter) -> str:
    """What observing and repairing cost without the solves, those, and the parts, in plain passes: wall / processor time."""
    work, solves = ("observing", "repairing"), ("weighing the choices", "refitting")

    def ratio(of: dict[str, float], names: Sequence[str], less: Sequence[str] = ()) -> float:
        return (sum(of.get(n, 0.0) for n in names) - sum(of.get(n, 0.0) for n in less)) / of["plain"]

    parts = {"calibration and repair": (work, solves), "solves": (solves, ())}
    parts |= {n: ((n,), ()) for n in ("looking", "probing", "adding up")}
    return "; ".join(f"{n} {ratio(meter.wall, *p):.1f} / {ratio(meter.cpu, *p):.1f}" for n, p in parts.items())


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def noise(samples: int) -> np.ndarray:
    """(samples, 3, 224, 224), smooth as images are. Made one by one: what is left behind would hide the peak that is measured."""
    rng = np.random.default_rng(0)
    found = np.empty((samples, 3, 224, 224), np.float32)
    for image in found:
        coarse = np.repeat(np.repeat(rng.standard_normal((3, 14, 14), np.float32), 16, 1), 16, 2)
        image[:] = coarse + np.float32(0.2) * rng.standard_normal(coarse.shape, np.float32)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=sorted(NETS), default="resnet50")
    parser.add_argument("--model", type=Path, help="instead of --net, with --data: a model with one input")
    parser.add_argument("--data", type=Path, help="its calibration samples, an .npz")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args()
    import onnxprune
    from onnxprune.calibration.repair import Repair
    from onnxprune.decide import channels as decide
    from onnxprune.jobs.channels import ChannelJob

    meter = Meter()
    images = next(iter(np.load(given.data).values()))[: given.samples] if given.data else noise(given.samples)
    with tempfile.TemporaryDirectory() as folder:
        path = given.model or Path(folder) / "model.onnx"
        if given.model is None:
            onnx.save(NETS[given.net](), path)
        name = onnx.load(path).graph.input[0].name
        size = path.stat().st_size
        say(f"{given.model or given.net}: {size / 1e6:.1f} MB, ratio {given.ratio}")
        plain = {"budget": "uniform", "repair": "none", "method": "l1-channel", "samples": 2, "latency": False}
        onnxprune.prune(path, ratio=given.ratio, **plain)  # type: ignore[arg-type]  # imports and first sessions
        timings = onnxprune.prune(path, ratio=given.ratio, **plain).report["timings"]  # type: ignore[arg-type]
        say(f"find + decide + rewrite without data: {sum(timings[k] for k in ('find', 'decide', 'rewrite')):.2f} s")
        before = peak()
        for owner, attribute, label in (
            (ChannelJob, "_see", "observing"), (ChannelJob, "_repair", "repairing"),
            (decide, "judge", "weighing the choices"),
            (Repair, "_refit", "refitting"), (decide, "observe", "looking"), (decide, "measure_gains", "probing"),
            (Repair, "_add", "adding up"),
        ):  # fmt: skip
            meter.watch(owner, attribute, label)
        result = onnxprune.prune(
            path, ratio=given.ratio, data=images, test_data=images[:4], batch=given.batch, samples=len(images)
        )
        grown = peak() - before
        report = result.report
        plain_pass(path, name, images, max(1, min(given.batch, len(images) // 10)), meter)
        say(f"plain passes of {meter.wall['plain']:.2f} / {meter.cpu['plain']:.2f} s (wall / processor): {passes(meter)}")
        say(f"memory on top of what was in use: {grown / size:.1f} x the model ({grown / 1e6:.0f} MB)")
        latency = report["latency"]
        assert latency is not None  # it was asked for
        macs = report["original"]["macs"] / report["pruned"]["macs"]
        say(f"MACs {macs:.2f}x fewer, {latency['speedup']:.2f}x faster: {latency['speedup'] / macs:.2f} of it realised")
        say("timings: " + ", ".join(f"{k} {v:.1f} s" for k, v in report["timings"].items()))


if __name__ == "__main__":
    main()
