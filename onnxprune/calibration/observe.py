"""SEE: run a model on sample inputs, tap the tensors somebody wants to look at, count, and forget each batch at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod

import torch
from torch import Tensor

from onnxprune.calibration.segments import Parts, segment
from onnxprune.calibration.sources import Source
from onnxprune.calibration.store import Arrays
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
    """Count `statistic` over `rows(tensor)` of the first `batches` batches, or of all."""

    tensor: str
    rows: Rows
    statistic: Statistic
    batches: int | None = None


def observe(
    graph: Graph, taps: Sequence[Tap], source: Source, *, batch: int, device: Device, seed: int, progress: Progress
) -> int:
    """Run the original model and fill the taps' statistics, on all samples or as many as they want.

    Returns the number of samples seen.

    What would not fit in memory together is tapped in several passes.
    """
    if not taps:
        return 0
    most = 0
    passes = _passes(graph, sorted({t.tensor for t in taps}), batch)
    for number, tensors in enumerate(passes):
        mine = [t for t in taps if t.tensor in tensors]
        rng = torch.Generator().manual_seed(seed)
        stream = source.batches(batch)
        begin = seen = 0
        # Who has seen enough leaves: what nobody looks at any more is not handed out of the session either.
        for end in sorted({t.batches or source.count for t in mine}):
            hungry = [t for t in mine if (t.batches or source.count) >= end]
            part = segment(graph, graph.inputs, [t for t in tensors if t not in graph.inputs and t in {h.tensor for h in hungry}])
            session = Session(Parts(graph, graph.model).model(part), device) if part.nodes else None
            for feeds in islice(stream, end - begin):
                _look(feeds | (session.run(feeds) if session else {}), hungry, device, rng)
                seen += len(next(iter(feeds.values())))
                progress("looking at the model", (number + min(seen / max(source.count, 1), 1)) / len(passes))
            begin = end
            if session:
                session.free()
        most = max(most, seen)
    return most


def _look(found: Arrays, taps: Sequence[Tap], device: Device, rng: torch.Generator) -> None:
    for tap in taps:
        value = torch.from_numpy(found[tap.tensor]).to(device.torch_device).float()
        for part in torch.split(value, 1) if tap.statistic.by_sample else [value]:
            tap.statistic.add(finite(tap.rows(part, rng), tap.tensor))


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
