"""Figures and names as a person reads them: 855.8 k, 2.1 MB, 812 us, -39.8 %."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

UNDEFINED = "-"


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    for factor, unit in steps:
        # Rounding must not carry over into four digits of the smaller unit: 999.96 k is 1.0 M.
        if abs(value) >= 0.99995 * factor:
            return f"{value / factor:.1f} {unit}" if value / factor >= 99.995 else f"{value / factor:.2f} {unit}"
    return f"{value:.0f}"


def count(value: float) -> str:
    return _scaled(value, ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")))


def size(value: float) -> str:
    text = _scaled(value, ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")))
    return text if text.endswith("B") else f"{text} B"


def milliseconds(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.2f} ms" if value >= 1 else f"{value * 1000:.0f} us"


def seconds(value: float) -> str:
    if value >= 90:
        return f"{int(value // 60)} min {value % 60:.0f} s"
    return f"{value:.1f} s"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def share(value: float) -> str:
    """Two decimals, more where they would make all of nearly all, or nothing of hardly anything."""
    texts = [f"{value:.{digits}f}" for digits in range(2, 7)]
    return next((text for text in texts if value in (0, 1) or 0 < float(text) < 1), texts[0])


def change(original: float, pruned: float) -> str:
    """By how much it changed, in percent with its sign."""
    if not original:
        return UNDEFINED
    if pruned >= 10 * original:
        return f"{pruned / original:.0f} times"
    return f"{100 * (pruned / original - 1):+.1f} %" if pruned != original else "same"


def number(value: float | None) -> str:
    """Three digits; a dash where it is not defined."""
    if value is None or math.isnan(value):
        return UNDEFINED
    return f"{value:.3g}" if value else "0"


def plural(amount: int, noun: str) -> str:
    many = f"{noun[:-2]}ices" if noun.endswith("matrix") else f"{noun}s"
    return f"{amount:,} {noun if amount == 1 else many}"


def printable(name: str) -> str:
    """Names come out of files of strangers: nothing in them may move a cursor or break a line."""
    name = readable(name)
    return name if name.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in name)


def readable(name: str) -> str:
    """File names as UTF-8, which they mostly are, where Python could not read them so (LC_ALL=C); other bytes as \\xff."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character out of a model
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def shortened(names: Iterable[str], most: int) -> str:
    """The first few names, and how many more there are."""
    listed = [printable(name) for name in names]
    more = f" +{len(listed) - most}" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def sentence(facts: Mapping[str, Any]) -> str:
    """An open part of the report in one line: its `summary` where it has one, else its plain facts."""
    if isinstance(facts.get("summary"), str):
        return printable(facts["summary"])
    parts = []
    for key, value in facts.items():
        words = key.replace("_", " ")
        if isinstance(value, bool):
            parts.append(words if value else f"not {words}")
        elif isinstance(value, (int, float)):
            parts.append(f"{words} {number(value) if isinstance(value, float) else f'{value:,}'}")
        elif isinstance(value, str) and value:
            parts.append(f"{words} {printable(value)}")
    return ", ".join(parts)
