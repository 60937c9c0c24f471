"""The tables of the README that are made from the code; `python -m onnxprune.report.tables README.md` rewrites them."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxprune.graph.rules  # noqa: F401  (registers every operator)
from onnxprune.contract import TARGETS
from onnxprune.graph.labels import OPERATORS
from onnxprune.graph.unfuse import WRITERS
from onnxprune.methods import METHODS


def methods() -> str:
    """One row per method, by what goes: that, where it is from, its options."""
    lines = ["| method | what goes | source | options |", "|---|---|---|---|"]
    order = list(TARGETS)
    for name, found in sorted(METHODS.items(), key=lambda item: (order.index(item[1].target), item[0])):
        if not found.__module__.startswith("onnxprune."):
            continue
        options = ", ".join(f"`{key}`" for key in found.options) or "-"
        lines.append(f"| `{name}` | {found.target} | {found.paper} | {options} |")
    return "\n".join(lines)


def operators() -> str:
    """Operators by what is said of them, those of other domains by their full name; no remark: every channel goes through."""
    by_note: dict[str, list[str]] = {}
    for operator in OPERATORS.values():
        by_note.setdefault(operator.note or "channels go through", []).append(_full(operator.domain, operator.name))
    by_note["written as the nodes that they were fused from"] = [_full(domain, name) for domain, name in WRITERS if domain]
    lines = ["| operators | what happens to the channels |", "|---|---|"]
    for note, names in sorted(by_note.items(), key=lambda item: sorted(item[1])[0]):
        lines.append(f"| {', '.join(sorted(set(names)))} | {note} |")
    return "\n".join(lines)


def _full(domain: str, name: str) -> str:
    return f"{domain}.{name}" if domain else name


TABLES = {"methods": methods, "operators": operators}


def rewrite(text: str) -> str:
    """The text with every part between `<!-- NAME -->` and `<!-- end NAME -->` made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        text = before + begin + "\n" + make() + "\n" + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(rewrite(readme.read_text(encoding="utf-8")), encoding="utf-8")
