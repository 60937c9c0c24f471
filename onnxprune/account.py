"""The figures of the report: sizes, costs and what was found, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite, prod
from statistics import median
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.budget.alignment import Choices
from onnxprune.budget.allocate import Counts
from onnxprune.calibration.fitting import fixed_batch
from onnxprune.calibration.repair import LayerRepair
from onnxprune.calibration.samples import Samples
from onnxprune.calibration.segments import reads
from onnxprune.figures import GroupFigures, ModelFigures, PinFigures
from onnxprune.graph.facts import WEIGHTS
from onnxprune.graph.load import ModelFile
from onnxprune.graph.structure import Graph
from onnxprune.network import Network

# A share that differs by more than this from the one asked for is worth a warning, and less of a difference where what stays is
# by this part of it more than was to stay; but none that the warning would not show.
FAR, MORE, SHOWN = 0.05, 0.2, 0.001
# A layer's error on a few samples is known to about a tenth.
GROWN = 1.1
# What a proof says where weights hold no numbers.
REPLACED = "; numbers stood for NaN and infinity in both"


def model_figures(file: ModelFile | None, graph: Graph, network: Network) -> ModelFigures:
    """Figures of one model; latency is measured later."""
    return ModelFigures(
        path=str(file.path) if file and file.path else None,
        sha256=file.sha256 if file else None,
        bytes=file.size if file else 0,
        parameters=sum(prod(t.dims) for t in graph.parameters.values() if t.data_type in WEIGHTS),
        macs=network.cost().macs,
        peak_memory_bytes=peak_memory(graph),
        latency_ms=None,
    )


def peak_memory(graph: Graph) -> int:
    """Most bytes of activations alive at once at the trial sizes: nodes run in order, each tensor lives until its last use."""
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


def alignment_figures(
    align: str | int, options: Sequence[Choices], counts: Counts, asked: float | None, *, error_first: bool = False
) -> dict[str, object]:
    """What alignment did: the block of each kind of group, and the share of channels asked for and removed.

    error_first   nothing: an error decided, and as many channels stay as its bound needs
    """
    total = sum(o.width * o.size for o in options)
    removed = sum(o.width * (o.size - counts[o.group]) for o in options)
    share = removed / max(total, 1)
    blocks = dict(sorted(Counter(1 if error_first else o.block for o in options).items(), reverse=True))
    wanted = f"{100 * asked:.1f} % asked, " if asked is not None else ""
    return {
        "summary": f"{_multiples(blocks)}: {wanted}{100 * share:.1f} % of the channels removed",
        "align": align,
        "groups_by_block": {str(b): n for b, n in blocks.items()},
        "channel_ratio_asked": asked,
        "channel_ratio": share,
    }


def missed(asked: float | None, got: float, what: str, why: str, remedy: str) -> list[str]:
    """A warning where limits kept the share that goes visibly below what was asked for (None: no share was)."""
    if asked is None or asked - got <= max(min(FAR, MORE * (1 - asked)), SHOWN):
        return []
    return [f"{100 * asked:.3g} % of the {what} were asked for, {100 * got:.3g} % could go: {why}; {remedy}"]


def missed_channels(alignment: Mapping[str, Any]) -> list[str]:
    """The same for channels, and where blocks make more go than was asked for."""
    asked, got = alignment["channel_ratio_asked"], alignment["channel_ratio"]
    blocks = alignment["groups_by_block"].keys() != {"1"}
    if asked is not None and got - asked > FAR:
        remedy = "; a smaller --align comes nearer" if blocks else ""
        return [f"{100 * asked:.3g} % of the channels were asked for, {100 * got:.3g} % went: only whole blocks can go{remedy}"]
    why = "every group keeps a tenth of its channels" + (" and whole blocks of them" if blocks else "")
    remedy = "a smaller --align may let more go" if blocks else "prune the result again for more"
    return missed(asked, got, "channels", why, remedy)


def emptied(weights: Sequence[str]) -> list[str]:
    """A warning for matrices that lost all their weights: that is seldom what somebody wants of a share."""
    if not weights:
        return []
    named = ", ".join(map(repr, weights[:3])) + (f" and {len(weights) - 3} more" if len(weights) > 3 else "")
    return [f"all weights of {named} went: nothing of the input comes through there; ask for less, or --skip such layers"]


def grown(done: Sequence[LayerRepair]) -> list[str]:
    """A warning where the repair took layers further from the original than they were without (mean and variance can)."""
    worse = [layer for layer in done if layer.after > GROWN * layer.before]
    if not worse:
        return []
    most = max(worse, key=lambda layer: layer.after / max(layer.before, 1e-30))
    return [
        f"the error of {len(worse)} of {_many(len(done), 'layer')} grew as mean and variance were matched, most of all in "
        f"{most.layer!r} from {most.before:.2g} to {most.after:.2g}; compare with --repair least-squares and none"
    ]


def left_broken(broken: Mapping[str, str]) -> list[str]:
    """A warning for weights without numbers that nobody asked to prune, each with its layer."""
    if not broken:
        return []
    named = ", ".join(f"{name!r} of layer {layer!r}" for name, layer in list(broken.items())[:3])
    more = f" and {_many(len(broken) - 3, 'other')}" if len(broken) > 3 else ""
    return [
        f"NaN or infinity in the weights {named}{more}, which stay as they are: outputs behind them may be no numbers, and "
        "layers behind them are not refitted; train or export the model again"
    ]


def _multiples(blocks: Mapping[int, int]) -> str:
    listed = [f"{block} ({groups})" for block, groups in blocks.items() if block > 1]
    if listed:
        listed[0] = listed[0].replace(")", f" {'group' if listed[0].endswith('(1)') else 'groups'})")
    anything = [f"any number ({_many(blocks[1], 'group')})"] if 1 in blocks else []
    return "kept channels: " + ", ".join([f"multiples of {', '.join(listed)}"] * bool(listed) + anything)


def repair_figures(kind: str, mode: str, done: Sequence[LayerRepair], left: Mapping[str, str], samples: int) -> dict[str, object]:
    """`error_before` and `error_after`: relative squared error of each layer's output on samples that the fit did not see."""
    layers = [
        {"layer": d.layer, "error_before": d.before, "error_after": d.after, "ridge": d.ridge, "rows": d.rows} for d in done
    ]
    summary = _repair_summary(kind, mode, done, left, samples)
    return {"summary": summary, "kind": kind, "mode": mode, "samples": samples, "layers": layers, "left_out": dict(left)}


def _repair_summary(kind: str, mode: str, done: Sequence[LayerRepair], left: Mapping[str, str], samples: int) -> str:
    if kind == "none":
        return "not at all, as asked: no weight was fitted to samples"
    if not done:
        return "nothing: no layer needs it" if not left else f"nothing: {_left_out(left)}"
    how = {"least-squares": "least squares", "mean": "mean and variance matched"}.get(kind, kind)
    errors = [[e for e in each if isfinite(e)] for each in ([d.before for d in done], [d.after for d in done])]
    figures = f", median relative squared error {median(errors[0]):.2g} -> {median(errors[1]):.2g}" if all(errors) else ""
    refitted = f"{how}, {mode}, on {_many(samples, 'sample')}: {_many(len(done), 'layer')} refitted{figures}"
    return f"{refitted}; {_left_out(left)}" if left else refitted


def _left_out(left: Mapping[str, str]) -> str:
    reasons = list(dict.fromkeys(left.values()))
    return f"{_many(len(left), 'layer')} left out ({'; '.join(reasons[:2])}{', ...' if len(reasons) > 2 else ''})"


def proof_figures(
    difference: float, samples: Samples, size: int, *, through_norms: bool = False, broken: bool = False
) -> dict[str, object]:
    """The largest relative difference to the masked twin on `size` samples, or on as many as the model takes at a time."""
    silent = "set to zero, in a LayerNorm or GroupNorm to the mean of the others" if through_norms else "set to zero"
    count = fixed_batch(samples.calibration.inputs) or min(size, samples.calibration.count)
    equal = "exactly" if difference == 0 else f"to {difference:.0e}"
    summary = f"before repair it equals its masked twin (those channels {silent}) {equal} on {_many(count, 'sample')}"
    summary += REPLACED if broken else ""
    return {"summary": summary, "max_relative_difference": difference, "samples": count}


def data_figures(samples: Samples) -> dict[str, object]:
    """What was calibrated on and what the report looked at."""
    calibration, test = samples.calibration, samples.test
    if not samples.held_out:
        judged = f"{test.label}, {_many(test.count, 'sample')}"
    elif np.array_equal(calibration.numbers, test.numbers):
        judged = "the same"
    else:
        judged = f"{_many(test.count, 'sample')} held out of the same"
    summary = f"calibration: {calibration.label}, {_many(calibration.count, 'sample')}; report: {judged}"
    return {"summary": summary, **samples.describe()}


def _many(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"
