"""DECIDE for single weights: which stored matrices may lose some, what their inputs look like, how many go and which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxprune.budget.weights import Share, Trials, by_scope, keep_by_trials, keep_layers, keep_pattern, keep_rows
from onnxprune.calibration.fitting import fixed_batch
from onnxprune.calibration.gains import measure_gains
from onnxprune.calibration.observe import Progress, observe
from onnxprune.calibration.sources import Source
from onnxprune.calibration.views import tensor
from onnxprune.contract import Activation, LayerPlan, LayerView, Method, Quota, Statistic, WeightMethod, check_weight_scores
from onnxprune.decide.evidence import generator, tap
from onnxprune.devices import Device
from onnxprune.errors import NothingToPruneError, UnknownNameError
from onnxprune.graph.recurrence import recurrent_layers
from onnxprune.graph.structure import Graph
from onnxprune.matrix import RECURRENT, group_count, to_matrix
from onnxprune.network import Layer, Network

# Bytes of statistics that are held at a time; layers beyond that are looked at in a later pass over the samples.
STATISTICS_BUDGET = 1 << 30
# How many times the share asked for is tried on each layer, where layers compete by trials, and what is not worth a trial.
LEVELS, LEAST_TRIED = (0.5, 1.0, 2.0, 4.0), 0.9


@dataclass(frozen=True)
class Site:
    """A stored matrix that may lose weights, and the layers that read it: several where it is shared."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def layer(self) -> Layer:
        return self.layers[0]


def sites(graph: Graph, network: Network) -> tuple[list[Site], dict[str, str]]:
    """All matrices in the order of the model, and the layers that are left alone, with the reason."""
    readers: dict[str, list[Layer]] = {}
    left: dict[str, str] = {}
    for layer in sorted([*network.layers, *recurrent_layers(graph)], key=lambda layer: layer.node):
        if layer.quantised:
            left[layer.name] = "its weights are quantised: prune before quantising"
        else:
            readers.setdefault(layer.weight, []).append(layer)
    found = []
    for name, layers in readers.items():
        known = {layer.node for layer in layers}
        others = [node for node, _ in graph.end_users(name) if node not in known]
        first = layers[0]
        if others:
            left[first.name] = f"{graph.label(others[0])!r} reads its weights too, and is no layer"
        elif graph.exposed(name):
            left[first.name] = "its weights are an output of the model, or a subgraph reads them"
        elif any(_form(layer) != _form(first) for layer in layers):
            left[first.name] = f"{layers[1].name!r} reads its weights in another orientation"
        else:
            found.append(Site(name, tuple(layers)))
    return found, left


def _form(layer: Layer) -> tuple[object, ...]:
    return layer.op in RECURRENT, layer.op.startswith("Conv"), layer.transposed, layer.groups, layer.geometry.kernel


def select(
    found: Sequence[Site], left: Mapping[str, str], method: WeightMethod, only: Sequence[str], skip: Sequence[str], *,
    keep_ends: bool = False, pattern: tuple[int, int] | None = None,
) -> tuple[list[Site], dict[str, str]]:  # fmt: skip
    """The matrices that may be pruned, and what is left alone. Raises NothingToPruneError where there is none."""
    chosen = choose(found, only, skip, keep_ends=keep_ends)
    reasons = dict(left)
    if pattern is not None:
        reasons |= {s.layer.name: f"its inputs are no multiple of {pattern[1]}" for s in chosen if _channels(s) % pattern[1]}
        chosen = [s for s in chosen if not _channels(s) % pattern[1]]
    if method.needs:
        reasons |= {s.layer.name: "what it reads cannot be looked at" for s in chosen if not _observable(s)}
        chosen = [s for s in chosen if _observable(s)]
    if method.target == "kernel":
        reasons |= {s.layer.name: "it is no convolution" for s in chosen if not s.layer.op.startswith("Conv")}
        chosen = [s for s in chosen if s.layer.op.startswith("Conv")]
    if not chosen:
        told = "; ".join(f"{name!r}: {why}" for name, why in list(reasons.items())[:3])
        what = "2-D filter" if method.target == "kernel" else "weight"
        raise NothingToPruneError(
            f"no {what} of this model can be removed ({told or 'no layer with constant weights is chosen'})"
        )
    return chosen, reasons


def choose(found: Sequence[Site], only: Sequence[str], skip: Sequence[str], *, keep_ends: bool) -> list[Site]:
    """What the user's globs name. Raises UnknownNameError for a glob that names nothing, NothingToPruneError if all stays."""
    for glob in [*only, *skip]:
        if not any(_matches(site, [glob]) for site in found):
            names = [n for site in found for n in (site.name, *(layer.name for layer in site.layers))]
            raise UnknownNameError("layer or weight", glob, names)
    chosen = [s for s in found if (not only or _matches(s, only)) and not _matches(s, skip)]
    if found and not chosen:
        raise NothingToPruneError("--only and --skip leave no layer", "leave one of them out, or name others")
    return _inner(found, chosen) if keep_ends else chosen


def _inner(found: Sequence[Site], chosen: Sequence[Site]) -> list[Site]:
    """Without the first and the last of all. Raises NothingToPruneError where no other is chosen."""
    inner = [s for s in chosen if s not in (found[0], found[-1])]
    if chosen and not inner:
        there = {1: "there is only one", 2: "these are all there is"}.get(len(found), "no other is chosen")
        raise NothingToPruneError(f"--keep-ends keeps the first and the last layer, and {there}", "leave it out")
    return inner


def _matches(site: Site, patterns: Sequence[str]) -> bool:
    names = {site.name, *(layer.name for layer in site.layers)}
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _channels(site: Site) -> int:
    layer = site.layer
    if layer.op == "ConvTranspose":
        return layer.weight_shape[0] // layer.groups
    return layer.weight_shape[1] if layer.op == "Conv" else _shape(site)[2]


def _observable(site: Site) -> bool:
    return all(layer.input and layer.input_shape for layer in site.layers)


def _shape(site: Site) -> tuple[int, int, int]:
    """(groups, out, in) of the matrix."""
    layer, total = site.layer, prod(site.layer.weight_shape)
    groups = group_count(layer, layer.weight_shape)
    match layer.op:
        case "Conv":
            out = layer.weight_shape[0] // groups
        case "ConvTranspose" | "LSTM" | "GRU" | "RNN":
            out = layer.weight_shape[1]
        case _:
            out = layer.weight_shape[1 if layer.transposed else 0]
    return groups, out, total // (groups * out)


@dataclass
class Views:
    """The layers as the method sees them, again at each iteration; statistics that do not fit into memory together are counted
    in several passes over the samples, and again at the next iteration.
    """

    graph: Graph
    sites: Sequence[Site]
    method: Method
    source: Source
    batch: int
    device: Device
    seed: int
    progress: Progress
    _kept: list[LayerView] | None = field(default=None, repr=False)

    @property
    def at_once(self) -> bool:
        """Whether one pass is enough, so that everything stays at hand."""
        return len(self._portions()) == 1

    def __iter__(self) -> Iterator[LayerView]:
        if self._kept is not None:
            yield from self._kept
            return
        portions = self._portions()
        for portion in portions:
            views = self._look(portion)
            if len(portions) == 1:
                self._kept = views
            yield from views

    def gains(self, found: Sequence[Site]) -> dict[str, float]:
        """Matrix -> what a squared error in the outputs of the layers that read it does to the model's; layers alone have any."""
        layers = [layer for site in found for layer in site.layers if layer.op not in RECURRENT]
        measured = measure_gains(self.graph, layers, self.source, device=self.device, seed=self.seed, progress=self.progress)
        return {site.name: sum(measured[layer.name] for layer in site.layers) for site in found if site.layer.op not in RECURRENT}

    def _portions(self) -> list[list[Site]]:
        portions: list[list[Site]] = [[]]
        used = 0
        for site in self.sites:
            groups, out, inputs = _shape(site)
            probe = [self.method.counter(kind, torch.zeros(1, 1, 1) if kind.weighs else None) for kind in self.method.needs]
            size = sum(statistic.bytes(groups, out, inputs) for statistic in probe)
            if portions[-1] and used + size > STATISTICS_BUDGET:
                portions.append([])
                used = 0
            portions[-1].append(site)
            used += size
        return portions

    def _look(self, portion: Sequence[Site]) -> list[LayerView]:
        matrices = {site.name: self._matrix(site) for site in portion}
        counted: dict[str, dict[type[Statistic], Statistic]] = {site.name: {} for site in portion}
        taps = []
        batch = fixed_batch(self.source.inputs) or self.batch
        for site in portion:
            for kind in self.method.needs:
                statistic = self.method.counter(kind, matrices[site.name] if kind.weighs else None)
                counted[site.name][kind] = statistic
                taps += [tap(layer, statistic, self.source.count, batch) for layer in site.layers]
        observe(
            self.graph, taps, self.source, batch=self.batch, device=self.device, seed=self.seed, progress=self.progress
        )  # fmt: skip
        return [self._view(site, matrices[site.name], counted[site.name]) for site in portion]

    def _matrix(self, site: Site) -> Tensor:
        return to_matrix(site.layer, tensor(self.graph, site.name, self.device.torch_device)).contiguous()

    def _view(self, site: Site, matrix: Tensor, counted: Mapping[type[Statistic], Statistic]) -> LayerView:
        layer = site.layer
        bias = torch.zeros(matrix.shape[:2], device=matrix.device)
        if layer.bias is not None:
            stored = tensor(self.graph, layer.bias, self.device.torch_device) * layer.bias_scale
            bias = stored.flatten().expand(matrix.shape[0] * matrix.shape[1]).reshape(bias.shape)
        return LayerView(
            name=site.name, matrix=matrix, bias=bias, kernel=prod(layer.geometry.kernel), positions=_positions(layer),
            place=(list(self.sites).index(site), len(self.sites)), activation=Activation(*layer.activation), statistics=counted,
        )  # fmt: skip


def _positions(layer: Layer) -> int:
    if layer.op.startswith("Conv"):
        return prod(layer.output_shape[2:])
    return max(1, layer.macs // max(prod(layer.weight_shape), 1))


def share_of(method: WeightMethod, view: LayerView, *, bounds: bool) -> Share:
    """What the budget has to know of a layer. bounds: the paper's errors too."""
    scores = check_weight_scores(method, view, method.score(view))
    kernel = method.target == "kernel"
    zero = (view.kernel_norms if kernel else view.matrix) == 0
    errors = method.errors(view, scores) if bounds else None
    return Share(scores, view.kernel if kernel else 1, zero, errors)


def _trials(method: WeightMethod, views: Views, found: Sequence[Site], ratio: float, seed: int) -> dict[str, Trials]:
    """Every layer pruned at some ratios around the one asked for: the squared error of its outputs times its gain.

    Matrices whose gain cannot be measured (of recurrent layers) count as the typical one.
    """
    gains = views.gains(found)
    typical = float(np.median(list(gains.values()))) if gains else 1.0
    trials = {}
    for view in views:
        size, there = view.matrix.numel(), int((view.matrix != 0).sum())
        counts = [0, *sorted(n for n in {round(share * size) for share in _levels(1 - ratio)} if 0 < n < there), there]
        gain = gains.get(view.name, typical)
        losses = [gain * loss for loss in method.losses(view, counts[:-1], generator(seed, view.name))]
        trials[view.name] = Trials(counts, [*losses, 0.0], zeros=size - there)
    return trials


def _levels(kept: float) -> list[float]:
    return [share for factor in LEVELS if (share := kept * factor) < LEAST_TRIED]


@dataclass(frozen=True)
class Decided:
    """Plans and quotas by parameter, and what the method tells of its bounds."""

    plans: dict[str, LayerPlan]
    quotas: dict[str, Quota]
    facts: dict[str, Mapping[str, Any]]


def decide(
    method: WeightMethod, views: Views, found: Sequence[Site], budget: str, ratio: float, pattern: tuple[int, int] | None,
    seed: int, *, bounds: bool = False,
) -> Decided:  # fmt: skip
    """How many weights every layer keeps and which ones; each plan is held to its quota. bounds: say what theirs says of them.

    A budget that compares layers needs the scores of all of them first: where the statistics do not fit into memory together they
    are then counted twice.
    """
    scope = {"uniform": "layer", "global": "network", "auto": method.scope}.get(budget, budget)
    quotas: dict[str, Quota] = {}
    if pattern is not None or scope in ("layer", "row"):
        kernel = method.target == "kernel"
        layers = {s.name: (_shape(s), prod(s.layer.geometry.kernel) if kernel else 1) for s in found}
        shapes = {name: (g, o, i // unit) for name, ((g, o, i), unit) in layers.items()}
        units = {name: unit for name, (_, unit) in layers.items()}
        spread = keep_layers if scope == "layer" else keep_rows
        quotas = keep_pattern(shapes, units, pattern) if pattern is not None else spread(shapes, units, ratio)
    elif scope == "gain":
        quotas = keep_by_trials(_trials(method, views, found, ratio, seed), ratio)
    else:
        shares = {view.name: share_of(method, view, bounds=scope == "bound") for view in views}
        quotas = by_scope("bound" if scope == "bound" else "network", shares, ratio)
    plans = {}
    facts = {}
    for view in views:
        scores = check_weight_scores(method, view, method.score(view))
        quota = quotas[view.name]
        plan = method.decide(view, scores, quota, generator(seed, view.name))
        plan.check(view, quota)
        plans[view.name] = replace(plan, error=implied(method, view, scores, plan)) if bounds else plan
        if told := method.facts(view, plan):
            facts[view.name] = told
    return Decided(plans, quotas, facts)


def within(method: WeightMethod, views: Views, epsilon: float, seed: int) -> Decided:
    """Error-first: every layer keeps what its bound needs for an error of at most epsilon."""
    found = Decided({}, {}, {})
    for view in views:
        scores = check_weight_scores(method, view, method.score(view))
        plan = method.within(view, scores, epsilon, generator(seed, view.name))
        found.quotas[view.name] = Quota(int(plan.keep.sum()))
        plan.check(view, found.quotas[view.name])
        found.plans[view.name] = plan
        if told := method.facts(view, plan):
            found.facts[view.name] = told
    return found


def implied(method: WeightMethod, view: LayerView, scores: Tensor, plan: LayerPlan) -> float | None:
    """eps of the worst row of a plan: what the plan says itself, else the method's curve where each row's count is."""
    if plan.error is not None:
        return plan.error
    curves = method.errors(view, scores)
    if curves is None:
        return None
    there = plan.keep & (view.matrix != 0)
    counts = (view.kernels(there.double()) > 0).sum(2) if method.target == "kernel" else there.sum(2)
    return float(curves.gather(1, counts.flatten()[:, None]).max())
