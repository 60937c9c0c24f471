"""Every experiment of the papers on real models: tables, numbers and pictures, and the README's summary of them.

    python tests/benchmarks/papers.py --models DIR --data DIR --out FOLDER [--only NAME]     runs, resuming
    python tests/benchmarks/papers.py --out FOLDER [--readme README.md]                      prints the summary, or fills it in

--models: a folder of */NAME.onnx; --data: NAME/calib.npz (unlabelled), NAME/test.npz, NAME/labels.npy. FOLDER gets, for every
experiment, NAME.json, NAME.md (the table) and NAME.png, NAME-2.png and so on. Each is one `onnxprune papers` in a process of its
own; one that is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MLP, CNN = "lenet300_lobs_torch", "resnet20"
# Most calibration samples, and how often what is random is repeated; by kind of experiment, then by name.
USUAL = {"mlp": (1024, 3), "cnn": (256, 2), "none": (1, 3)}
SETTINGS = {
    "l-obs-fig2": (2000, 3), "l-obs-table3": (2000, 1), "coreset-fig4": (256, 5), "coreset-fig5": (256, 2),
    "coreset-fig6a": (512, 5), "sipp-curves": (128, 2), "probabilistic-table3": (1, 5),
}  # fmt: skip
BEGIN, END = "<!-- papers -->", "<!-- end papers -->"


def command(name: str, kind: str, models: Path, data: Path, out: Path) -> list[str]:
    samples, seeds = SETTINGS.get(name, USUAL[kind])
    found = [sys.executable, "-m", "onnxprune_cli", "papers", name, "--quiet", "--seeds", str(seeds)]
    if kind != "none":
        net = MLP if kind == "mlp" else CNN
        places = {"data": "calib.npz", "test-data": "test.npz", "labels": "labels.npy"}
        found += ["--model", str(next(models.glob(f"*/{net}.onnx"))), "--samples", str(samples)]
        found += [part for option, file in places.items() for part in (f"--{option}", str(data / net / file))]
    return [*found, "--picture", str(out / f"{name}.png"), "--json", str(out / f"{name}.json")]


def run(name: str, kind: str, models: Path, data: Path, out: Path) -> None:
    """Raises CalledProcessError where an experiment fails; what it said stands on the terminal."""
    python_path = os.pathsep.join([str(ROOT), str(ROOT / "cli"), *filter(None, [os.environ.get("PYTHONPATH")])])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command(name, kind, models, data, out), env=os.environ | {"PYTHONPATH": python_path}, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    path = out / f"{name}.json"
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = json.loads(path.read_text("utf-8")) | {"samples": SETTINGS.get(name, USUAL[kind])[0], "processor_seconds": seconds}
    path.write_text(json.dumps(found, indent=1), "utf-8")
    (out / f"{name}.md").write_text(markdown(found), "utf-8")
    sys.stdout.write(f"{name}: {seconds:.0f} s of processor time\n  paper: {found['claim']}\n  here:  {found['verdict']}\n")
    sys.stdout.flush()


def markdown(found: dict[str, Any]) -> str:
    """One experiment: its table, what the paper says, what came out, why they differ, its pictures."""
    samples = f", {found['samples']} calibration samples" if found["samples"] > 1 else ""
    parts = [f"# {found['name']}", f"{found['paper']}; {found['model']}{samples}; seeds: {found['seeds']}."]
    parts += [f"Paper: {found['claim']}", f"Here: {found['verdict']}"]
    rule = "|".join(["---", *["--:"] * (len(found["header"]) - 1)])
    parts.append("\n".join([_row(found["header"]), f"|{rule}|", *map(_row, found["rows"])]))
    parts.append("\n".join(f"* {remark}" for remark in found["remarks"]))
    parts += [
        f"![{figure['title']}]({Path(path).name})" for figure, path in zip(found["figures"], found["pictures"], strict=True)
    ]
    return "\n\n".join(parts) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def summary(out: Path) -> str:
    """One row an experiment, from what was measured."""
    lines = [_row(["experiment", "paper", "what it says", "what came out here"]), "|---|---|---|---|"]
    for path in sorted(out.glob("*.json")):
        found = json.loads(path.read_text("utf-8"))
        lines.append(_row([f"`{found['name']}`", found["paper"], found["claim"], found["verdict"]]))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("models", "data", "readme"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only")
    given = parser.parse_args()
    if given.models:
        from onnxprune.experiments import EXPERIMENTS

        given.out.mkdir(parents=True, exist_ok=True)
        for name, each in sorted(EXPERIMENTS.items()):
            if given.only in (None, name) and not (given.out / f"{name}.md").exists():
                run(name, each.kind, given.models, given.data, given.out)
    elif given.readme:
        before, rest = given.readme.read_text("utf-8").split(BEGIN)
        given.readme.write_text(f"{before}{BEGIN}\n{summary(given.out)}{END}{rest.split(END)[1]}", "utf-8")
    else:
        sys.stdout.write(summary(given.out))


if __name__ == "__main__":
    main()
