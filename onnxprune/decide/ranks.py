"""DECIDE for low rank: which layers may become two, what every rank of them is worth, at which rank they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from statistics import median

from onnxprune.budget.ranks import Ranks, Spectrum, by_spectrum, uniform
from onnxprune.contract import Factors, LayerView, RankMethod, RankView, check_energies
from onnxprune.decide.weights import Site, Views
from onnxprune.errors import NothingToPruneError
from onnxprune.graph.structure import Graph
from onnxprune.network import Network
from onnxprune.rewrite.factorise import free_bias, splittable, weight_bytes

# A layer with so few outputs stays whole: mostly the classes of a model, of which each needs a direction of its own.
NARROW = 10
# Singular values of wider matrices (on their shorter side) take minutes each.
WIDEST = 8192


def select(graph: Graph, sites: Sequence[Site], left: Mapping[str, str]) -> tuple[list[Site], dict[str, str]]:
    """The matrices that may become two, and what is left alone with the reason. Raises NothingToPruneError."""
    reasons, chosen = dict(left), []
    for site in sites:
        why = next((reason for layer in site.layers if (reason := splittable(graph, layer))), "") or _size(site)
        if why:
            reasons[site.layer.name] = why
        else:
            chosen.append(site)
    if not chosen:
        told = "; ".join(f"{name!r}: {why}" for name, why in list(reasons.items())[:3])
        raise NothingToPruneError(f"no layer of this model can become two ({told or 'none with constant weights is chosen'})")
    return chosen, reasons


def shape(site: Site) -> tuple[int, int]:
    """(out, in) of a site that may be split."""
    layer = site.layer
    out = layer.weight_shape[1 if layer.transposed and layer.op != "Conv" else 0]
    return out, prod(layer.weight_shape) // out


def macs_per_weight(site: Site) -> int:
    out, inputs = shape(site)
    return max(sum(layer.macs for layer in site.layers) // (out * inputs), 1)


def _size(site: Site) -> str:
    out, inputs = shape(site)
    if out <= NARROW:
        return f"it has {out} outputs: too few to share a lower rank"
    if out * inputs <= out + inputs:
        return "two layers of rank 1 would be no smaller"
    return f"its shorter side is longer than {WIDEST:,}" if min(out, inputs) > WIDEST else ""


@dataclass
class RankViews:
    """The layers as the method sees them: those of decide.weights, and whether their biases are free."""

    graph: Graph
    views: Views

    def __iter__(self) -> Iterator[RankView]:
        known = {site.name: site for site in self.views.sites}
        for view in self.views:
            free = all(free_bias(self.graph, layer) for layer in known[view.name].layers)
            yield RankView(**{f.name: getattr(view, f.name) for f in fields(LayerView)}, free_bias=free)


def spectra(method: RankMethod, views: RankViews) -> list[Spectrum]:
    found = []
    for view in views:
        _, out, inputs = view.matrix.shape
        found.append(Spectrum(view.name, out, inputs, check_energies(method, view, method.energies(view)).tolist()))
    return found


def weighed(found: Sequence[Spectrum], gains: Mapping[str, float]) -> list[Spectrum]:
    """What an error of each layer does to the model's outputs; one that nobody measured counts as the typical one."""
    typical = median(gains.values()) if gains else 1.0
    return [replace(spectrum, gain=gains.get(spectrum.name, typical)) for spectrum in found]


def chooser(found: Sequence[Spectrum], budget: str) -> Callable[[float], Ranks]:
    """ratio -> ranks."""
    spread = uniform if budget == "uniform" else by_spectrum
    return lambda ratio: spread(found, ratio)


def factors(method: RankMethod, views: RankViews, ranks: Ranks) -> dict[str, Factors]:
    found = {}
    for view in views:
        rank = ranks[view.name]
        if rank is not None:
            found[view.name] = method.factor(view, rank)
            found[view.name].check(view, rank)
    return found


def measure(
    graph: Graph, network: Network, sites: Sequence[Site], kind: str, *, new_biases: bool
) -> Callable[[Mapping[str, int | None]], float]:
    """ranks -> share of the model's multiplications, parameters or bytes that is left. new_biases: bare layers get one."""
    cost = network.cost()
    known = {site.name: site for site in sites}

    def saved(name: str, rank: int) -> float:
        out, inputs = shape(known[name])
        left = rank * (out + inputs) / (out * inputs)
        layers = known[name].layers
        if kind == "macs":
            return sum(layer.macs for layer in layers) * (1 - left)
        bare = sum(layer.bias is None and layer.widen_bias for layer in layers) if new_biases else 0
        numbers = out * inputs * (1 - left) - bare * out
        return numbers * weight_bytes(graph, layers[0]) if kind == "bytes" else numbers

    whole = {"macs": cost.macs, "params": cost.parameters, "bytes": cost.bytes}[kind]
    return lambda ranks: 1 - sum(saved(name, rank) for name, rank in ranks.items() if rank is not None) / max(whole, 1)
