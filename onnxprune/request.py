"""What is asked for: the options of one pruning run, checked before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.budget.allocate import BUDGETS
from onnxprune.errors import UnknownNameError, UsageError
from onnxprune.network import KINDS, Kind
from onnxprune.validation.gates import GateExpression

REPAIRS = ("auto", "least-squares", "mean", "none")


def as_kinds(given: str | Sequence[str]) -> tuple[Kind, ...]:
    """'head,neuron' or ['head', 'neuron'] -> the kinds of channel asked for, each once. Raises UnknownNameError."""
    names = [name.strip() for part in ([given] if isinstance(given, str) else given) for name in part.split(",")]
    for name in names:
        if name and name not in KINDS:
            raise UnknownNameError("kind of channel", name, KINDS)
    return tuple(kind for kind in KINDS if kind in names)


def prefers_width(kinds: Sequence[Kind]) -> bool:
    """Of a split into heads either whole heads go or the same width in each: the width where that alone was asked for."""
    return "head-width" in kinds and "head" not in kinds


@dataclass(frozen=True)
class Request:
    """The arguments of `pipeline.prune` that say how to prune; raises UsageError for those that make no sense."""

    method: str
    ratio: float | None
    target: str | None
    budget: str
    align: str | int
    repair: str
    reweigh: bool
    sequential: bool | None
    seed: int
    only: tuple[str, ...]
    skip: tuple[str, ...]
    threads: int
    batch: int
    options: dict[str, Any]
    gates: tuple[GateExpression, ...]
    kinds: tuple[Kind, ...] = ()
    through_norms: bool = False

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.target is None):
            raise UsageError(
                "say how much should go", "give either a ratio (share removed) or a target such as 'macs=0.6' (share kept)"
            )
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise UsageError(f"a ratio of {self.ratio}", "it is the share of channels to remove, from 0 to less than 1")
        if self.budget not in BUDGETS:
            raise UnknownNameError("budget", self.budget, BUDGETS)
        if self.repair not in REPAIRS:
            raise UnknownNameError("repair", self.repair, REPAIRS)

    @property
    def goal(self) -> tuple[str, float]:
        """What is rationed and the share of it to keep."""
        if self.target is None:
            return "channels", 1 - float(self.ratio or 0)
        kind, _, share = self.target.partition("=")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if kind not in ("macs", "params", "bytes", "latency") or not 0 < value <= 1:
            raise UsageError(
                f"a target of {self.target!r}", "write macs=0.6, params=0.6, bytes=0.6 or latency=0.6: the share to keep"
            )
        return kind, value

    @property
    def repair_kind(self) -> str:
        return "least-squares" if self.repair == "auto" else self.repair
