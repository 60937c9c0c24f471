"""How much an error in a layer's output matters at the end: measured, by disturbing it and running what comes behind.

Removing channels leaves, after the refit, an error in the outputs of the layers that read them. Errors of different layers are
comparable only by what they do to the model's outputs. To first order that is a gain per layer:

    gain = E ||f(y + noise) - f(y)||^2 / (||noise||^2 * spread of f)

with noise in proportion to each channel's own spread. Each probe runs only the nodes behind the layer, on a handful of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.observe import Progress
from onnxprune.calibration.segments import Parts, reads, segment
from onnxprune.calibration.sources import Source
from onnxprune.calibration.store import Arrays
from onnxprune.devices import Device
from onnxprune.graph.structure import FLOATS, Graph
from onnxprune.network import Layer
from onnxprune.runtime import Session

# Noise power as a share of the layer's variance: small enough for first order, large enough to stand out of rounding.
POWER = 0.02
MOST_SAMPLES, MEMORY = 16, 1 << 29


def measure_gains(
    graph: Graph, layers: Sequence[Layer], source: Source, *, device: Device, seed: int, progress: Progress
) -> dict[str, float]:
    """layer name -> relative squared change of the model's outputs per unit of squared error in the layer's output."""
    activations = [o for n in graph.nodes for o in n.output if o and o not in graph.constants and graph.types.get(o) in FLOATS]
    one = sum(4 * prod(graph.shapes[t]) for t in activations)
    batch = max(1, min(MOST_SAMPLES, source.count, MEMORY // max(one, 1)))
    feeds = next(source.batches(batch))
    every = [o for n in graph.nodes for o in n.output if o and o not in graph.constants and o in graph.types]
    parts = Parts(graph, graph.model)
    session = Session(parts.model(segment(graph, graph.inputs, every)), device)
    clean = feeds | session.run(feeds)
    session.free()
    rng = np.random.default_rng(seed)
    found = {}
    for number, layer in enumerate(layers):
        found[layer.name] = _gain(graph, parts, layer, clean, device, rng)
        progress("weighing the layers", (number + 1) / len(layers))
    return found


def _gain(graph: Graph, parts: Parts, layer: Layer, clean: Arrays, device: Device, rng: np.random.Generator) -> float:
    value = clean[layer.output]
    axis = 1 if layer.op.startswith("Conv") else value.ndim - 1
    others = tuple(a for a in range(value.ndim) if a != axis)
    wide = value.astype(np.float64)
    foreign = np.roll(wide, 1, axis=0) - wide.mean(others, keepdims=True)
    noise = foreign * rng.choice([-1.0, 1.0], (len(wide), *[1] * (wide.ndim - 1))) * POWER**0.5
    power: float = float((noise**2).sum()) / (value.size / value.shape[axis])
    if not power > 0:
        return 0.0
    behind = _behind(graph, layer.output)
    at_hand = {name: held for name, held in clean.items() if name not in behind}
    at_hand[layer.output] = (wide + noise).astype(value.dtype)
    changed: Arrays = {layer.output: at_hand[layer.output]}
    part = segment(graph, at_hand, [o for o in graph.outputs if o in behind and o in clean])
    if part.nodes:
        session = Session(parts.model(part), device)
        changed |= session.run(at_hand)
        session.free()
    return sum(_change(clean[o], changed[o]) for o in graph.outputs if o in changed) / power


def _change(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Squared change relative to the spread over the samples."""
    if before.dtype.kind not in "fV" or before.shape != after.shape:
        return 0.0
    a, b = before.astype(np.float64), after.astype(np.float64)
    return float(((a - b) ** 2).sum() / max(((a - a.mean(0)) ** 2).sum(), 1e-12 * (a**2).sum(), 1e-30))


def _behind(graph: Graph, tensor: str) -> set[str]:
    """The tensors that depend on this one."""
    found = {tensor}
    for index, node in enumerate(graph.nodes):
        if any(name in found for name in reads(graph, index)):
            found.update(o for o in node.output if o)
    return found - {tensor}
