"""The report as JSON (schema 1): strict JSON that any parser reads, keys in the order of figures.Report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from onnxprune.report import units


def render(report: Mapping[str, Any]) -> str:
    return json.dumps(_plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null, which is what they mean here (not defined). numpy's scalars become Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, str):
        # File names may hold bytes that are no UTF-8 (lone surrogates here); the JSON must be.
        return units.readable(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return _plain(str(value))
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    raise TypeError(f"a report holds a {type(value).__name__}, which JSON cannot")
