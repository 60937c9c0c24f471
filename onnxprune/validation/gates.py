"""Gates such as 'top1_agreement<0.95': an expression over the figures of the report that must not be true."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import UnknownNameError, UsageError
from onnxprune.figures import Accuracy, Deviation, Gate, LatencyFigures, ModelFigures

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"
EXPRESSION = re.compile(rf"\s*(?P<figure>.+?)\s*(?P<operator><=|>=|==|!=|<|>)\s*(?P<limit>{NUMBER})\s*", re.IGNORECASE)

# Figure of the gates -> (path of the pruned model's figure, path of the original's).
RATIOS = {
    "macs_ratio": ("pruned.macs", "original.macs"),
    "parameters_ratio": ("pruned.parameters", "original.parameters"),
    "bytes_ratio": ("pruned.bytes", "original.bytes"),
    "peak_memory_ratio": ("pruned.peak_memory_bytes", "original.peak_memory_bytes"),
    "latency_ratio": ("latency.pruned_ms", "latency.original_ms"),
}
DROPS = ("accuracy_drop", "accuracy.drop")
DEVIATIONS = tuple(Deviation.__annotations__)
HIGHER_IS_BETTER = {"cosine", "snr_db", "top1_agreement"}
# Parts of the report that not every kind of method fills.
OWN_PARTS = frozenset({"alignment", "ranks", "sparsity", "storage", "weights"})
# Parts whose keys depend on the run: names below them can only be looked up when it is there.
OPEN_PARTS = tuple(
    f"{part}." for part in ("groups", "timings", "repair", "proof", "data", "options", "deviation", "bounds", *OWN_PARTS)
)


def _known() -> tuple[str, ...]:
    figures = [name for name in ModelFigures.__annotations__ if name not in ("path", "sha256")]
    parts = {"original": figures, "pruned": figures, "accuracy": Accuracy.__annotations__}
    parts["latency"] = LatencyFigures.__annotations__
    paths = [f"{part}.{name}" for part, names in parts.items() for name in names]
    return (*RATIOS, *DROPS, *DEVIATIONS, "ratio", "seed", *paths)


KNOWN = _known()


@dataclass(frozen=True)
class GateExpression:
    """figure operator limit; the gate FAILS when that is true."""

    text: str
    figure: str
    operator: str
    limit: float


def parse(expression: str) -> GateExpression:
    """Read one expression; what is wrong with it is said here, before any work is done."""
    match = EXPRESSION.fullmatch(expression)
    if match is None:
        raise UsageError(f"cannot read the gate {expression!r}", "write it like 'top1_agreement<0.95' (with < <= > >= == or !=)")
    figure = match["figure"]
    limit = float(match["limit"])
    if not math.isfinite(limit):
        raise UsageError(f"the limit of the gate {expression!r} is not a finite number")
    gate = GateExpression(expression.strip(), figure, match["operator"], limit)
    if not _possible(figure):
        raise UnknownNameError("figure", figure, KNOWN)
    return gate


def _possible(figure: str) -> bool:
    """Whether a report may have this figure: a known name, the end of just one, '<output>.<figure>', or under an open part."""
    output, _, leaf = figure.rpartition(".")
    return figure in KNOWN or _ending(figure) is not None or bool(output and leaf in DEVIATIONS) or figure.startswith(OPEN_PARTS)


def _ending(figure: str) -> str | None:
    """The known path that alone ends in this bare name: 'speedup' is 'latency.speedup'; 'macs' could be either model's."""
    found = [name for name in KNOWN if name.endswith("." + figure)]
    return found[0] if len(found) == 1 else None


def check_outputs(gate: GateExpression, outputs: Iterable[str]) -> None:
    """Once the model is read: an expression on the deviation of an output must name one of `outputs`."""
    output, _, leaf = gate.figure.removeprefix("deviation.").rpartition(".")
    names = list(outputs)
    if gate.figure not in KNOWN and leaf in DEVIATIONS and output not in names:
        raise UnknownNameError("output", output, names)


def check_measured(gate: GateExpression, *, labels: bool, latency: bool, parts: Collection[str] = ()) -> None:
    """An expression on what will not be measured would fail after all the work: refuse it before.

    parts    those of OWN_PARTS that will be there
    """
    figure = _ending(gate.figure) or gate.figure
    part = figure.split(".")[0]
    if part in OWN_PARTS and part not in parts:
        raise UsageError(f"the gate {gate.text!r} is about {part!r}, of which this method reports nothing", "see its --json")
    if "accuracy" in part and not labels:
        raise UsageError(f"the gate {gate.text!r} needs labels", "give --labels, with the samples they belong to")
    if not latency and (figure.startswith("latency") or figure.endswith(".latency_ms")):
        raise UsageError(f"the gate {gate.text!r} needs latency", "leave --no-latency out")


def check_there(gates: Iterable[GateExpression], report: Mapping[str, Any]) -> None:
    """Raises UsageError for figures that the report has not got. To be asked before anything is written."""
    for gate in gates:
        look_up(gate.figure, report)


def evaluate(gates: Iterable[GateExpression], report: Mapping[str, Any]) -> list[Gate]:
    """Judge the report. A figure that it has not got a number for (accuracy without labels) fails its gate with value None."""
    return [_evaluate(gate, report) for gate in gates]


def _evaluate(gate: GateExpression, report: Mapping[str, Any]) -> Gate:
    value = look_up(gate.figure, report)
    if value is None or math.isnan(value):
        return Gate(expression=gate.text, value=None, passed=False)
    failed = OPERATORS[gate.operator](value, gate.limit)
    return Gate(expression=gate.text, value=value if math.isfinite(value) else None, passed=not failed)


def look_up(figure: str, report: Mapping[str, Any]) -> float | None:
    """The number behind a name: derived figures first, then deviations (the worst of all outputs), then the rest."""
    if figure in RATIOS:
        pruned, original = (_number(_walk(path, report)) for path in RATIOS[figure])
        return pruned / original if pruned is not None and original else None
    if figure in DROPS:
        accuracy = report.get("accuracy")
        return accuracy["original"] - accuracy["pruned"] if accuracy else None
    deviations: Mapping[str, Mapping[str, Any]] = report.get("deviation") or {}
    if figure in DEVIATIONS:
        return _worst(figure, deviations)
    output, _, leaf = figure.removeprefix("deviation.").rpartition(".")
    if leaf in DEVIATIONS and output in deviations:
        return _deviation(leaf, deviations[output])
    return _number(_walk(_ending(figure) or figure, report))


def _worst(figure: str, deviations: Mapping[str, Mapping[str, Any]]) -> float | None:
    # Not every output has classes; those without have no say in the agreement. Any other gap is no evidence of being good.
    relevant = [d for d in deviations.values() if figure != "top1_agreement" or d[figure] is not None]
    values = [value for d in relevant if (value := _deviation(figure, d)) is not None and not math.isnan(value)]
    if not values or len(values) < len(relevant):
        return None
    return min(values) if figure in HIGHER_IS_BETTER else max(values)


def _deviation(figure: str, deviation: Mapping[str, Any]) -> float | None:
    """One figure of one output, where equal outputs read as perfect: their cosine may be, and their SNR is, undefined."""
    value = deviation[figure]
    if value is None and deviation["max_abs"] == 0:
        return {"cosine": 1.0, "snr_db": math.inf}.get(figure)
    return _number(value)


def _walk(path: str, report: Mapping[str, Any]) -> Any:
    """Follow a dotted path. Keys and group names may hold dots themselves, so the longest key that fits is taken."""
    here: Any = report
    rest = path
    while rest:
        if here is None:
            return None
        if isinstance(here, list):
            # Of groups and weights, or of refitted layers.
            here = {str(entry.get("name", entry.get("layer"))): entry for entry in here if isinstance(entry, dict)}
        keys = [key for key in here if rest == key or rest.startswith(f"{key}.")] if isinstance(here, Mapping) else []
        if not keys:
            raise UnknownNameError("figure", path, KNOWN)
        key = max(keys, key=len)
        here, rest = here[key], rest[len(key) + 1 :]
    if isinstance(here, (str, list, Mapping)):
        raise UsageError(f"{path!r} of the report is not a number", f"there are: {', '.join(KNOWN)}")
    return here


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
