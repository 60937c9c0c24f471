"""DECIDE for channels: evidence about every group -> a score and a loss for each channel -> how many stay -> which ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxprune.budget.alignment import choices, vector_block
from onnxprune.budget.allocate import Candidate, Counts
from onnxprune.calibration.fitting import fixed_batch
from onnxprune.calibration.gains import measure_gains
from onnxprune.calibration.observe import Progress, observe
from onnxprune.calibration.sources import Source
from onnxprune.calibration.views import channel_views, tensor
from onnxprune.compensation.least_squares import RefitLosses
from onnxprune.contract import (
    Activation,
    ChannelMethod,
    ChannelPlan,
    ChannelView,
    Contributions,
    Moments,
    Reading,
    Statistic,
    check_scores,
    readings,
)
from onnxprune.decide.evidence import generator, observable, tap, wide_owner
from onnxprune.devices import Device
from onnxprune.errors import NothingToPruneError, UnknownNameError
from onnxprune.graph.structure import Graph, trace
from onnxprune.matrix import to_matrix
from onnxprune.network import USUAL_KINDS, Group, Kind, Network
from onnxprune.rewrite.arrange import Orders, arrange
from onnxprune.rewrite.prove import Feeds, outputs, prove_arranged

# A group keeps at least this share of its channels, whatever the budget says: an empty layer cuts the network in two.
FLOOR = 0.1
# Multiplications that choosing among the random draws of one group may cost.
DRAW_BUDGET = 4 * 10**9


@dataclass(frozen=True)
class Evidence:
    """What one look at the samples gave. gains: layer -> what an error in its output does to the model's; may be empty."""

    statistics: Mapping[tuple[str, type[Statistic]], Statistic]
    gains: Mapping[str, float]


@dataclass(frozen=True)
class Decision:
    """Per group: its view, scores, the order in which the method would keep the channels, and its candidate for the budget.

    draw   which of the method's random draws the order is
    """

    view: ChannelView
    scores: Tensor
    order: Tensor
    draw: int
    candidate: Candidate


def select(
    network: Network, method: ChannelMethod, only: Sequence[str], skip: Sequence[str], kinds: Sequence[Kind] = ()
) -> list[Group]:
    """The groups that may be pruned. Raises NothingToPruneError, with the commonest pins, where there is none.

    kinds: of these alone; empty: of all but the width of embeddings.
    """
    fitting = [g for g in network.groups if method.target == "channel" or g.kind == method.target]
    for pattern in [*only, *skip]:
        if not any(_matches(network, g, [pattern]) for g in network.groups):
            raise UnknownNameError("group or layer", pattern, [n for g in network.groups for n in (g.name, *g.readers)])
    named = [g for g in fitting if (not only or _matches(network, g, only)) and not _matches(network, g, skip)]
    found = [g for g in named if g.kind in (kinds or USUAL_KINDS)]
    if found:
        return found
    if network.groups and not fitting:
        raise NothingToPruneError(
            f"no group of {method.target}s in this model", "use a -channel method, or see `onnxprune inspect`"
        )
    if named:
        there = sorted({g.kind for g in named})
        raise NothingToPruneError(
            f"no channels of kind {' or '.join(kinds)}, only of kind {' and '.join(there)}"
            if kinds
            else f"only channels of kind {' and '.join(there)} could go, and these go only when they are asked for",
            f"ask for --kind {','.join(there)}",
        )
    if network.groups:
        raise NothingToPruneError("--only and --skip leave no group of channels", "see `onnxprune inspect` for the names")
    reasons = "; ".join(f"{p.tensor!r}: {p.reason}" for p in network.pins[:3])
    raise NothingToPruneError(f"no channel of this model can be removed ({reasons or 'no layer with constant weights'})")


def weights_of(network: Network, groups: Sequence[Group]) -> set[str]:
    """Every parameter that may change where channels of these groups go."""
    named = {name for g in groups for name in (*g.makers, *g.readers)}
    stored = {network.slots[member.slot].parameter for g in groups for member in g.members}
    return stored | {layer.weight for layer in network.layers if layer.name in named}


def _matches(network: Network, group: Group, patterns: Sequence[str]) -> bool:
    names = {group.name, *group.makers, *group.readers}
    names |= {network.slots[m.slot].parameter for m in group.members}
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def arranged(
    graph: Graph, network: Network, groups: Sequence[Group], batches: Iterable[Feeds], device: Device,
    broken: Set[str] = frozenset(),
) -> tuple[Graph, dict[str, Orders]]:  # fmt: skip
    """Channels of grouped convolutions change places, so that each block loses what it can spare; proven at once."""
    scores = cell_scores(graph, network, groups, device)
    if not scores:
        return graph, {}
    feeds = list(batches)
    expected = outputs(graph.model, feeds, device, broken)
    orders = arrange(graph, network, scores)
    found = trace(graph.model, graph.inputs)
    if orders:
        prove_arranged(found, expected, feeds, device, broken)
    return found, orders


def cell_scores(graph: Graph, network: Network, groups: Sequence[Group], device: Device) -> dict[str, list[NDArray[np.float64]]]:
    """For groups with cells: what each of their finer channels weighs, ||what makes it|| * ||what reads it||, without data."""
    found = {}
    for group in groups:
        views = channel_views(graph, network, group.cells, {}, device.torch_device)
        if views:
            found[group.name] = [_weight(view).double().cpu().numpy() for view in views]
    return found


def _weight(view: ChannelView) -> Tensor:
    reads = [torch.linalg.vector_norm(r.weight, dim=1) ** 2 for r in view.readers]
    return view.maker_norms * torch.stack(reads).sum(0).sqrt() if reads else view.maker_norms


def gather(
    graph: Graph, network: Network, groups: Sequence[Group], method: ChannelMethod, source: Source, *, weigh: bool, batch: int,
    device: Device, seed: int, progress: Progress, bounds: bool = False,
) -> Evidence:  # fmt: skip
    """One pass over the calibration samples for what the method needs and, if `weigh`, for the losses of the auto budget.

    bounds: all that it needs, even what makes no difference to the decision.
    """
    found: dict[tuple[str, type[Statistic]], Statistic] = {}
    makers = observable(graph, network, {name for group in groups for name in group.makers})
    readers = observable(graph, network, {name for group in groups for name in group.readers})
    wanted = [
        (layer, kind) for layer in makers for kind in (method.needs if bounds else method.wants(Activation(*layer.activation)))
    ]
    wanted += [(layer, kind) for layer in readers for kind in method.wants(None)]
    wanted += [(layer, Moments) for layer in readers] if weigh else []
    taps = []
    for layer, asked in wanted:
        owner = wide_owner(network, layer) if asked is Moments else None
        kind = asked if owner is None else Contributions
        if (layer.name, kind) in found:
            continue
        weight = tensor(graph, layer.weight, device.torch_device, network.quantised) if kind.weighs else None
        matrix = None if weight is None else to_matrix(layer, weight).contiguous()
        statistic = method.counter(kind, matrix) if owner is None or matrix is None else Contributions(matrix, owner)
        found[layer.name, kind] = statistic
        taps.append(tap(layer, statistic, source.count, fixed_batch(source.inputs) or batch))
    observe(graph, taps, source, batch=batch, device=device, seed=seed, progress=progress)
    gains = measure_gains(graph, readers, source, device=device, seed=seed, progress=progress) if weigh else {}
    return Evidence(found, gains)


def judge(
    graph: Graph, network: Network, groups: Sequence[Group], method: ChannelMethod, evidence: Evidence, *, align: str | int,
    seed: int, device: Device,
) -> list[Decision]:  # fmt: skip
    """Score and rank the channels of every group; where statistics allow, add what the network loses for each count."""
    widest = vector_block() if device.name == "cpu" else 8
    found = []
    for group, bare in zip(groups, channel_views(graph, network, groups, evidence.statistics, device.torch_device), strict=True):
        view = replace(bare, gains=evidence.gains)
        scores = check_scores(method, view, method.score(view))
        draw, order, losses = _best_draw(method, view, scores, seed)
        candidate = Candidate(choices(group, align, FLOOR, widest), scores.double().cpu().numpy(), losses)
        found.append(Decision(view, scores, order, draw, candidate))
    return found


def _best_draw(
    method: ChannelMethod, view: ChannelView, scores: Tensor, seed: int
) -> tuple[int, Tensor, NDArray[np.float64] | None]:
    """Of a random method's draws, and the plain order by score, the one that loses least over all counts.

    Without statistics to tell, the first draw.
    """
    predicted = _predictors(view)
    best: tuple[float, int, Tensor, NDArray[np.float64] | None] | None = None
    tries = min(method.draws, max(2, DRAW_BUDGET // max(_work(predicted), 1))) if predicted and method.draws > 1 else 1
    for draw in range(tries + (tries > 1)):
        by_score = draw == tries
        order = (
            ChannelMethod.rank(method, view, scores, generator(seed, view.name))
            if by_score
            else method.rank(view, scores, generator(seed, view.name, draw))
        )
        losses = _losses(predicted, order) if predicted else None
        total = float(losses.sum()) if losses is not None else 0.0
        if best is None or total < best[0]:
            best = total, draw, order, losses
    assert best is not None  # every method draws at least once
    return best[1:]


def _predictors(view: ChannelView) -> list[tuple[Reading, RefitLosses]]:
    """For every reader whose inputs were looked at (layers, not recurrent nodes) what predicts its losses."""
    if not any(r.layer in view.gains for r in view.readers):
        return []
    return [(found, RefitLosses(found.covariance, found.weights)) for found in readings(view)]


def _work(predicted: Sequence[tuple[Reading, RefitLosses]]) -> int:
    """Multiplications that one draw costs: a factorisation and a triangular solve per reader."""
    return sum(n**3 // 3 + n**2 * losses.weights.shape[1] for r, losses in predicted for n in [r.positions.numel()])


def _losses(predicted: Sequence[tuple[Reading, RefitLosses]], order: Tensor) -> NDArray[np.float64]:
    """(size + 1,): predicted relative squared change of the model's outputs if the first m of `order` stay, readers refitted."""
    parts = []
    for reading, losses in predicted:
        errors = losses.in_order(reading.positions[order].reshape(-1))
        parts.append(reading.gain * errors[:: reading.positions.shape[1]])
    return np.asarray(torch.stack(parts).sum(0).cpu().numpy())


def within(method: ChannelMethod, decisions: Sequence[Decision], epsilon: float, seed: int) -> dict[str, ChannelPlan]:
    """Error-first: the plan of every group whose draws leave something out, and of the others one that keeps all."""
    found = {}
    for d in decisions:
        plan = method.within(d.view, d.scores, epsilon, generator(seed, d.view.name, d.draw))
        plan.check(d.view.channels, len(plan.keep))
        found[d.view.name] = plan
    return found


def plans(method: ChannelMethod, decisions: Sequence[Decision], counts: Counts, seed: int) -> dict[str, ChannelPlan]:
    """The plan of every group that loses something, checked."""
    found = {}
    for d in decisions:
        keep = counts[d.view.name]
        if keep == d.view.channels:
            continue
        plan = method.decide(d.view, d.scores, d.order, keep, generator(seed, d.view.name, d.draw))
        plan.check(d.view.channels, keep)
        found[d.view.name] = plan
    return found
