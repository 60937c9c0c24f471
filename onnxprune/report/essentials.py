"""What every form of the report tells, taken from its figures once: headline, rows, pins by reason, plain sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from onnxprune.report import units

Figures = Mapping[str, Any]
MOST_GROUPS = 20
# The node that gives a reason stands first in it.
NODE = re.compile(r"^'[^']*' ")


@dataclass(frozen=True)
class Row:
    """One line of the table of both models; `good` says whether the change is what pruning is for (None: neither)."""

    what: str
    original: str
    pruned: str
    change: str
    good: bool | None = None


@dataclass(frozen=True)
class PinnedReason:
    reason: str
    tensors: int
    channels: int


def title(report: Figures) -> str:
    """The file's name, or both names where two files were compared."""
    original, pruned = (report.get(which, {}).get("path") for which in ("original", "pruned"))
    name = units.printable(PurePath(original).name) if original else "model"
    if not report.get("method"):
        return f"{name} and {units.printable(PurePath(pruned).name) if pruned else 'the other model'}"
    return name


def headline(report: Figures) -> str:
    """What was asked for and what came of it."""
    if report.get("sparsity"):
        return _weights_headline(report)
    if report.get("ranks"):
        return _ranks_headline(report)
    groups: list[Figures] = report.get("groups") or []
    channels, kept = (sum(g[key] for g in groups) for key in ("channels", "kept"))
    parts = []
    options = report.get("options") or {}
    if options.get("target"):
        parts.append(f"target {_target(options['target'])} asked")
    elif error := _asked_of_errors(options):
        parts.append(error)
    elif report.get("ratio") is not None:
        parts.append(f"ratio {units.share(report['ratio'])} asked")
    if channels:
        parts.append(f"{units.share(1 - kept / channels)} of the channels gone")
    macs = report["original"]["macs"], report["pruned"]["macs"]
    if macs[0]:
        share = f"{macs[1] / macs[0]:.2f}"
        parts.append(
            f"{share} of the MACs left" if report.get("method") else f"the second has {share} times the MACs of the first"
        )
    return ", ".join(parts)


def _weights_headline(report: Figures) -> str:
    sparsity = report["sparsity"]
    parts = [_asked_of_weights(sparsity, report.get("options") or {})]
    rows = [row for row in report.get("weights") or [] if row["reason"] is None]
    chosen = sum(row["zeros"] for row in rows) / max(sum(row["weights"] for row in rows), 1)
    # Where matrices are left alone the share of the whole is another one than was asked for.
    if abs(chosen - sparsity["share"]) >= 0.005:
        parts.append(f"{units.share(chosen)} of the weights in {units.plural(len(rows), 'pruned matrix')} are zero")
    parts.append(f"{units.share(sparsity['share'])} of all weights are zero")
    return ", ".join(part for part in parts if part)


def _asked_of_weights(sparsity: Figures, options: Figures) -> str:
    if options.get("pattern"):
        return f"pattern {options['pattern']} asked"
    if error := _asked_of_errors(options):
        return error
    return f"{units.share(sparsity['share_asked'])} of the weights asked" if sparsity.get("share_asked") is not None else ""


def _asked_of_errors(options: Figures) -> str:
    if options.get("epsilon") is not None:
        return f"an error of at most {options['epsilon']:g} asked"
    if options.get("guarantee_labels") is not None:
        return f"{options['guarantee_labels']:g} of the labels to be guaranteed"
    return ""


def _ranks_headline(report: Figures) -> str:
    rows: list[Figures] = report["ranks"]
    options = report.get("options") or {}
    split = sum(row["rank"] is not None for row in rows)
    asked = (
        f"target {_target(options['target'])} asked" if options.get("target") else f"ratio {units.share(report['ratio'])} asked"
    )
    before, after = (sum(row[key] for row in rows if row["lost"] is not None) for key in ("parameters_before", "parameters"))
    gone = f"{units.share(1 - after / before)} of the eligible weights gone" if before else ""
    macs = report["original"]["macs"], report["pruned"]["macs"]
    left = f"{macs[1] / macs[0]:.2f} of the MACs left" if macs[0] else ""
    return ", ".join(part for part in (asked, f"{split} of {units.plural(len(rows), 'matrix')} became two", gone, left) if part)


def _target(target: object) -> str:
    return ", ".join(f"{k}={v}" for k, v in target.items()) if isinstance(target, Mapping) else str(target)


def rows(report: Figures) -> list[Row]:
    """Original against pruned, one row per figure that both have."""
    original, pruned = report["original"], report["pruned"]
    kinds = (("parameters", "parameters", units.count), ("MACs", "macs", units.count))
    sizes = (("file size", "bytes", units.size), ("peak tensor memory", "peak_memory_bytes", units.size))
    found = []
    for what, key, form in (*kinds, *sizes):
        a, b = original.get(key), pruned.get(key)
        if a is not None and b is not None:
            found.append(Row(what, form(a), form(b), units.change(a, b), b < a if b != a else None))
    return found + _sparsity_rows(report) + _latency_rows(report) + _accuracy_rows(report)


def _sparsity_rows(report: Figures) -> list[Row]:
    figures = report.get("sparsity")
    if not figures:
        return []
    left = [round(figures["weights"] * (1 - figures[key])) for key in ("share_before", "share")]
    packed = [figures[key] for key in ("compressed_bytes_before", "compressed_bytes")]
    kinds = (("weights that are not zero", left, units.count), ("tensors, deflated", packed, units.size))
    return [Row(what, form(a), form(b), units.change(a, b), b < a or None) for what, (a, b), form in kinds]


def weight_rows(report: Figures, most: int | None) -> tuple[list[Figures], int]:
    """The matrices with the most weights, in the order of the model, and how many are left out."""
    return _largest(list(report.get("weights") or []), "weights", most)


def rank_rows(report: Figures, most: int | None) -> tuple[list[Figures], int]:
    """The same for layers that became two, or stay whole."""
    return _largest(list(report.get("ranks") or []), "parameters_before", most)


def lost(row: Figures) -> str:
    """The share of its outputs' variance that a rank leaves out."""
    return units.UNDEFINED if row["lost"] is None else units.percent(row["lost"], 2)


def _largest(found: list[Figures], by: str, most: int | None) -> tuple[list[Figures], int]:
    if most is None or len(found) <= most:
        return found, 0
    chosen = sorted(sorted(range(len(found)), key=lambda i: -found[i][by])[:most])
    return [found[i] for i in chosen], len(found) - most


def _latency_rows(report: Figures) -> list[Row]:
    figures = report.get("latency")
    if not figures:
        return []
    speedup = figures["speedup"]
    words = f"{speedup:.2f}x faster" if speedup >= 1 else f"{1 / speedup:.2f}x slower"
    what = f"latency ({units.plural(figures['threads'], 'thread')}, batch {figures['batch']})"
    texts = [units.milliseconds(figures[key]) for key in ("original_ms", "pruned_ms")]
    return [Row(what, texts[0], texts[1], words if abs(speedup - 1) >= 0.005 else "same", speedup >= 1)]


def _accuracy_rows(report: Figures) -> list[Row]:
    accuracy = report.get("accuracy")
    if not accuracy:
        return []
    a, b = accuracy["original"], accuracy["pruned"]
    return [Row("accuracy", units.percent(a, 2), units.percent(b, 2), f"{100 * (b - a):+.2f} points", None)]


DEVIATION_HEADER = ("output", "max abs", "mean abs", "rel. L2", "cosine", "SNR", "top-1 agree")


def deviation_rows(report: Figures) -> list[tuple[str, ...]]:
    """One row per output, under DEVIATION_HEADER."""
    return [(units.printable(name), *_deviation(figures)) for name, figures in (report.get("deviation") or {}).items()]


def _deviation(d: Figures) -> tuple[str, ...]:
    plain = [units.number(d[key]) for key in ("max_abs", "mean_abs", "relative_l2")]
    cosine = units.UNDEFINED if d["cosine"] is None else f"{d['cosine']:.4f}"
    snr = "no noise" if d["snr_db"] is None and d["max_abs"] == 0 else units.UNDEFINED
    if d["snr_db"] is not None:
        snr = f"{round(d['snr_db'], 1) + 0.0:.1f} dB"
    agreement = units.UNDEFINED if d["top1_agreement"] is None else units.percent(d["top1_agreement"])
    return (*plain, cosine, snr, agreement)


def largest_groups(report: Figures, most: int | None) -> tuple[list[Figures], int]:
    """The groups with the most channels, in the order of the model, and how many are left out."""
    groups: list[Figures] = list(report.get("groups") or [])
    if most is None or len(groups) <= most:
        return groups, 0
    chosen = sorted(sorted(range(len(groups)), key=lambda i: -groups[i]["channels"])[:most])
    return [groups[i] for i in chosen], len(groups) - most


def gone(group: Figures) -> str:
    """The share of a group's channels that went."""
    share = 1 - group["kept"] / group["channels"] if group["channels"] else 0.0
    return units.percent(share, 0) if share else units.UNDEFINED


def pinned_reasons(pins: Iterable[Figures]) -> list[PinnedReason]:
    """Pins by reason, the one that holds most channels first; several nodes that give the same reason count as one."""
    found: dict[str, list[Figures]] = {}
    for pin in pins:
        found.setdefault(NODE.sub("", pin["reason"]), []).append(pin)
    merged = []
    for reason, alike in found.items():
        channels = sum(pin.get("channels", 0) for pin in alike)
        merged.append(PinnedReason(reason if len({p["reason"] for p in alike}) > 1 else alike[0]["reason"], len(alike), channels))
    return sorted(merged, key=lambda pinned: (-pinned.channels, pinned.reason))


def notes(report: Figures) -> list[tuple[str, str]]:
    """(label, sentence) for alignment, repair, proof and data, where the report tells of them."""
    labels = {
        "sparsity": "zeros", "storage": "stored", "bounds": "bound", "alignment": "aligned", "repair": "repaired",
        "proof": "proven", "data": "inputs",
    }  # fmt: skip
    told = [(label, units.sentence(report.get(key) or {})) for key, label in labels.items()]
    return [(label, text) for label, text in told if text]


def gate_value(gate: Figures) -> str:
    if gate["value"] is not None:
        return f"{gate['value']:.4g}"
    return "perfect" if gate["passed"] else "not known"


def device_line(report: Figures) -> str:
    total = (report.get("timings") or {}).get("total")
    return units.printable(str(report["device"])) + (f", {units.seconds(total)} in all" if total else "")


def deviation_remark(report: Figures) -> str:
    real = (report.get("data") or {}).get("real")
    if real is False:
        return "of the outputs, on noise: this is not accuracy"
    return "of the outputs, on held-out inputs" if report.get("method") else "of the outputs, on the same inputs"
