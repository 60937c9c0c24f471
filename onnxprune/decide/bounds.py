"""SAY: what a method's bound says of the plans that were made, and the errors that are seen on inputs nothing was fitted to.

A bound is about one layer's output when its input is the original's, and about the weights as the method leaves them: it says
nothing once they are refitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from onnxprune.calibration.observe import Progress, observe
from onnxprune.calibration.sources import Source
from onnxprune.calibration.views import tensor
from onnxprune.contract import ChannelMethod, ChannelPlan, ChannelView, LayerPlan, Statistic, WeightMethod
from onnxprune.decide.evidence import observable, tap
from onnxprune.decide.labels import Required
from onnxprune.decide.weights import Site
from onnxprune.devices import Device
from onnxprune.errors import UsageError
from onnxprune.graph.structure import Graph
from onnxprune.matrix import to_matrix
from onnxprune.network import Layer, Network
from onnxprune.validation.labels import guaranteed_share

Figures = dict[str, Any]
ADDITIVE = "additive: how far each output of the layer may move, for all inputs within the largest norm that calibration saw"
RELATIVE = (
    "relative to sum |w x| of each output, bias apart: of the calibration samples as of others, but for the probability in the "
    "method's theorem"
)


def refuse_unbounded(name: str, known: Mapping[str, Any]) -> UsageError:
    """What to say where an error is asked for of a method that has no bound."""
    able = ", ".join(sorted(n for n, cls in known.items() if has_bound(cls)))
    return UsageError(f"method {name!r} has no bound that tells how much may go for an error", f"give a ratio, or use {able}")


def has_bound(cls: type[Any]) -> bool:
    base = WeightMethod if issubclass(cls, WeightMethod) else ChannelMethod
    return issubclass(cls, WeightMethod | ChannelMethod) and cls.errors is not base.errors


@dataclass(frozen=True)
class Change:
    """A layer's matrix before and after, (groups, out, in), and its bias (groups, out)."""

    layer: Layer
    before: Tensor
    after: Tensor
    bias: Tensor


class Observed(Statistic):
    """|z^ - z|, over the rows and outputs of a layer: as it is, relative to sum |w x|, and relative to |z| with the bias."""

    rows = "grouped"

    def __init__(self, change: Change) -> None:
        self._change = change
        self._sums = np.zeros((3, 3))
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """rows (n, groups, in)."""
        c, x = self._change, rows.to(self._change.before)
        moved = torch.einsum("ngi,goi->ngo", x, c.after - c.before).double().abs()
        size = torch.einsum("ngi,goi->ngo", x.abs(), c.before.abs()).double()
        output = (torch.einsum("ngi,goi->ngo", x, c.before) + c.bias).double().abs()
        for line, scale in zip(self._sums, (torch.ones_like(size), size, output), strict=True):
            found = torch.where(moved > 0, moved / scale.clamp(min=1e-12), 0.0)
            line += [float(found.sum()), float((found**2).sum()), 0.0]
            line[2] = max(line[2], float(found.max()) if found.numel() else 0.0)
        self.count += moved.numel()

    def merge(self, other: Self) -> None:
        self._sums[:, :2] += other._sums[:, :2]
        self._sums[:, 2] = np.maximum(self._sums[:, 2], other._sums[:, 2])
        self.count += other.count

    def places(self) -> int | None:
        return 64

    def figures(self, which: int) -> Figures:
        """which: 0 - as it is, 1 - relative to sum |w x|, 2 - relative to the output."""
        total, squares, largest = self._sums[which]
        mean = float(total) / max(self.count, 1)
        return {"mean": mean, "std": float(max(squares / max(self.count, 1) - mean**2, 0.0) ** 0.5), "max": float(largest)}


def of_weights(graph: Graph, sites: Sequence[Site], plans: Mapping[str, LayerPlan], device: Device) -> dict[str, Change]:
    """What the plans change, by parameter."""
    found = {}
    for site in sites:
        plan, layer = plans[site.name], site.layer
        before = to_matrix(layer, tensor(graph, site.name, device.torch_device))
        found[site.name] = Change(
            layer, before, before * plan.keep if plan.matrix is None else plan.matrix, _bias(graph, layer, before)
        )
    return found


def of_channels(
    graph: Graph, network: Network, views: Sequence[ChannelView], plans: Mapping[str, ChannelPlan], device: Device
) -> dict[tuple[str, str], Change]:
    """What the plans change in each reader, by (group, reader); readers whose inputs cannot be looked at are left out."""
    names = {reader.layer for view in views for reader in view.readers}
    layers = {layer.name: layer for layer in observable(graph, network, names) if not layer.quantised}
    found = {}
    for view in views:
        for reader in view.readers:
            layer, plan = layers.get(reader.layer), plans.get(view.name)
            if layer is None or plan is None or layer.op == "ConvTranspose":
                continue
            before = to_matrix(layer, tensor(graph, layer.weight, device.torch_device))
            factor = torch.zeros(view.channels, device=before.device)
            factor[plan.keep] = 1.0 if plan.scale is None else plan.scale.to(before)
            spread = torch.ones(len(reader.columns), device=before.device)
            spread[reader.positions] = factor[:, None].expand(reader.positions.shape)
            per_input = spread.reshape(before.shape[0], 1, -1)
            after = before * per_input.repeat_interleave(before.shape[2] // per_input.shape[2], 2)
            found[view.name, reader.layer] = Change(layer, before, after, _bias(graph, layer, before))
    return found


def _bias(graph: Graph, layer: Layer, matrix: Tensor) -> Tensor:
    if layer.bias is None:
        return matrix.new_zeros(matrix.shape[:2])
    stored = tensor(graph, layer.bias, matrix.device.type) * layer.bias_scale
    return stored.flatten().expand(matrix.shape[0] * matrix.shape[1]).reshape(matrix.shape[:2])


def seen(
    graph: Graph, changes: Mapping[Any, Change], source: Source, *, batch: int, device: Device, seed: int, progress: Progress
) -> dict[Any, Observed]:
    """The errors of every change, each with the original's input."""
    counted = {key: Observed(change) for key, change in changes.items()}
    taps = [tap(changes[key].layer, statistic, source.count, batch) for key, statistic in counted.items()]
    observe(graph, taps, source, batch=batch, device=device, seed=seed, progress=progress)
    return counted


def figures(rows: Sequence[Figures], *, additive: bool, epsilon: float | None, asked: Required | None) -> Figures:
    """The report's `bounds`. rows, one per layer: name, implied_epsilon, draws, units, kept and the errors that were seen."""
    kind = "additive" if additive else "relative"
    worst = max((row["implied_epsilon"] for row in rows if row["implied_epsilon"] is not None), default=None)
    largest = max((row["observed"]["max"] for row in rows if row["observed"]), default=None)
    parts = [] if worst is None else [f"{kind} error of a layer at most {worst:.3g} by the method's bound"]
    parts += [] if largest is None else [f"at most {largest:.3g} was seen on held-out inputs"]
    if asked is not None:
        share, count = guaranteed_share(asked.margins, asked.epsilon), len(asked.margins)
        labels = f"{100 * share:.1f} % of the labels of {count:,} calibration samples"
        parts.append(f"and while the bound holds {labels} cannot change")
    return {
        "summary": ", ".join(parts), "kind": kind, "about": ADDITIVE if additive else RELATIVE, "epsilon": epsilon,
        "required": None if asked is None else asked.figures(), "layers": list(rows),
    }  # fmt: skip


def joined(own: Figures, found: Figures) -> Figures:
    """What the method itself tells of its bounds, and what is told of everybody's; layers by name."""
    rows = {row["name"]: row for row in own.get("layers", [])}
    layers = [rows.get(row["name"], {}) | row for row in found["layers"]]
    summary = "; ".join(text for text in (own.get("summary"), found["summary"]) if text)
    return own | found | {"layers": layers, "summary": summary}
