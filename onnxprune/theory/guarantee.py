"""What is known beforehand of pruning a model: theorems of Qian and Klabjan, the error that magnitudes cannot exceed.

    layers    norms and moments of the weights, what goes at the ratio and by how much that lengthens inputs
    theorems  at most how much may be pruned, with which error and probability; or why the theorem says nothing of this model
    network   the recursion that always holds, over all inputs of norm at most `radius`

As in the paper, the first and the last layer stay whole. No data is needed, and nothing is run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import log, prod

import onnx
import torch
from torch import Tensor

from onnxprune.calibration.views import tensor
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.graph import Graph, find, load, prepare
from onnxprune.matrix import fan_in, to_matrix
from onnxprune.network import Layer, Network
from onnxprune.theory import theorems
from onnxprune.theory.operator_norm import norm_bound, operator_norm
from onnxprune.theory.propagation import Propagation
from onnxprune.theory.theorems import Chain, Maps, Norms, Promise
from onnxprune.theory.weight_moments import WeightMoments, weight_moments

# Halvings of the interval in which the largest ratio within epsilon is looked for.
STEPS = 12


@dataclass(frozen=True)
class LayerBounds:
    """measured   ||W|| found by power iteration, from below; norms: of W, W^ and W - W^ from above; goes: weights that go"""

    layer: Layer
    moments: WeightMoments
    measured: float
    norms: Norms
    goes: int


@dataclass(frozen=True)
class TheoremSays:
    """One theorem on the whole model: a promise at one alpha, and for each inner layer how many units go there.

    outside   why it says nothing, where it does not; width: the hidden width that it asks for at this alpha
    """

    name: str
    about: str
    promise: Promise | None
    outside: tuple[str, ...]
    counts: Mapping[str, int]
    width: float | None = None


@dataclass(frozen=True)
class Bounds:
    """size, error   of each output: norm at most, error at most; reasons: why there is none for an output"""

    layers: tuple[LayerBounds, ...]
    theorems: tuple[TheoremSays, ...]
    ratio: float
    radius: float
    size: Mapping[str, float]
    error: Mapping[str, float]
    reasons: Mapping[str, str]


def bounds(
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    epsilon: float | None = None,
    delta: float = 0.05,
    alpha: float | None = None,
    ratio: float | None = None,
    radius: float = 1.0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> Bounds:
    """Look at a model's weights, prune by magnitude in thought, and say what that can cost at most.

    epsilon   the error of an output that is allowed; then the most that may be pruned is looked for, unless it is given
    delta     with which probability the theorems may fail
    alpha     floor(D^(1 - alpha)) of the D weights of a layer go; for the theorems, instead of the ratio
    ratio     share of the weights of each inner layer that goes; default: what epsilon allows, else what alpha says, else 0.5
    radius    the norm of inputs is at most this
    """
    _check(epsilon, delta, alpha, ratio, radius)
    graph, _ = prepare(load(model).model, input_shapes)
    network = find(graph)
    layers = [layer for layer in sorted(network.layers, key=lambda layer: layer.node) if not layer.quantised]
    if not layers:
        raise NothingToPruneError("no layer of this model has weights to bound", "quantised ones are not bounded")
    bounded = _Bounded(graph, network, layers, radius)
    if ratio is None and alpha is None and epsilon is None:
        ratio = 0.5
    share = bounded.most(epsilon) if ratio is None and alpha is None and epsilon is not None else ratio
    if share is not None:
        goes = bounded.goes(share)
    else:
        goes = {name: theorems.pruned(bounded.weights(name), alpha or 0.0) for name in bounded.inner}
    found = bounded.layer_bounds(goes)
    removed, all_of_them = sum(goes.values()), sum(bounded.weights(name) for name in bounded.inner)
    reach = bounded.propagated({row.layer.name: row.norms for row in found})
    return Bounds(
        layers=tuple(found),
        theorems=tuple(_theorems(graph, network, reach, found, epsilon, delta, alpha, ratio)),
        ratio=share if share is not None else removed / max(all_of_them, 1),
        radius=radius,
        size={name: reach.reaches[name].size for name in graph.outputs if name in reach.reaches},
        error={name: reach.reaches[name].error for name in graph.outputs if name in reach.reaches},
        reasons={name: reach.reasons.get(name, "it is constant") for name in graph.outputs if name not in reach.reaches},
    )


def _check(epsilon: float | None, delta: float, alpha: float | None, ratio: float | None, radius: float) -> None:
    if epsilon is not None and not epsilon > 0:
        raise UsageError(f"an epsilon of {epsilon}", "it is the error that is allowed: give a number above 0")
    if not 0 < delta < 1:
        raise UsageError(f"a delta of {delta}", "it is the probability of failing: give a number between 0 and 1, such as 0.05")
    if alpha is not None and not 0 < alpha < 2:
        raise UsageError(f"an alpha of {alpha}", "give a number between 0 and 1 (2-D filters: 2); D^(1 - alpha) of D weights go")
    if alpha is not None and ratio is not None:
        raise UsageError("both an alpha and a ratio", "give one: at alpha, D^(1 - alpha) of the D weights of a layer go")
    if ratio is not None and not 0 <= ratio < 1:
        raise UsageError(f"a ratio of {ratio}", "it is the share of weights to remove, from 0 to less than 1")
    if not 0 < radius < float("inf"):
        raise UsageError(f"a radius of {radius}", "it is the largest norm of an input: give a number above 0")


class _Bounded:
    """The layers of one model as matrices, pruned by magnitude as far as one likes."""

    def __init__(self, graph: Graph, network: Network, layers: Sequence[Layer], radius: float) -> None:
        self.graph, self.network, self.radius = graph, network, radius
        self.layers = {layer.name: layer for layer in layers}
        self.inner = [layer.name for layer in layers[1:-1]]
        self.full = {name: norm_bound(layer, self.matrix(name)) for name, layer in self.layers.items()}

    def weights(self, name: str) -> int:
        return prod(self.layers[name].weight_shape)

    def matrix(self, name: str) -> Tensor:
        layer = self.layers[name]
        return to_matrix(layer, tensor(self.graph, layer.weight, "cpu")).contiguous()

    def goes(self, ratio: float) -> dict[str, int]:
        return {name: self.weights(name) - round((1 - ratio) * self.weights(name)) for name in self.inner}

    def norms(self, name: str, goes: int) -> Norms:
        if not goes:
            return Norms(self.full[name], self.full[name], 0.0)
        matrix, layer = self.matrix(name), self.layers[name]
        thin = matrix.clone()
        thin.view(-1)[torch.argsort(matrix.abs().flatten(), stable=True)[:goes]] = 0.0
        return Norms(self.full[name], norm_bound(layer, thin), norm_bound(layer, matrix - thin))

    def propagated(self, norms: Mapping[str, Norms]) -> Propagation:
        return Propagation(self.graph, self.network, norms, self.radius)

    def most(self, epsilon: float) -> float:
        """The largest ratio found at which no output is further off than epsilon; 0 where nothing is known of one."""
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            reach = self.propagated({name: self.norms(name, self.goes(middle).get(name, 0)) for name in self.layers})
            within = all(name in reach.reaches and reach.reaches[name].error <= epsilon for name in self.graph.outputs)
            low, high = (middle, high) if within else (low, middle)
        return low

    def layer_bounds(self, goes: Mapping[str, int]) -> list[LayerBounds]:
        rows = []
        for name, layer in self.layers.items():
            matrix = self.matrix(name)
            moments = weight_moments(matrix, fan_in(layer), matrix.shape[0] * matrix.shape[1])
            count = goes.get(name, 0)
            rows.append(LayerBounds(layer, moments, operator_norm(layer, matrix), self.norms(name, count), count))
        return rows


def _theorems(
    graph: Graph, network: Network, reach: Propagation, rows: Sequence[LayerBounds], epsilon: float | None, delta: float,
    alpha: float | None, ratio: float | None,
) -> list[TheoremSays]:  # fmt: skip
    lipschitz, outside = _as_chain(graph, network, reach)
    if any(row.layer.op.startswith("Conv") for row in rows):
        return [_kernels(rows, outside, lipschitz, delta, alpha, ratio)]
    shapes = [tuple(reversed(row.layer.weight_shape)) if not row.layer.transposed else row.layer.weight_shape for row in rows]
    widths = (shapes[0][0], *(shape[1] for shape in shapes))
    inner = rows[1:-1]
    chain = Chain(
        widths, [row.norms.full for row in rows], lipschitz, max((row.moments.k for row in inner), default=0.0),
        max((row.moments.k1 for row in inner), default=0.0), max((row.moments.k2 for row in inner), default=0.0),
    )  # fmt: skip
    uneven = [f"the weights of {row.layer.name!r} are not uniform" for row in inner if not row.moments.looks_uniform]
    biased = [f"the weights of {row.layer.name!r} have a mean other than 0" for row in inner if not row.moments.centred]
    found = []
    for name, about, theorem, width, more in (
        ("Theorem 1", "the smallest weights", theorems.magnitude, theorems.magnitude_width, uneven),
        ("Theorem 2", "weights at random", theorems.random, theorems.random_width, biased),
    ):
        at = alpha
        if at is None and ratio is not None and inner:
            at = _alpha_of(ratio, [row.moments.weights for row in inner])
        if at is None and epsilon is not None and len(rows) > 2:
            limits = [theorems.most_alpha(chain.widths[k], chain.widths[k - 1]) for k in range(2, chain.depth)]
            at = theorems.least_alpha(partial(theorem, chain), epsilon, delta, min(1.0, *limits) if "2" in name else 1.0)
        found.append(_says(name, about, chain, inner, theorem, width, at, epsilon, delta, (*outside, *more)))
    return found


def _alpha_of(ratio: float, weights: Sequence[int]) -> float:
    """The alpha at which no layer loses less than this share."""
    return min(theorems.alpha_of(ratio, n) for n in weights) if ratio else 1.0


def _says(
    name: str, about: str, chain: Chain, inner: Sequence[LayerBounds], theorem: theorems.ChainTheorem,
    width: theorems.WidthFormula, alpha: float | None, epsilon: float | None, delta: float, outside: tuple[str, ...],
) -> TheoremSays:  # fmt: skip
    promise = None if alpha is None else theorem(chain, alpha)
    reasons = [*outside, *theorem(chain, 0.5 if alpha is None else alpha).outside] if promise or chain.depth < 3 else [*outside]
    if promise is None and epsilon is not None:
        reasons.append(f"no alpha gives an error of {epsilon:g} with probability {1 - delta:g}")
    elif promise is not None and promise.confidence < 1 - delta and not promise.outside:
        reasons.append(f"its probability, {promise.confidence:.3g}, is less than {1 - delta:g}")
    elif promise is not None and epsilon is not None and promise.error > epsilon and not promise.outside:
        reasons.append(f"its error, {promise.error:.3g}, is more than {epsilon:g}")
    needed = width(chain, alpha, epsilon, delta) if alpha and epsilon and chain.depth >= 3 else None
    counts = {} if alpha is None else {row.layer.name: theorems.pruned(row.moments.weights, alpha) for row in inner}
    return TheoremSays(name, about, promise, tuple(dict.fromkeys(reasons)), counts, needed)


def _kernels(
    rows: Sequence[LayerBounds], outside: tuple[str, ...], lipschitz: float, delta: float, alpha: float | None,
    ratio: float | None,
) -> TheoremSays:  # fmt: skip
    """Theorem 3, for a chain of convolutions alike in all but the weights, and one fully connected layer."""
    name, about = "Theorem 3", "2-D filters at random"
    convolutions, last = [row for row in rows if row.layer.op == "Conv"], rows[-1]
    reasons = list(outside)
    if last.layer.op == "Conv" or len(convolutions) != len(rows) - 1:
        reasons.append("it is not convolutions and one fully connected layer behind them")
    inner = [row for row in rows[1:-1] if row.layer.op == "Conv"]
    alike = {(*row.layer.weight_shape, *row.layer.input_shape[2:], *row.layer.output_shape[2:]) for row in inner}
    if len(alike) != 1 or any(set(row.layer.geometry.strides) != {1} or row.layer.groups != 1 for row in inner):
        reasons.append("its inner convolutions are not all of one shape, with stride 1 and without groups")
    reasons += [f"the weights of {row.layer.name!r} have a mean other than 0" for row in inner if not row.moments.centred]
    if reasons or len(rows) < 3:
        return TheoremSays(name, about, None, tuple(reasons or [f"{len(rows)} layers, fewer than 3"]), {})
    shape, spatial = inner[0].layer.weight_shape, inner[0].layer.input_shape[2:]
    d, side = shape[0], max(spatial)
    # k1 and k2 are relative to m = max(inputs, outputs) of the matrix; C1 and C2 to p^2 d.
    scale = [side**2 * d / max(prod(row.layer.weight_shape[1:]), row.layer.weight_shape[0]) for row in rows[:-1]]
    c1 = max(row.moments.k1 * s for row, s in zip(rows, scale, strict=False))
    c2 = max(row.moments.k2 * s**2 for row, s in zip(rows, scale, strict=False))
    maps = Maps(
        len(rows), d, side, max(shape[2:]), max(rows[0].layer.input_shape[2:]), c1, c2, last.norms.full, lipschitz
    )  # fmt: skip
    at = alpha if alpha is not None else -log(ratio) / log(d) if ratio else theorems.most_kernel_alpha(d)
    promise = theorems.best_kernels(maps, at, delta)
    if promise.confidence < 1 - delta:
        reasons += [*promise.outside, f"its probability, {promise.confidence:.3g}, is less than {1 - delta:g}"]
    counts = {row.layer.name: theorems.pruned_kernels(d, at) for row in inner}
    return TheoremSays(name, about, promise, tuple(dict.fromkeys(reasons)), counts)


def _as_chain(graph: Graph, network: Network, reach: Propagation) -> tuple[float, tuple[str, ...]]:
    """The product of the activations' Lipschitz constants, and what keeps the model from being the theorems' F."""
    layers = {layer.node: layer for layer in network.layers}
    reasons, lipschitz = [], 1.0
    for index, node in enumerate(graph.nodes):
        read = [name for name in node.input if name in reach.reaches or name in reach.reasons]
        if not read:
            continue
        users = [len({n for n, _ in graph.users.get(o, ()) if graph.nodes[n].op_type != "Shape"}) for o in node.output]
        if len(read) > 1 or any(count > 1 for count in users):
            reasons.append(f"it is no chain of layers: see {graph.label(index)!r} ({node.op_type})")
            break
        layer = layers.get(index)
        if layer is not None:
            reasons += ["its layers have biases"] if layer.bias is not None else []
        elif (function := reach.function(index)) is not None and function[1] == 0:
            lipschitz *= function[0]
        elif not any(layer.bias_node == index for layer in layers.values()):
            reasons.append(f"{graph.label(index)!r} ({node.op_type}) is neither a layer nor an activation that is zero at zero")
    return lipschitz, tuple(dict.fromkeys(reasons))
