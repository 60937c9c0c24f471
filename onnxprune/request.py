"""What is asked for: the options of one pruning run, checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from typing import Any

from onnxprune.budget.allocate import BUDGETS
from onnxprune.errors import UnknownNameError, UsageError
from onnxprune.network import KINDS, Kind
from onnxprune.validation.gates import GateExpression

# Of these weight methods alone know what to do with.
WEIGHT_BUDGETS = ("row", "bound")
REPAIRS = ("auto", "least-squares", "mean", "none")
# Generators of random numbers take no less and no more.
MOST_SEED = 2**63 - 1


def as_kinds(given: str | Sequence[str]) -> tuple[Kind, ...]:
    """'head,neuron' or ['head', 'neuron'] -> the kinds of channel asked for, each once. Raises UnknownNameError."""
    names = [name.strip() for part in as_names("kinds", given) for name in part.split(",")]
    for name in names:
        if name and name not in KINDS:
            raise UnknownNameError("kind of channel", name, KINDS)
    return tuple(kind for kind in KINDS if kind in names)


def as_pattern(given: str | None) -> tuple[int, int] | None:
    """'2:4' -> (2, 4): of every 4 neighbouring weights 2 stay. Raises UsageError."""
    if given is None:
        return None
    n, colon, m = given.partition(":") if isinstance(given, str) else ("", "", "")
    if not colon or not n.isdecimal() or not m.isdecimal() or not 0 < int(n) < int(m):
        raise UsageError(f"a pattern of {given!r}", "write N:M with 0 < N < M, such as 2:4: of every 4 neighbours 2 stay")
    return int(n), int(m)


def as_whole(name: str, given: Any, least: int, most: float = inf) -> int:
    """A whole number in its range, NumPy's included. Raises UsageError."""
    whole = int(given) if isinstance(given, Integral) and not isinstance(given, bool) else None
    if whole is None or not least <= whole <= most:
        end = f"{least} or more" if most == inf else f"{least} to {most}"
        raise UsageError(f"{name}={given!r}", f"give a whole number, {end}")
    return whole


def as_names(name: str, given: str | Iterable[str]) -> tuple[str, ...]:
    """One name, or several. Raises UsageError."""
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(part, str) for part in names):
        raise UsageError(f"{name}={given!r}", "give a string, or a list of them")
    return names


def as_options(given: Mapping[str, Any] | None, beta: float | None) -> dict[str, Any]:
    """The options of the method, among which beta has an argument of its own. Raises UsageError."""
    if given is not None and not (isinstance(given, Mapping) and all(isinstance(name, str) for name in given)):
        raise UsageError(f"options={given!r}", "give a dictionary: name of the option -> value")
    return dict(given or {}) | ({} if beta is None else {"beta": beta})


def prefers_width(kinds: Sequence[Kind]) -> bool:
    """Of a split into heads either whole heads go or the same width in each: the width where that alone was asked for."""
    return "head-width" in kinds and "head" not in kinds


def in_words(name: str, value: Any) -> str:
    """An option as a person would say it."""
    said = name.replace("_", " ")
    if isinstance(value, bool):
        return said if value else {"sequential": "parallel"}.get(name, f"no {said}")
    shown = value if not isinstance(value, tuple) else (":" if name == "pattern" else ", ").join(map(str, value))
    return f"{said} ({shown})"


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
    keep_ends: bool = False
    pattern: tuple[int, int] | None = None
    epsilon: float | None = None
    guarantee_labels: float | None = None
    sparse_storage: bool = False
    samples: int = 1024
    held_out: float = 0.2

    def __post_init__(self) -> None:
        self._check_types()
        amounts = (self.ratio, self.target, self.pattern, self.epsilon, self.guarantee_labels)
        if sum(amount is not None for amount in amounts) != 1:
            raise UsageError(
                "say how much should go, in one way", "give a ratio (share removed) or a target such as 'macs=0.6' (share kept)"
            )
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise UsageError(f"a ratio of {self.ratio}", "it is the share of channels to remove, from 0 to less than 1")
        if self.epsilon is not None and not 0 < self.epsilon < inf:
            raise UsageError(f"an epsilon of {self.epsilon:g}", "it is an error that is allowed: give a number above 0")
        if self.guarantee_labels is not None and not 0 < self.guarantee_labels <= 1:
            raise UsageError(f"{self.guarantee_labels:g} of the labels guaranteed", "give a share, such as 0.95")
        if self.error_first and self.repair not in ("auto", "none"):
            raise UsageError(
                "a bound says nothing of refitted weights", "use --repair none, which an error-first run does by itself"
            )
        if self.error_first and self.budget != "auto":
            raise UsageError(
                "an error leaves nothing for a budget to spread", "leave --budget out, or ask for a share with --ratio"
            )
        budgets = (*BUDGETS, *WEIGHT_BUDGETS)
        if self.budget not in budgets:
            raise UnknownNameError("budget", self.budget, budgets)
        if self.repair not in REPAIRS:
            raise UnknownNameError("repair", self.repair, REPAIRS)

    def check_together(self) -> None:
        """Raises UsageError where one option leaves another without effect: silence would be a promise."""
        none = self.repair_kind == "none"
        without = [
            ("sequential", None, none, "where no layer is refitted", "leave it out, or ask for another --repair"),
            ("reweigh", True, not none, "where layers are refitted", "leave it out, or add --repair none"),
            ("align", "auto", self.error_first, "where an error says how many channels stay", "leave it out"),
        ]
        for name, default, without_effect, where, remedy in without:
            if without_effect and getattr(self, name) != default:
                raise UsageError(f"{in_words(name, getattr(self, name))} has no meaning {where}", remedy)
        if self.error_first and not self.reweigh:
            raise UsageError("a bound holds for reweighed layers alone", "leave --no-reweigh out, or give --ratio")
        if self.pattern is not None and self.budget != "auto":
            raise UsageError("a pattern leaves nothing for a budget to spread", "leave --budget out, or give --ratio")

    def _check_types(self) -> None:
        for name in ("method", "budget", "repair", "target"):
            word = getattr(self, name)
            if not isinstance(word, str) and (word is not None or name != "target"):
                raise UsageError(f"{name}={word!r}", "give a string")
        for name in ("ratio", "epsilon", "guarantee_labels", "held_out"):
            number = getattr(self, name)
            if (number is not None or name == "held_out") and (not isinstance(number, Real) or isinstance(number, bool)):
                raise UsageError(f"{name}={number!r}", "give a number")
        if not 0 <= self.held_out < 1:
            raise UsageError(f"a held-out share of {self.held_out}", "use a number from 0 to less than 1")

    @property
    def error_first(self) -> bool:
        """Whether an error is given and how much goes is an outcome."""
        return self.epsilon is not None or self.guarantee_labels is not None

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
    def share_removed(self) -> float:
        """Of weights: the share that goes, zeros that were there before included.

        Raises UsageError for targets that zeros do not help.
        """
        if self.pattern is not None:
            return 1 - self.pattern[0] / self.pattern[1]
        kind, share = self.goal
        if kind not in ("channels", "params"):
            remedy = "give --ratio or --target params=0.3, or use svd or a -channel method: they make layers smaller"
            raise UsageError(f"zeros bring no less {kind}", remedy)
        return 1 - share

    @property
    def repair_kind(self) -> str:
        if self.repair == "auto":
            return "none" if self.error_first else "least-squares"
        return self.repair
