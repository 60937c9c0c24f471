"""Every method on real models: accuracy without retraining, with and without repair, seconds and memory; the README's table.

    python tests/benchmarks/methods.py --models DIR --data DIR --out rows.jsonl [--net resnet20] [--method obs]   runs, resuming
    python tests/benchmarks/methods.py --table rows.jsonl [--readme README.md]                                  prints or fills in

--models: a folder of */NAME.onnx; --data: NAME/calib.npz (unlabelled), NAME/test.npz, NAME/labels.npy. Scored here, with plain
ONNX Runtime, on samples that nothing was fitted to. Weight methods at ratios 0.3 to 0.9 of the weights, channel and rank methods
at 0.2 to 0.6; one process per run, so that its peak memory is its own (what it holds beyond the imports).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import score

NETS = {"lenet300_lobs_torch": 1024, "resnet20": 512, "mcunet_320kb_176": 64}
TITLES = {
    "lenet300_lobs_torch": "LeNet-300-100 (MNIST)", "resnet20": "ResNet-20 (CIFAR-10)", "mcunet_320kb_176": "MCUNet (ImageNet)",
}  # fmt: skip
WEIGHTS, CHANNELS = (0.3, 0.5, 0.7, 0.9), (0.2, 0.4, 0.6)
MIDDLE = (0.4, 0.5, 0.7)
REPAIRS = ("none", "least-squares")
BEGIN, END = "<!-- accuracy by method -->", "<!-- end accuracy by method -->"


def ratios(target: str) -> tuple[float, ...]:
    return WEIGHTS if target in ("weight", "kernel") else CHANNELS


def plan(net: str | None, method: str | None) -> list[tuple[str, str, float, str]]:
    from onnxprune.methods import METHODS

    names = [name for name, found in METHODS.items() if found.__module__.startswith("onnxprune.")]
    found = [
        (each, name, ratio, repair)
        for each in NETS
        for name in sorted(names, key=lambda name: (METHODS[name].target, name))
        for ratio in ratios(METHODS[name].target)
        for repair in REPAIRS
        if net in (None, each) and method in (None, name)
    ]
    # What says most comes first, so that a run that was stopped has it.
    return sorted(found, key=lambda key: (list(NETS).index(key[0]), key[2] not in MIDDLE, key[3] != "none"))


def measured(key: tuple[str, str, float, str], models: Path, data: Path) -> dict[str, Any]:
    """One run in this process, which nothing else was run in."""
    import onnxprune
    from onnxprune.errors import OnnxpruneError

    net, method, ratio, repair = key
    path, folder = next(models.glob(f"*/{net}.onnx")), data / net
    calibration = np.load(folder / "calib.npz")["input"][: NETS[net]]
    before, begin, work = peak(), time.perf_counter(), time.process_time()
    try:
        result = onnxprune.prune(
            path, method, ratio, data=calibration, test_data=calibration[:8], repair=repair, samples=len(calibration),
            latency=False,
        )  # fmt: skip
    except OnnxpruneError as error:
        return {"key": key, "error": str(error)}
    seconds, memory = (time.perf_counter() - begin, time.process_time() - work), peak() - before
    test, labels = np.load(folder / "test.npz")["input"], np.load(folder / "labels.npy")
    report = result.report
    return {
        "key": key, "accuracy": score(result.model.SerializeToString(), test, labels),
        "seconds": seconds[0], "processor_seconds": seconds[1], "memory": memory,
        "macs": report["pruned"]["macs"] / report["original"]["macs"],
        "zeros": report["sparsity"]["share"] if report["sparsity"] else None,
    }  # fmt: skip


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def original(net: str, models: Path, data: Path) -> dict[str, Any]:
    """The model as it is."""
    test, labels = np.load(data / net / "test.npz")["input"], np.load(data / net / "labels.npy")
    accuracy = score(str(next(models.glob(f"*/{net}.onnx"))), test, labels)
    return {"key": (net, "none", 0.0, "none"), "accuracy": accuracy}


def in_a_child(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Forked after the imports: no run waits for them or counts their memory."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as stream:
            stream.write(json.dumps(run()))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(text) if text else {"key": run.args[0], "error": f"the process died ({status})"}  # type: ignore[attr-defined]


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def table(found: list[dict[str, Any]]) -> str:
    """One table per net and kind: cells are accuracy in percent without repair / with it; a dash where it cannot be done."""
    from onnxprune.methods import METHODS

    cells = {tuple(row["key"]): row for row in found}
    parts = []
    for net, samples in NETS.items():
        before = cells.get((net, "none", 0.0, "none"))
        if before is None:
            continue
        parts.append(
            f"**{TITLES[net]}**, {100 * before['accuracy']:.1f} % before, {samples} unlabelled samples to calibrate on\n"
        )
        for kinds in (("weight", "kernel"), ("channel", "neuron", "rank")):
            shares = ratios(kinds[0])
            names = [n for n in METHODS if METHODS[n].target in kinds and any(k[:2] == (net, n) for k in cells)]
            lines = [line for name in sorted(names) if (line := _line(net, name, shares, cells)) is not None]
            if lines:
                head = " | ".join(f"{share:g}" for share in shares)
                what = "weights" if kinds[0] == "weight" else "channels, neurons or ranks"
                title = f"| share of the {what} removed | {head} | s | MB |"
                parts.append("\n".join([title, f"|:--|{'--:|' * (len(shares) + 2)}", *lines, ""]))
    return "\n".join(parts)


def _line(net: str, name: str, shares: tuple[float, ...], cells: dict[tuple[Any, ...], dict[str, Any]]) -> str | None:
    """None where the method cannot be used on this net at all."""
    shown, last = [], None
    for share in shares:
        pair = [cells.get((net, name, share, repair)) for repair in REPAIRS]
        shown.append(" / ".join(map(_cell, pair)) if any(pair) else "")
        last = pair[1] if pair[1] and "accuracy" in pair[1] else last
    if not any(character.isdigit() for cell in shown for character in cell):
        return None
    cost = f"{last['processor_seconds']:.1f} | {last['memory'] / 1e6:.0f}" if last else " | "
    return f"| `{name}` | {' | '.join(shown)} | {cost} |"


def _cell(row: dict[str, Any] | None) -> str:
    """A dash where it cannot be done, dots where nobody has measured it yet."""
    if row is None:
        return "..."
    return f"{100 * row['accuracy']:.1f}" if "accuracy" in row else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("models", "data", "out", "table", "readme"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--net", choices=NETS)
    parser.add_argument("--method")
    given = parser.parse_args()
    if given.table:
        text = table(rows(given.table))
        if given.readme:
            before, rest = given.readme.read_text("utf-8").split(BEGIN)
            given.readme.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}", "utf-8")
        else:
            sys.stdout.write(text)
        return
    import onnxprune.pipeline  # noqa: F401  (children start with the imports done)

    done = {tuple(row["key"]) for row in rows(given.out)}
    for net in [given.net] if given.net else NETS:
        if (net, "none", 0.0, "none") not in done:
            found = in_a_child(partial(original, net, given.models, given.data))
            with given.out.open("a") as stream:
                stream.write(json.dumps(found) + "\n")
    for key in plan(given.net, given.method):
        if key not in done:
            found = in_a_child(partial(measured, key, given.models, given.data))
            with given.out.open("a") as stream:
                stream.write(json.dumps(found) + "\n")
            sys.stdout.write(f"{key}: {found.get('accuracy', found.get('error'))}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
