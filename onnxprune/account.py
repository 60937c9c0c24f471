"""The figures of the report: sizes, costs and what was found, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import onnx
from onnx import helper

from onnxprune.budget.allocate import Counts
from onnxprune.budget.alignment import Choices
from onnxprune.calibration.repair import LayerRepair
from onnxprune.calibration.segments import reads
from onnxprune.figures import GroupFigures, ModelFigures, PinFigures
from onnxprune.graph.load import ModelFile
from onnxprune.graph.structure import FLOATS, Graph
from onnxprune.network import Network


def model_figures(file: ModelFile | None, graph: Graph, network: Network) -> ModelFigures:
    """Figures of one model; latency is measured later."""
    return ModelFigures(
        path=str(file.path) if file and file.path else None,
        sha256=file.sha256 if file else None,
        bytes=file.size if file else 0,
        parameters=sum(prod(t.dims) for t in graph.parameters.values() if t.data_type in FLOATS),
        macs=network.cost().macs,
        peak_memory_bytes=peak_memory(graph),
        latency_ms=None,
    )


def peak_memory(graph: Graph) -> int:
    """Most bytes of activations alive at once at the trial sizes, if the nodes run in order and each tensor lives until its last use."""
    last: dict[str, int] = {}
    for index in range(len(graph.nodes)):
        for name in reads(graph, index):
            last[name] = index
    end = len(graph.nodes)
    last |= dict.fromkeys(graph.outputs, end)
    alive = sum(_bytes(graph, name) for name in graph.inputs)
    peak = alive
    for index, node in enumerate(graph.nodes):
        alive += sum(_bytes(graph, o) for o in node.output if o)
        peak = max(peak, alive)
        finished = {n for n in [*reads(graph, index), *node.output] if n and last.get(n, index) == index}
        alive -= sum(_bytes(graph, n) for n in finished)
    return peak


def _bytes(graph: Graph, name: str) -> int:
    if name in graph.constants or name not in graph.shapes:
        return 0
    element = graph.types[name]
    size = helper.tensor_dtype_to_np_dtype(element).itemsize if element != onnx.TensorProto.STRING else 8
    return prod(graph.shapes[name]) * size


def group_figures(network: Network, counts: Counts) -> list[GroupFigures]:
    return [
        GroupFigures(
            name=g.name,
            kind=g.kind,
            channels=g.size,
            kept=counts.get(g.name, g.size),
            layers=list(dict.fromkeys([*g.makers, *g.readers])),
        )
        for g in network.groups
    ]


def pin_figures(network: Network) -> list[PinFigures]:
    return [PinFigures(tensor=p.tensor, reason=p.reason, channels=p.count) for p in network.pins]


def alignment_figures(align: str | int, options: Sequence[Choices], counts: Counts, asked: float | None) -> dict[str, object]:
    """What alignment did: the block of each kind of group, and the share of channels asked for and removed."""
    total = sum(o.size for o in options)
    removed = sum(o.size - counts[o.group] for o in options)
    blocks: dict[str, int] = {}
    for o in options:
        blocks[str(o.block)] = blocks.get(str(o.block), 0) + 1
    return {"align": align, "groups_by_block": blocks, "channel_ratio_asked": asked, "channel_ratio": removed / max(total, 1)}


def repair_figures(kind: str, mode: str, done: Sequence[LayerRepair], left: Mapping[str, str], samples: int) -> dict[str, object]:
    """`error_before` and `error_after`: relative squared error of each layer's output on samples that the fit did not see."""
    layers = [
        {"layer": d.layer, "error_before": d.before, "error_after": d.after, "ridge": d.ridge, "rows": d.rows} for d in done
    ]
    return {"kind": kind, "mode": mode, "samples": samples, "layers": layers, "left_out": dict(left)}
