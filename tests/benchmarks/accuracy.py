"""The accuracy table of the README: real models, coreset-channel, with and without repair, no fine-tuning, no labels.

    python tests/benchmarks/accuracy.py --models DIR --data DIR --out results.jsonl      runs, resuming where it stopped
    python tests/benchmarks/accuracy.py --table results.jsonl                            prints the table

--models: a folder of */NAME.onnx; --data: NAME/calib.npz (unlabelled), NAME/test.npz, NAME/labels.npy. Accuracy is scored here,
with plain ONNX Runtime, on samples that nothing was fitted to. Latency: medians of interleaved runs, batch 1, 1 thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

MAIN = ("lenet300_lobs_tf", "lenet300_lobs_torch", "lenet5_lobs_torch", "resnet20", "resnet56", "mobilenetv2_keras_bn_224",
        "mobilenetv2_coral_224", "mcunet_320kb_176")  # fmt: skip
VARIANTS = ("resnet20_bn", "resnet20_dynamo", "resnet56_bn", "resnet56_dynamo")
GOALS = [("ratio", 0.2), ("ratio", 0.4), ("ratio", 0.6), ("macs", 0.8), ("macs", 0.6), ("macs", 0.4)]
REPAIRS = ("none", "least-squares")


def score(model: bytes | str, test: np.ndarray, labels: np.ndarray) -> float:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [session.run(None, {name: test[i : i + 25]})[0].argmax(1) for i in range(0, len(test), 25)]
    return float((np.concatenate(found) == labels).mean())


def runs() -> list[tuple[str, str, float, str]]:
    """Quick ones first."""
    plan = [(net, kind, value, repair) for net in MAIN[:5] for kind, value in GOALS for repair in REPAIRS]
    plan += [(net, "macs", 0.6, repair) for net in VARIANTS for repair in REPAIRS]
    return plan + [(net, kind, value, repair) for net in MAIN[5:] for kind, value in GOALS for repair in REPAIRS]


def run(models: Path, data: Path, out: Path, only: str) -> None:
    import onnxprune

    done = {tuple(json.loads(line)["key"]) for line in out.read_text().splitlines()} if out.exists() else set()
    for key in runs():
        net, kind, value, repair = key
        if key in done or (only and only not in net):
            continue
        folder = data / net
        test, labels = np.load(folder / "test.npz")["input"], np.load(folder / "labels.npy")
        path = next(models.glob(f"*/{net}.onnx"))
        goal = {"ratio": value} if kind == "ratio" else {"target": f"macs={value}"}
        begin = time.perf_counter()
        result = onnxprune.prune(path, **goal, data=folder / "calib.npz", repair=repair, samples=2000)  # type: ignore[arg-type]
        seconds = time.perf_counter() - begin
        report = result.report
        latency = report["latency"]
        assert latency is not None  # it was asked for
        row = {
            "key": key, "before": score(str(path), test, labels), "after": score(result.model.SerializeToString(), test, labels),
            "macs": report["pruned"]["macs"] / report["original"]["macs"],
            "parameters": report["pruned"]["parameters"] / report["original"]["parameters"],
            "latency": latency["pruned_ms"] / latency["original_ms"], "seconds": seconds, "version": report["tool"]["version"],
        }  # fmt: skip
        with out.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        sys.stderr.write(f"{key} {row['before']:.4f} -> {row['after']:.4f}\n")


def table(out: Path) -> str:
    rows = {tuple(r["key"]): r for r in map(json.loads, out.read_text().splitlines())}
    lines = ["| model | asked | before | no repair | repaired | MACs | latency |", "|---|---|--:|--:|--:|--:|--:|"]
    for net in (*MAIN, *VARIANTS):
        for kind, value in GOALS:
            plain, repaired = rows.get((net, kind, value, "none")), rows.get((net, kind, value, "least-squares"))
            if plain and repaired:
                lines.append(
                    f"| {net} | {kind} {value:g} | {100 * repaired['before']:.1f} | {100 * plain['after']:.1f} "
                    f"| **{100 * repaired['after']:.1f}** | {repaired['macs']:.2f} | {repaired['latency']:.2f} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="nets whose name contains this")
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.table:
        sys.stdout.write(table(given.table) + "\n")
    else:
        run(given.models, given.data, given.out, given.only)


if __name__ == "__main__":
    main()
