"""The report in GitHub's Markdown: for a pull request, a CI job's summary, a model card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onnxprune.report import essentials, units

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$!])")
# GitHub makes links of addresses and calls persons by their name whatever is escaped; this keeps the two apart invisibly.
GAP = "\u200b"


def escaped(name: str) -> str:
    """A name as it is: no pipe ends a cell, no bracket makes a link, no @ calls for a person."""
    return SPECIAL.sub(r"\\\1", units.printable(name)).replace("://", f":{GAP}//").replace("@", f"@{GAP}")


def render(report: Mapping[str, Any]) -> str:
    blocks = [
        _title(report),
        _gates(report),
        _models(report),
        _deviations(report),
        _notes(report),
        *_parts(report),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _parts(report: Mapping[str, Any]) -> list[str]:
    if report.get("sparsity"):
        return [_weights(report)]
    return [_ranks(report)] if report.get("ranks") else [_groups(report), _pins(report)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Cells are taken as they are; all columns but the first `words` hold figures."""
    rule = [":--" if number < words else "--:" for number in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def _title(report: Mapping[str, Any]) -> str:
    method = f" ({escaped(report['method'])})" if report.get("method") else ""
    return f"### onnxprune: {escaped(essentials.title(report))}{method}\n\n{escaped(essentials.headline(report))}"


def _gates(report: Mapping[str, Any]) -> str:
    gates = report.get("gates") or []
    rows = [
        ("passed" if gate["passed"] else "**FAILED**", escaped(gate["expression"]), essentials.gate_value(gate)) for gate in gates
    ]
    return table(("gate", "fail if", "it is"), rows, words=2) if rows else ""


def _models(report: Mapping[str, Any]) -> str:
    names = ("original", "pruned") if report.get("method") else ("first", "second")
    return table(("", *names, "change"), [(row.what, row.original, row.pruned, row.change) for row in essentials.rows(report)])


def _deviations(report: Mapping[str, Any]) -> str:
    rows = [(escaped(name), *cells) for name, *cells in essentials.deviation_rows(report)]
    return f"Deviation {essentials.deviation_remark(report)}:\n\n{table(essentials.DEVIATION_HEADER, rows)}" if rows else ""


def _notes(report: Mapping[str, Any]) -> str:
    lines = [f"- {label}: {escaped(text)}" for label, text in essentials.notes(report)]
    lines += [f"- **warning**: {escaped(str(text))}" for text in report.get("warnings") or []]
    path = report["pruned"].get("path")
    if report.get("method"):
        lines.append(f"- written to {escaped(str(path))}" if path else "- nothing was written")
    return "\n".join(lines)


def _groups(report: Mapping[str, Any]) -> str:
    groups, more = essentials.largest_groups(report, essentials.MOST_GROUPS)
    rows = [
        (escaped(g["name"]), g["kind"], f"{g['channels']:,}", f"{g['kept']:,}", essentials.gone(g), str(len(g["layers"])))
        for g in groups
    ]
    if not rows:
        return ""
    body = table(("group", "kind", "channels", "kept", "gone", "layers"), rows, words=2) + (
        f"\n\nand {more} smaller groups" if more else ""
    )
    return _folded(f"{units.plural(len(groups) + more, 'group')} of channels", body)


def _weights(report: Mapping[str, Any]) -> str:
    rows, more = essentials.weight_rows(report, essentials.MOST_GROUPS)
    cells = [(escaped(r["name"]), f"{r['weights']:,}", f"{r['zeros']:,}", escaped(r["reason"] or "")) for r in rows]
    rest = f"\n\nand {more} smaller ones" if more else ""
    return _folded("Zeros by matrix", table(("matrix", "weights", "zero", "left alone"), cells) + rest)


def _ranks(report: Mapping[str, Any]) -> str:
    rows, more = essentials.rank_rows(report, essentials.MOST_GROUPS)
    cells = []
    for r in rows:
        rank, lost = (units.UNDEFINED, units.UNDEFINED) if r["rank"] is None else (f"{r['rank']:,}", essentials.lost(r))
        cells.append(
            (escaped(r["name"]), f"{r['parameters_before']:,}", rank, f"{r['parameters']:,}", lost, escaped(r["reason"] or ""))
        )
    rest = f"\n\nand {more} smaller ones" if more else ""
    header = ("matrix", "weights", "rank", "weights now", "variance lost", "stays whole")
    return _folded("Ranks by matrix", table(header, cells) + rest)


def _pins(report: Mapping[str, Any]) -> str:
    reasons = essentials.pinned_reasons(report.get("pinned") or [])
    rows = [(escaped(p.reason), f"{p.tensors:,}", f"{p.channels:,}") for p in reasons]
    return _folded("Pinned channels, by reason", table(("reason", "tensors", "channels"), rows)) if rows else ""
