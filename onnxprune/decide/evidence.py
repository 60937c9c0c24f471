"""DECIDE: what is looked at before a decision, and the random numbers that it may use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxprune.calibration.observe import Tap
from onnxprune.calibration.quota import batches_wanted, samples_wanted
from onnxprune.contract import Statistic
from onnxprune.contract.contributions import WIDEST
from onnxprune.devices import Device
from onnxprune.errors import ModelError
from onnxprune.graph.facts import FLOATS
from onnxprune.graph.recurrence import recurrent_layers
from onnxprune.graph.structure import Graph
from onnxprune.matrix import channel_rows, fan_in, positions, rows
from onnxprune.network import Layer, Network
from onnxprune.rewrite.prove import outputs

# Samples that are looked at to weigh channels: from few of them the estimate is shrunk (see contract.Moments), and ResNet-20 and
# ResNet-56 come out no worse than with four times as many.
MOST_LOOKED_AT = 256


def check_weights(
    graph: Graph, network: Network, touched: Set[str], batches: Iterable[Mapping[str, NDArray[Any]]], device: Device
) -> dict[str, str]:
    """Weights and biases that hold NaN or infinity, each with a layer that reads it, whose weight is none of those `touched`.

    Raises ModelError where one is, and where the model then gives no number at all on the samples of `batches`.
    """
    broken: dict[str, str] = {}
    for layer in [*network.layers, *recurrent_layers(graph)]:
        for name in (layer.weight, layer.bias):
            if name is None or bool(np.isfinite(graph.array(name).astype(np.float32, copy=False)).all()):
                continue
            broken.setdefault(name, layer.name)
            if layer.weight in touched:
                problem = f"weight {name!r} of layer {layer.name!r} holds NaN or infinity"
                raise ModelError(problem, f"train or export it again, or leave it alone: --skip {layer.name!r}")
    if broken:
        given = [value for each in outputs(graph.model, batches, device) for value in each.values()]
        found = [value.astype(np.float32) for value in given if isinstance(value, np.ndarray) and value.dtype.kind in "fV"]
        if found and not any(bool(np.isfinite(value).any()) for value in found):
            name, layer_name = next(iter(broken.items()))
            problem = f"weight {name!r} of layer {layer_name!r} holds NaN or infinity, and so do all outputs of the model"
            raise ModelError(problem, "train or export it again")
    return broken


def observable(graph: Graph, network: Network, names: Set[str]) -> list[Layer]:
    """Those that are layers and whose inputs and outputs are numbers, not the integers of a quantised model."""
    layers = [network.layer[name] for name in sorted(names) if name in network.layer]
    return [layer for layer in layers if graph.types[layer.input] in FLOATS and graph.types[layer.output] in FLOATS]


def wide_owner(network: Network, layer: Layer) -> Tensor | None:
    """(inputs,): the number of the channel that each input of a wide dense layer belongs to; None for other layers."""
    if layer.op.startswith("Conv") or layer.side == "left":
        return None
    channels = network.tensor_channels.get(layer.input, {}).get(len(layer.input_shape) - 1)
    if channels is None or len(channels) <= WIDEST:
        return None
    distinct, owner = np.unique(channels, return_inverse=True)
    return torch.from_numpy(owner) if len(distinct) < len(channels) else None


def tap(layer: Layer, statistic: Statistic, count: int, batch: int) -> Tap:
    """Rows of the layer's input as the statistic wants them, thinned out so that counting costs less than running."""
    channels = layer.input_shape[1] if layer.op.startswith("Conv") else layer.input_shape[-1]
    wanted = statistic.wanted(fan_in(layer) if statistic.rows == "grouped" else channels)
    most = statistic.places()
    if wanted is None:
        batches, limit = count, None
    else:
        samples = samples_wanted(layer, wanted, channels)
        if statistic.rows == "grouped":
            batches = batches_wanted(samples, count, batch)
        else:
            batches = -(-min(samples, MOST_LOOKED_AT) // batch)
        limit = -(-wanted // max(min(batches, count // batch), 1))

    def chosen(x: Tensor, rng: torch.Generator) -> Tensor | None:
        limits = [n for n in (limit, None if most is None else most * len(x)) if n is not None]
        return positions(layer, x, min(limits), rng) if limits else None

    def patches(x: Tensor, rng: torch.Generator) -> Tensor:
        found = rows(layer, x, layer.groups, chosen(x, rng))
        return found if statistic.rows == "grouped" else found.flatten(0, 1)

    if statistic.rows == "channels":
        assert limit is not None, "what looks at single channels says how many rows it wants"
        return Tap(layer.input, lambda x, rng: channel_rows(layer, x, limit, rng), statistic, batches)
    return Tap(layer.input, patches, statistic, batches)


def generator(seed: int, name: str, draw: int = 0) -> torch.Generator:
    """A generator of its own for every group and draw: what one group draws does not depend on which others there are."""
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + draw * 0x85EBCA6B + crc32(name.encode())) % 2**63)
