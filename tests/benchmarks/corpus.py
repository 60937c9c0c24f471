"""A folder of ONNX files through find and cut, one row a file: how much can go, and is removed == zeroed.

    python tests/benchmarks/corpus.py FOLDER [FOLDER ...] --out rows.jsonl [--only REGEX] [--below MB]
    python tests/benchmarks/corpus.py --table rows.jsonl

Of every group with at least 4 channels a random share goes (--ratio). Each file is measured in a process of its own
(corpus_measure.py), so that a crash or a hang is a row like any other. Files with a row in --out are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ENOUGH = 0.3
"""A file that loses this share of its parameters at the highest ratio counts as one that can be pruned."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def files(folders: Sequence[Path], only: str, below: float) -> list[Path]:
    found = [p for folder in folders for p in folder.rglob("*.onnx") if re.search(only, p.name)]
    sizes = {p: p.stat().st_size for p in found if p.is_file()}
    return sorted((p for p, size in sizes.items() if size < below * 1e6), key=lambda p: (sizes[p], p))


def measured(path: Path, ratios: Sequence[float], seed: int, timeout: float) -> Row:
    """The row of one file, from a process that may crash or hang."""
    worker = Path(__file__).with_name("corpus_measure.py")
    here = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(worker), str(path), str(seed), *map(str, ratios)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=here)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {timeout:g} s"}
    if done.returncode < 0:
        return {"error": f"killed by signal {-done.returncode}"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no word"])[-1][:300], "trace": done.stderr[-3000:]}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def problem(row: Row) -> str:
    """What is wrong with a row; empty where all is well."""
    if "error" in row:
        return str(row["error"])
    if row.get("folding", 0.0) > row["tolerance"]:
        return f"weights computed beforehand change the output by {row['folding']:.1e}"
    for cut in row["cuts"]:
        if "error" in cut:
            return f"at {cut['ratio']:g}: {cut['error']}"
        if cut["difference"] is not None and not cut["difference"] <= row["tolerance"]:
            return f"at {cut['ratio']:g}: removed and zeroed differ by {cut['difference']:.1e}"
    return ""


def doubt(row: Row) -> str:
    """Why a row without a problem shows nothing."""
    if row.get("cannot"):
        return str(row["cannot"])
    if any(cut.get("moved") == 0 for cut in row["cuts"]):
        return "zeroing the channels does not change the output, so nothing was shown"
    return ""


def lost(row: Row) -> float:
    return max((cut.get("lost", 0.0) for cut in row.get("cuts", [])), default=0.0)


def grown(row: Row) -> str:
    """Weights that layers share are copied where these lose different channels; computed ones may leave what they came from."""
    least = min((cut.get("lost", 0.0) for cut in row.get("cuts", [])), default=0.0)
    return f"the cut adds {-least:.0%} to the parameters" if least < 0 else ""


def why(row: Row) -> str:
    """The commonest reasons why channels stay, where that is what holds a file back."""
    if not row["groups"] and not row["pins"]:
        return "no weights that a rule knows"
    stays = {reason: n for reason, n in row["pins"].items() if not reason.startswith("graph output")}
    return "; ".join(f"{reason} ({n})" for reason, n in list(stays.items())[:2]) if lost(row) < ENOUGH else ""


def cells(row: Row) -> list[str]:
    if "pins" not in row:
        return [row["file"], *[""] * 9, problem(row)]
    kinds = ", ".join(f"{n} {kind}" for kind, n in row["kinds"].items())
    differences = [c["difference"] for c in row["cuts"] if c.get("difference") is not None]
    runs = ["yes" if all(c[b] for c in row["cuts"]) else "NO" for b in ("batch1", "batch3") if has(row, b)]
    return [
        row["file"], f"{row['nodes']}", f"{row['groups']}" + (f" ({kinds})" if kinds else ""), f"{row['share']:.0%}",
        f"{max(differences):.1e}" if differences else "", " / ".join(runs), f"{lost(row):.0%}",
        f"{row['seconds']:.2f}", f"{row['reference_seconds']:.2f}", f"{row['memory_mb']:.0f} / {row['mb']:.0f}",
        "; ".join(filter(None, [problem(row), doubt(row), grown(row), why(row)])),
    ]  # fmt: skip


def has(row: Row, batch: str) -> bool:
    return bool(row["cuts"]) and all(c.get(batch) is not None for c in row["cuts"])


def table(rows: Iterable[Row]) -> str:
    """Markdown, one line a file."""
    titles = [
        "file", "nodes", "groups", "weights on them", "difference", "runs at batch 1 / 3", "parameters lost", "find, s",
        "onnx, s", "memory / file, MB", "remarks",
    ]  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "|---|--:|---|--:|--:|---|" + "--:|" * 4 + "---|"]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    differences = [c["difference"] for r in rows for c in r.get("cuts", []) if c.get("difference") is not None]
    bad, unsure = [r for r in rows if problem(r)], [r for r in rows if not problem(r) and doubt(r)]
    enough = sum(lost(r) >= ENOUGH for r in rows)
    lines = [f"{len(rows)} files, {len(rows) - len(bad)} without a problem, {len(unsure)} of them without proof"]
    if differences:
        lines.append(f"difference: median {statistics.median(differences):.1e}, largest {max(differences):.1e}")
    if rows:
        lines.append(f"{enough} files ({enough / len(rows):.0%}) lose at least {ENOUGH:.0%} of their parameters")
        lines.append(f"parameters lost: median {statistics.median(map(lost, rows)):.0%}")
    timed = [r["seconds"] / r["reference_seconds"] for r in rows if "reference_seconds" in r]
    if timed:
        lines.append(
            f"find takes {statistics.median(timed):.1f}x onnx's load and shape inference (median), {max(timed):.1f}x at most"
        )
    pins: Counter[str] = Counter()
    for row in rows:
        pins.update(set(row.get("pins", {})) if lost(row) < ENOUGH else ())
    lines += [
        f"held back by: {reason} ({n} files)" for reason, n in pins.most_common(12) if not reason.startswith("graph output")
    ]
    lines += [f"PROBLEM {r['file']}: {problem(r)}" for r in bad]
    lines += [f"larger {r['file']}: {grown(r)}" for r in rows if grown(r)]
    lines += [f"no proof {r['file']}: {doubt(r)}" for r in unsure]
    return "\n".join(lines)


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 where some row has a problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER")
    parser.add_argument("--only", default="", metavar="REGEX", help="of the file's name")
    parser.add_argument("--below", type=float, default=float("inf"), metavar="MB", help="smaller files alone")
    parser.add_argument("--out", type=Path, metavar="FILE", help="rows, one JSON object a line; added to")
    parser.add_argument("--ratio", type=float, action="append", help="share of the channels that goes (default: 0.25 and 0.5)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, metavar="FILE", help="print these rows as Markdown and do nothing else")
    given = parser.parse_args(arguments)
    if given.table:
        rows = sorted(read(given.table), key=lambda r: str(r["file"]))
        say(f"{table(rows)}\n\n{summary(rows)}")
        return 0
    rows = read(given.out) if given.out else []
    known = {row["file"] for row in rows}
    for path in files(given.folders, given.only, given.below):
        if path.name in known:
            continue
        row = {"file": path.name} | measured(path, given.ratio or [0.25, 0.5], given.seed, given.timeout)
        rows.append(row)
        say(" | ".join(cells(row)))
        if given.out:
            with given.out.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
    say(f"\n{summary(rows)}")
    return int(any(map(problem, rows)))


if __name__ == "__main__":
    sys.exit(main())
