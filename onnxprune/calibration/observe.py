"""SEE: run a model on sample inputs, tap the tensors somebody wants to look at, count, and forget each batch at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from onnxprune.calibration.segments import Parts, segment
from onnxprune.calibration.sources import Source
from onnxprune.contract import Statistic
from onnxprune.devices import Device
from onnxprune.errors import DataError
from onnxprune.graph.structure import Graph
from onnxprune.runtime import Session

# Bytes of tapped activations that one run may give back.
TAP_BUDGET = 1 << 30
Rows = Callable[[Tensor, torch.Generator], Tensor]
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Tap:
    """Count `statistic` over `rows(tensor)` of every batch."""

    tensor: str
    rows: Rows
    statistic: Statistic


def observe(
    graph: Graph, taps: Sequence[Tap], source: Source, *, batch: int, device: Device, seed: int, progress: Progress
) -> int:
    """Run the original model over all samples and fill the taps' statistics. Returns the number of samples seen.

    What would not fit in memory together is tapped in several passes.
    """
    if not taps:
        return 0
    seen = 0
    passes = _passes(graph, sorted({t.tensor for t in taps}), batch)
    for number, tensors in enumerate(passes):
        part = segment(graph, graph.inputs, [t for t in tensors if t not in graph.inputs])
        session = Session(Parts(graph, graph.model).model(part), device) if part.nodes else None
        rng = torch.Generator().manual_seed(seed)
        seen = 0
        for feeds in source.batches(batch):
            found = session.run(feeds) if session else {}
            arrays = {
                name: torch.from_numpy(value).to(device.torch_device)
                for name, value in {**feeds, **found}.items()
                if name in tensors
            }
            for tap in taps:
                if tap.tensor in arrays:
                    tap.statistic.add(finite(tap.rows(arrays[tap.tensor].float(), rng), tap.tensor))
            seen += len(next(iter(feeds.values())))
            progress("looking at the model", (number + min(seen / max(source.count, 1), 1)) / len(passes))
        if session:
            session.free()
    return seen


def finite(values: Tensor, tensor: str) -> Tensor:
    """The values, or an error that names the tensor: one NaN in a sum of products spoils a whole layer without a word."""
    if not bool(torch.isfinite(values).all()):
        raise DataError(
            f"the model gives NaN or infinity in {tensor!r} on the sample inputs", "check the samples' scale, or the model"
        )
    return values


def _passes(graph: Graph, tensors: Sequence[str], batch: int) -> list[list[str]]:
    """Tensors that fit into the tap budget together, pass by pass."""
    passes: list[list[str]] = [[]]
    used = 0
    for name in tensors:
        size = 4 * batch * prod(graph.shapes.get(name, ()))
        if passes[-1] and used + size > TAP_BUDGET:
            passes.append([])
            used = 0
        passes[-1].append(name)
        used += size
    return passes
