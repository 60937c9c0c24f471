"""DECIDE: evidence about every group -> a score and a loss for each channel -> how many stay -> which ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from onnxprune.budget.alignment import Choices, choices, vector_block
from onnxprune.budget.allocate import Candidate, Counts
from onnxprune.calibration.observe import Progress, Rows, Tap, observe
from onnxprune.calibration.sources import Source
from onnxprune.calibration.views import Statistics, channel_views
from onnxprune.compensation.least_squares import errors_by_count
from onnxprune.contract import Activation, ChannelPlan, ChannelView, Method, Moments, Statistic, check_scores
from onnxprune.devices import Device
from onnxprune.errors import NothingToPruneError, UnknownNameError
from onnxprune.graph.structure import Graph
from onnxprune.matrix import channel_rows, outputs, positions, rows
from onnxprune.network import Group, Layer, Network

# A group keeps at least this share of its channels, whatever the budget says: an empty layer cuts the network in two.
FLOOR = 0.1
# Rows per channel for the statistics that weigh the groups, and the fewest.
ROWS_PER_CHANNEL, FEWEST_ROWS = 8, 4096


class Spread(Statistic):
    """Total variance of a tensor: what an error in it has to be compared with."""

    rows = "channels"

    def __init__(self) -> None:
        self.count = 0
        self.sums: Tensor | None = None
        self.squares: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        sums, squares = rows.sum(0, dtype=torch.float64), (rows**2).sum(0, dtype=torch.float64)
        self.count += len(rows)
        self.sums = sums if self.sums is None else self.sums + sums
        self.squares = squares if self.squares is None else self.squares + squares

    def merge(self, other: Spread) -> None:
        if other.sums is not None and other.squares is not None:
            self.count += other.count
            self.sums = other.sums if self.sums is None else self.sums + other.sums
            self.squares = other.squares if self.squares is None else self.squares + other.squares

    @property
    def variance(self) -> float:
        if self.sums is None or self.squares is None:
            return 0.0
        return float((self.squares / self.count - (self.sums / self.count) ** 2).clamp(min=0).sum())


@dataclass(frozen=True)
class Decision:
    """Per group: its view, the order in which the method would keep the channels, its scores, and its candidate for the budget."""

    view: ChannelView
    scores: Tensor
    order: Tensor
    candidate: Candidate


def select(network: Network, method: Method, only: Sequence[str], skip: Sequence[str]) -> list[Group]:
    """The groups that may be pruned. Raises NothingToPruneError, with the commonest pins, where there is none."""
    fitting = [g for g in network.groups if method.target == "channel" or g.kind == method.target]
    for pattern in [*only, *skip]:
        if not any(_matches(network, g, [pattern]) for g in network.groups):
            raise UnknownNameError("group or layer", pattern, [n for g in network.groups for n in (g.name, *g.readers)])
    found = [g for g in fitting if (not only or _matches(network, g, only)) and not _matches(network, g, skip)]
    if found:
        return found
    if network.groups and not fitting:
        raise NothingToPruneError(f"no group of {method.target}s in this model", "use a -channel method, or see `onnxprune inspect`")
    if network.groups:
        raise NothingToPruneError("--only and --skip leave no group of channels", "see `onnxprune inspect` for the names")
    reasons = "; ".join(f"{p.tensor!r}: {p.reason}" for p in network.pins[:3])
    raise NothingToPruneError(f"no channel of this model can be removed ({reasons or 'no layer with constant weights'})")


def _matches(network: Network, group: Group, patterns: Sequence[str]) -> bool:
    names = {group.name, *group.makers, *group.readers}
    names |= {network.slots[m.slot].parameter for m in group.members}
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def gather(
    graph: Graph, network: Network, groups: Sequence[Group], method: Method, source: Source | None, *, weigh: bool, batch: int,
    device: Device, seed: int, progress: Progress,
) -> dict[tuple[str, type[Statistic]], Statistic]:  # fmt: skip
    """One pass over the calibration samples for what the method needs and, if `weigh`, for the losses of the auto budget."""
    found: dict[tuple[str, type[Statistic]], Statistic] = {}
    taps: list[Tap] = []
    if source is None:
        return found
    batches = max(source.count // batch, 1)
    makers = {name for g in groups for name in g.makers}
    readers = {name for g in groups for name in g.readers}
    for name in sorted(makers):
        for kind in method.wants(Activation(*network.layer[name].activation)):
            found[name, kind] = kind()
            taps.append(_tap(network.layer[name], found[name, kind], batches))
    for name in sorted(readers if weigh else ()):
        layer = network.layer[name]
        if (name, Moments) not in found:
            found[name, Moments] = Moments()
            taps.append(_tap(layer, found[name, Moments], batches))
        spread = Spread()
        found[name, Spread] = spread
        tensor = layer.residual.sum if layer.residual else layer.output
        limit = -(-FEWEST_ROWS // batches)
        taps.append(Tap(tensor, _output_rows(layer, limit), spread))
    observe(graph, taps, source, batch=batch, device=device, seed=seed, progress=progress)
    return found


def _output_rows(layer: Layer, limit: int) -> Rows:
    def pick(y: Tensor, rng: torch.Generator) -> Tensor:
        axis = 1 if layer.op.startswith("Conv") else y.ndim - 1
        total = y.numel() // y.shape[axis]
        return outputs(layer, y, torch.randperm(total, generator=rng)[:limit].to(y.device) if total > limit else None)

    return pick


def _tap(layer: Layer, statistic: Statistic, batches: int) -> Tap:
    """Rows of the layer's input as the statistic wants them, thinned out so that counting costs less than running."""
    if statistic.rows == "channels":
        channels = layer.input_shape[1] if layer.op.startswith("Conv") else layer.input_shape[-1]
        limit = -(-max(ROWS_PER_CHANNEL * channels, FEWEST_ROWS) // batches)
        return Tap(layer.input, lambda x, rng: channel_rows(layer, x, limit, rng), statistic)
    limit = -(-FEWEST_ROWS * 4 // batches)

    def patches(x: Tensor, rng: torch.Generator) -> Tensor:
        return rows(layer, x, layer.groups, positions(layer, x, limit, rng)).flatten(0, 1)

    return Tap(layer.input, patches, statistic)


def judge(
    graph: Graph, network: Network, groups: Sequence[Group], method: Method, statistics: Statistics, *, align: str | int, seed: int,
    device: Device,
) -> list[Decision]:  # fmt: skip
    """Score and rank the channels of every group; where statistics allow, add what the network loses for each count."""
    widest = vector_block() if device.name == "cpu" else 8
    found = []
    for group, view in zip(groups, channel_views(graph, network, groups, statistics, device.torch_device), strict=True):
        scores = check_scores(method, view, method.score(view))
        order = method.rank(view, scores, generator(seed, group.name))
        candidate = Candidate(_choices(group, align, widest), scores.double().cpu().numpy(), _losses(view, order))
        found.append(Decision(view, scores, order, candidate))
    return found


def _choices(group: Group, align: str | int, widest: int) -> Choices:
    return choices(group, align, FLOOR, widest)


def generator(seed: int, name: str) -> torch.Generator:
    """A generator of its own for every group: what one group draws does not depend on which others there are."""
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + crc32(name.encode())) % 2**63)


def _losses(view: ChannelView, order: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    """(size + 1,): sum over readers of the least-squares error when the first m channels of `order` stay, relative to the output's variance."""
    total: Tensor | None = None
    for reader in view.readers:
        moments, spread = view.statistic(reader.layer, Moments), view.statistic(reader.layer, Spread)
        if moments is None or spread is None or moments.total is None:
            return None
        inputs = reader.positions.reshape(-1)
        count = reader.positions.shape[1]
        errors = _reader_errors(reader.columns, moments.covariance, inputs, reader.positions, order, count)
        relative = errors / max(spread.variance, 1e-30)
        total = relative if total is None else total + relative
    return None if total is None else np.asarray(total.cpu().numpy())


def _reader_errors(columns: Tensor, covariance: Tensor, inputs: Tensor, where: Tensor, order: Tensor, count: int) -> Tensor:
    """Errors for m = 0 ... size channels. Inputs of other groups stay, so they come first in the order of keeping."""
    device = columns.device
    others = torch.ones(len(columns), dtype=torch.bool, device=device)
    others[inputs] = False
    ranked = torch.cat([torch.nonzero(others)[:, 0], where[order].reshape(-1)])
    errors = errors_by_count(covariance.to(device), [columns.double()], ranked)
    offset = int(others.sum())
    return errors[offset::count]


def plans(method: Method, decisions: Sequence[Decision], counts: Counts, seed: int) -> dict[str, ChannelPlan]:
    """The plan of every group that loses something, checked."""
    found = {}
    for d in decisions:
        keep = counts[d.view.name]
        if keep == d.view.channels:
            continue
        plan = method.decide(d.view, d.scores, d.order, keep, generator(seed, d.view.name))
        plan.check(d.view.channels, keep)
        found[d.view.name] = plan
    return found


def without_scale(plan: Mapping[str, ChannelPlan]) -> dict[str, ChannelPlan]:
    return {name: replace(p, scale=None) for name, p in plan.items()}
