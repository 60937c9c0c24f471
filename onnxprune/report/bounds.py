"""What is known beforehand of pruning a model, as a plain dict for JSON and as text."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from onnxprune.figures import SCHEMA
from onnxprune.report import units
from onnxprune.report.text import plain_table, titled
from onnxprune.theory.guarantee import Bounds, LayerBounds, TheoremSays


def describe(found: Bounds, path: str | None, epsilon: float | None, delta: float) -> dict[str, Any]:
    """The JSON form of `onnxprune bounds`. Norms are bounds from above; `norm_measured` is one from below."""
    return {
        "schema": SCHEMA,
        "path": path,
        "epsilon": epsilon,
        "delta": delta,
        "radius": found.radius,
        "ratio": found.ratio,
        "layers": [_layer(row) for row in found.layers],
        "outputs": [
            {
                "name": name,
                "norm": _number(found.size.get(name)),
                "error": _number(found.error.get(name)),
                "reason": found.reasons.get(name),
            }
            for name in (*found.size, *found.reasons)
        ],
        "theorems": [_theorem(says) for says in found.theorems],
    }


def _number(value: float | None) -> float | None:
    """JSON knows no infinity."""
    return value if value is not None and isfinite(value) else None


def _layer(row: LayerBounds) -> dict[str, Any]:
    m = row.moments
    return {
        "name": row.layer.name,
        "op": row.layer.op,
        "weight_shape": list(row.layer.weight_shape),
        "norm": row.norms.full,
        "norm_measured": row.measured,
        "mean": m.mean,
        "variance": m.variance,
        "k": m.k,
        "k1": m.k1,
        "k2": m.k2,
        "kurtosis": m.kurtosis,
        "distance_from_uniform": m.uniform,
        "distance_from_gaussian": m.gaussian,
        "looks_uniform": m.looks_uniform,
        "centred": m.centred,
        "histogram": list(m.histogram),
        "weights": m.weights,
        "pruned": row.goes,
        "norm_of_pruned": row.norms.pruned,
        "norm_of_difference": row.norms.gone,
    }


def _theorem(says: TheoremSays) -> dict[str, Any]:
    inside = says.promise is not None and not says.outside
    return {
        "name": says.name,
        "prunes": says.about,
        "alpha": says.promise.alpha if says.promise is not None else None,
        "error": says.promise.error if inside and says.promise is not None else None,
        "probability": says.promise.confidence if inside and says.promise is not None else None,
        "outside": list(says.outside),
        "counts": dict(says.counts) if inside else {},
        "width_needed": _number(says.width),
    }


def show(found: Mapping[str, Any], console: Console, *, verbose: bool = False) -> None:
    """Print what `describe` gives."""
    head = Text(units.printable(found["path"] or "model"), "bold")
    for part in (head, _layers(found), _network(found), _theorems(found, verbose)):
        console.print(Text(), part, sep="\n")


def _layers(found: Mapping[str, Any]) -> RenderableType:
    table = plain_table("layer", "weights", "norm", "mean", "m E w\u00b2", "m\u00b2 E w\u2074", "kurtosis", "go", "norm of these")
    for row in found["layers"]:
        norm = f"{row['norm']:.3g}"
        if row["norm"] > 1.01 * row["norm_measured"]:
            norm = f"{row['norm_measured']:.3g} .. {norm}"
        table.add_row(
            Text(units.printable(row["name"])), "x".join(map(str, row["weight_shape"])), norm, f"{row['mean']:.2g}",
            f"{row['k1']:.3g}", f"{row['k2']:.3g}", f"{row['kurtosis']:.2f}", f"{row['pruned']:,}" if row["pruned"] else "-",
            f"{row['norm_of_difference']:.3g}" if row["pruned"] else "-",
        )  # fmt: skip
    remark = f"the smallest {units.percent(found['ratio'])} of the weights of each inner layer go; m = max(inputs, outputs)"
    return titled("Layers", remark, table)


def _network(found: Mapping[str, Any]) -> RenderableType:
    lines = []
    for output in found["outputs"]:
        name = units.printable(output["name"])
        if output["reason"] is not None:
            lines.append(Text(f"{name}: no bound, {units.printable(output['reason'])}"))
        elif output["error"] is None or output["norm"] is None:
            lines.append(Text(f"{name}: the bound is too large for a number"))
        else:
            lines.append(Text(f"{name}: off by at most {output['error']:.4g}, of a norm of at most {output['norm']:.4g}"))
    return titled("Always", f"for every input of norm at most {found['radius']:g}", Group(*lines))


def _theorems(found: Mapping[str, Any], verbose: bool) -> RenderableType:
    parts: list[RenderableType] = []
    for says in found["theorems"]:
        name = f"{says['name']} ({says['prunes']})"
        if says["outside"]:
            shown = says["outside"] if verbose else says["outside"][:3]
            more = len(says["outside"]) - len(shown)
            reasons = "; ".join(map(units.printable, shown)) + (f"; and {more} more (--verbose)" if more else "")
            parts.append(Text(f"{name}: outside the theorem's regime: {reasons}"))
            if says["width_needed"] is not None and verbose:
                parts.append(Text(f"  it asks for a hidden width of {says['width_needed']:.2g}"))
            continue
        counts = ", ".join(f"{count:,} of {units.printable(layer)}" for layer, count in says["counts"].items())
        parts.append(
            Text(
                f"{name}: off by at most {says['error']:.4g} with probability {says['probability']:.3g} if {counts} go "
                f"(alpha = {says['alpha']:.4g})"
            )
        )
    return titled("Theorems", "Qian, Klabjan (ICML 2021), for every input of norm at most 1", Group(*parts))
