"""The report as a person reads it in a terminal: details first, and last, where the cursor stops, what it cost and gained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onnxprune.report import essentials, units
from onnxprune.report.narrow import FittingTable

STYLES: dict[bool | None, str] = {True: "green", False: "yellow", None: ""}


def show(report: Mapping[str, Any], console: Console, *, verbose: bool = False) -> None:
    console.print(render(report, verbose=verbose))


def render(report: Mapping[str, Any], *, verbose: bool = False) -> Group:
    parts = [
        _title(report),
        *_parts(report, verbose),
        _models(report),
        _deviations(report),
        _notes(report, verbose),
        _warnings(report),
        _gates(report),
        _written(report),
    ]
    spaced: list[RenderableType] = []
    for part in parts:
        if part is not None:
            spaced += [Text(), part]
    return Group(*spaced)


def _parts(report: Mapping[str, Any], verbose: bool) -> list[RenderableType | None]:
    """What went, part by part of the model."""
    if report.get("sparsity"):
        return [_weights(report, verbose)]
    return [_ranks(report, verbose)] if report.get("ranks") else [_groups(report, verbose), _pins(report)]


def ruled_table() -> Table:
    """A table without lines but one under its header."""
    look = box.SIMPLE_HEAD
    return FittingTable(box=look, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", border_style="dim")


def plain_table(*columns: str, left: int = 1) -> Table:
    """A ruled table whose first `left` columns are words, the rest figures."""
    table = ruled_table()
    for number, name in enumerate(columns):
        if number < left:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def titled(name: str, remark: str, body: RenderableType) -> RenderableType:
    return Group(Text.assemble((name, "bold"), (f"  {remark}", "dim")), Padding(body, (0, 0, 0, 2)))


def _title(report: Mapping[str, Any]) -> RenderableType:
    method = f"  {report['method']}" if report.get("method") else ""
    return Group(Text.assemble((essentials.title(report), "bold"), method), Text(essentials.headline(report)))


def _models(report: Mapping[str, Any]) -> RenderableType:
    names = ("original", "pruned") if report.get("method") else ("first", "second")
    table = plain_table("", *names, "change")
    for row in essentials.rows(report):
        table.add_row(row.what, row.original, row.pruned, Text(row.change, STYLES[row.good]))
    return Padding(table, (0, 0, 0, 2))


def _deviations(report: Mapping[str, Any]) -> RenderableType | None:
    rows = essentials.deviation_rows(report)
    if not rows:
        return None
    table = plain_table(*essentials.DEVIATION_HEADER)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return titled("Deviation", essentials.deviation_remark(report), table)


def _groups(report: Mapping[str, Any], verbose: bool) -> RenderableType | None:
    groups, more = essentials.largest_groups(report, None if verbose else essentials.MOST_GROUPS)
    if not groups:
        return None
    table = ruled_table()
    for name in ("channels", "kept", "gone"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    heading = "group, made or read by" if verbose else "group"
    table.add_column(heading, overflow="fold" if verbose else "ellipsis", no_wrap=not verbose, min_width=1)
    table.add_column("layers", justify="right", no_wrap=True)
    for group in groups:
        cell = Text(units.printable(group["name"]))
        if verbose:
            cell.append(f"\n{units.shortened(group['layers'], 100)}", "dim")
        table.add_row(
            f"{group['channels']:,}", f"{group['kept']:,}", essentials.gone(group), group["kind"], cell, str(len(group["layers"]))
        )
    body = Group(table, Text(f"the {len(groups)} largest; --verbose lists {more} more", "dim")) if more else table
    return titled("Groups", f"{units.plural(len(groups) + more, 'set')} of channels that live and die together", body)


def _weights(report: Mapping[str, Any], verbose: bool) -> RenderableType | None:
    rows, more = essentials.weight_rows(report, None if verbose else essentials.MOST_GROUPS)
    table = ruled_table()
    for name in ("weights", "zero", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("matrix", overflow="fold")
    for row in rows:
        cell = Text(units.printable(row["name"]))
        if row["reason"]:
            cell.append(f"  left alone: {units.printable(row['reason'])}", "dim")
        share = units.percent(row["zeros"] / row["weights"]) if row["weights"] else units.UNDEFINED
        table.add_row(f"{row['weights']:,}", f"{row['zeros']:,}", share, cell)
    body = Group(table, Text(f"the {len(rows)} largest; --verbose lists {more} more", "dim")) if more else table
    return titled("Weights", f"{units.plural(len(rows) + more, 'matrix')} of layers", body)


def _ranks(report: Mapping[str, Any], verbose: bool) -> RenderableType | None:
    rows, more = essentials.rank_rows(report, None if verbose else essentials.MOST_GROUPS)
    table = ruled_table()
    for name in ("weights", "rank", "weights now", "variance lost"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("matrix", overflow="fold")
    for row in rows:
        cell = Text(units.printable(row["name"]))
        if row["reason"]:
            cell.append(f"  stays whole: {units.printable(row['reason'])}", "dim")
        rank, lost = (units.UNDEFINED, units.UNDEFINED) if row["rank"] is None else (f"{row['rank']:,}", essentials.lost(row))
        table.add_row(f"{row['parameters_before']:,}", rank, f"{row['parameters']:,}", lost, cell)
    body = Group(table, Text(f"the {len(rows)} largest; --verbose lists {more} more", "dim")) if more else table
    return titled("Ranks", f"{units.plural(len(rows) + more, 'matrix')} of layers", body)


def _pins(report: Mapping[str, Any]) -> RenderableType | None:
    reasons = essentials.pinned_reasons(report.get("pinned") or [])
    return titled("Pinned", "channels that may not go, and why", pin_table(reasons)) if reasons else None


def pin_table(reasons: list[essentials.PinnedReason]) -> Table:
    table = plain_table("reason", "tensors", "channels")
    for pinned in reasons:
        channels = f"{pinned.channels:,}" if pinned.channels else ""
        table.add_row(Text(units.printable(pinned.reason)), f"{pinned.tensors:,}", channels)
    return table


def _lines(entries: list[tuple[str, str, str]]) -> Table:
    """(label, its style, sentence) per line; sentences wrap under themselves."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, style, sentence in entries:
        grid.add_row(Text(label, style), Text(sentence))
    return grid


def _notes(report: Mapping[str, Any], verbose: bool) -> RenderableType | None:
    entries = [(label, "dim", sentence) for label, sentence in essentials.notes(report)]
    if report.get("device"):
        entries.append(("ran on", "dim", essentials.device_line(report)))
    if verbose and report.get("timings"):
        spent = ", ".join(f"{units.printable(k)} {units.seconds(v)}" for k, v in report["timings"].items())
        entries.append(("time", "dim", spent))
    return _lines(entries) if entries else None


def _warnings(report: Mapping[str, Any]) -> RenderableType | None:
    texts = [units.printable(str(text)) for text in report.get("warnings") or []]
    return _lines([("warning", "yellow", text) for text in texts]) if texts else None


def _gates(report: Mapping[str, Any]) -> RenderableType | None:
    gates = report.get("gates") or []
    if not gates:
        return None
    entries = []
    for gate in gates:
        label, style = ("passed", "green") if gate["passed"] else ("FAILED", "bold red")
        entries.append((label, style, f"fail if {units.printable(gate['expression'])}: it is {essentials.gate_value(gate)}"))
    return _lines(entries)


def _written(report: Mapping[str, Any]) -> RenderableType | None:
    if not report.get("method"):
        return None
    path = report["pruned"].get("path")
    return Text.assemble("written to ", (units.printable(str(path)), "bold")) if path else Text("nothing was written", "dim")
