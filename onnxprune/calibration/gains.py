"""How much an error in a layer's output matters at the end: measured, by disturbing it and running what comes behind.

Removing channels leaves, after the refit, an error in the outputs of the layers that read them. Errors of different layers are
comparable only by what they do to the model's outputs. To first order that is a gain per layer:

    gain = E ||f(y + noise) - f(y)||^2 / (||noise||^2 * spread of f)

with noise that looks like the layer's own output (another sample's deviation from the mean): white noise would be averaged away
by the first pooling behind it. The model runs once without noise and keeps the layers' outputs; then it is taken in parts, and a
probe starts at the part that its layer lies in, through an addition behind the layer. The probes of all layers together cost at
most about half a pass over the samples, unless these are fewer than two per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.calibration.observe import Progress
from onnxprune.calibration.segments import Parts, segment
from onnxprune.calibration.sources import Source
from onnxprune.calibration.store import Arrays
from onnxprune.devices import Device
from onnxprune.graph.structure import Graph
from onnxprune.network import Layer
from onnxprune.runtime import Session

# Noise power as a share of the layer's variance: small enough for first order, large enough to stand out of rounding.
POWER = 0.02
# Two samples at least: the noise of one is the other's deviation. MobileNetV2 at 0.8 of the MACs deviates 2.5 % less with four.
FEWEST_SAMPLES, ENOUGH_SAMPLES, MOST_SAMPLES, MEMORY = 2, 4, 16, 1 << 27
# Every part is a session of its own: with so many of them probes run little more than half of the model on average.
PARTS = 6
CLEAN, ADDED = "@clean", "@added"


def measure_gains(
    graph: Graph, layers: Sequence[Layer], source: Source, *, device: Device, seed: int, progress: Progress
) -> dict[str, float]:
    """layer name -> relative squared change of the model's outputs per unit of squared error in the layer's output."""
    outputs = [o for o in graph.outputs if o in graph.types and o not in graph.constants]
    feeds = next(source.batches(_batch(graph, layers, source)))
    ordered = sorted(layers, key=lambda layer: layer.node)
    clean = feeds | _run_clean(graph, [*outputs, *(layer.output for layer in ordered)], feeds, device)
    rng = np.random.default_rng(seed)
    found: dict[str, float] = {}
    size = -(-len(ordered) // PARTS)
    for start in range(0, len(ordered), max(size, 1)):
        part = ordered[start : start + size]
        known = [*graph.inputs, *(layer.output for layer in ordered[:start])]
        session = Session(_with_inlets(graph, part, known, outputs), device)
        quiet = {layer.output + ADDED: _silence(graph, layer.output) for layer in part}
        behind = [o for o in outputs if o not in known]
        for layer in part:
            noise, power = _noise(layer, clean[layer.output], rng)
            found[layer.name] = 0.0
            if power > 0:
                disturbed = session.run(clean | quiet | {layer.output + ADDED: noise}, behind)
                found[layer.name] = sum(_change(clean[o], disturbed[o]) for o in behind) / power
            progress("weighing the layers", len(found) / len(layers))
        session.free()
    return found


def _run_clean(graph: Graph, tensors: Sequence[str], feeds: Arrays, device: Device) -> Arrays:
    part = segment(graph, graph.inputs, list(dict.fromkeys(tensors)))
    session = Session(Parts(graph, graph.model).model(part), device)
    try:
        return session.run(feeds)
    finally:
        session.free()


def _batch(graph: Graph, layers: Sequence[Layer], source: Source) -> int:
    """Samples per probe: few where there are many layers, so that all probes together stay near a pass; and what fits."""
    one = sum(4 * prod(graph.shapes[layer.output]) for layer in layers)
    within_one_pass = source.count // max(len(layers), 1)
    wanted = max(FEWEST_SAMPLES, min(ENOUGH_SAMPLES, within_one_pass), min(MOST_SAMPLES, within_one_pass // 2))
    return max(1, min(wanted, source.count, MEMORY // max(one, 1)))


def _with_inlets(graph: Graph, layers: Sequence[Layer], known: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The model behind the `known` tensors with an addition behind every layer: `NAME@clean` + `NAME@added` = `NAME`."""
    inlets = {layer.output for layer in layers}
    model = Parts(graph, graph.model).model(segment(graph, known, list(dict.fromkeys([*outputs, *sorted(inlets)]))))
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in inlets:
                node.output[i] = name + CLEAN
                nodes.append(helper.make_node("Add", [name + CLEAN, name + ADDED], [name]))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    for name in sorted(inlets):
        model.graph.input.append(helper.make_tensor_value_info(name + ADDED, graph.types[name], None))
    return model


def _silence(graph: Graph, tensor: str) -> NDArray[Any]:
    """Zeros that broadcast to any size of the tensor."""
    return np.zeros([1] * len(graph.shapes[tensor]), helper.tensor_dtype_to_np_dtype(graph.types[tensor]))


def _noise(layer: Layer, value: NDArray[Any], rng: np.random.Generator) -> tuple[NDArray[Any], float]:
    """Other samples' deviations with random signs, and their squared sum per position."""
    axis = 1 if layer.op.startswith("Conv") else value.ndim - (2 if layer.side == "left" else 1)
    others = tuple(a for a in range(value.ndim) if a != axis)
    noise = np.roll(value, 1, axis=0).astype(np.float32, copy=False)
    noise -= noise.mean(others, keepdims=True, dtype=np.float64).astype(np.float32)
    noise *= (rng.choice([-1.0, 1.0], (len(value), *[1] * (value.ndim - 1))) * POWER**0.5).astype(np.float32)
    power = float(np.square(noise).sum(dtype=np.float64)) / (value.size / value.shape[axis])
    return noise.astype(value.dtype, copy=False), power


def _change(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Squared change relative to the spread over the samples."""
    if before.dtype.kind not in "fV" or before.shape != after.shape:
        return 0.0
    a, b = before.astype(np.float64), after.astype(np.float64)
    # What is no number says nothing: masks are infinite by design, and layers may be broken that are to stay as they are.
    none = ~(np.isfinite(a) & np.isfinite(b))
    a[none] = b[none] = 0.0
    return float(((a - b) ** 2).sum() / max(((a - a.mean(0)) ** 2).sum(), 1e-12 * (a**2).sum(), 1e-30))
