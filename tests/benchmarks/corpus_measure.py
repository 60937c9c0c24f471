"""What onnxprune can do with one ONNX file, as one row: what was found, what random cuts give, seconds and memory.

The models that are compared are onnxprune's (the cut, the masked twin); the comparison is plain ONNX Runtime and numpy.

    python tests/benchmarks/corpus_measure.py FILE SEED RATIO [RATIO ...]     # prints the row as JSON
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import onnxprune.pipeline  # noqa: F401  (so that no import is timed)
from onnxprune.calibration.fitting import settle
from onnxprune.calibration.noise import noise_maker
from onnxprune.calibration.samples import input_specs, valid_ids
from onnxprune.graph.find import find
from onnxprune.graph.load import load
from onnxprune.graph.prepare import prepare
from onnxprune.graph.structure import Graph
from onnxprune.network import Network
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.finish import finish
from onnxprune.rewrite.mask import masked_twin

Row = dict[str, Any]
Feeds = dict[str, np.ndarray]
Outputs = list[np.ndarray]

FEWEST = 4  # groups of fewer channels are left alone
BATCHES = (1, 3)
# int64 is shape arithmetic.
NO_WEIGHTS = {onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}
HALF = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


def measure(path: Path, ratios: Sequence[float], seed: int = 0) -> Row:
    """The row of one file. What the original itself cannot do is no fault: `cannot` says why nothing was compared then."""
    path.read_bytes()  # the reference is not to profit from our reading
    begin = time.perf_counter()
    file = load(path)
    tolerance, stored = tolerance_of(file.model), elements(file.model)
    before = resident()
    graph, folded = prepare(file.model)
    network = find(graph)
    seconds = time.perf_counter() - begin
    rng = np.random.default_rng(seed)
    kept = [choose(network, ratio, rng) for ratio in ratios]
    row: Row = {
        "mb": path.stat().st_size / 1e6, "nodes": len(graph.nodes), "elements": stored, "groups": len(network.groups),
        "kinds": dict(Counter(g.kind for g in network.groups)), "share": removable_share(graph, network),
        "pins": reasons(network), "tolerance": tolerance, "cuts": [], "seconds": seconds,
    }  # fmt: skip
    if any(kept):
        cut(graph, network, network.alive(kept[-1]))
    row["memory_mb"] = (peak() - before) / 1e6
    row["reference_seconds"] = plain_seconds(path)
    try:
        given = inputs(graph, seed)
    except Exception as error:
        return row | {"cannot": f"no inputs: {said(error)}"}
    original = {batch: run(str(path), feeds) for batch, feeds in given.items()}
    if isinstance(original[1], str):
        return row | {"cannot": f"the original does not run: {original[1]}"}
    works = {batch: given[batch] for batch, out in original.items() if not isinstance(out, str)}
    if folded:
        row["folding"] = worst_of(original, {batch: run(graph.model, feeds) for batch, feeds in works.items()})
    for ratio, choice in zip(ratios, kept, strict=True):
        row["cuts"].append({"ratio": ratio, **compare(graph, network, choice, works, original, stored)})
    return row


def compare(
    graph: Graph, network: Network, kept: Mapping[str, np.ndarray], given: Mapping[int, Feeds], original: Mapping[int, Any],
    stored: int,
) -> Row:  # fmt: skip
    """Cut and masked twin side by side. `moved`: what the removed channels were worth; 0 would prove nothing.

    `batch1`, `batch3`: whether the cut model runs, None where the original cannot or the batch is fixed.
    """
    if not kept:
        return {"difference": None, "lost": 0.0}
    alive = network.alive(kept)
    try:
        made = cut(graph, network, alive).model
        finish(made, graph, {})
        twin = masked_twin(graph, network, alive)
    except Exception as error:
        return {"error": f"cut: {said(error)}"}
    row: Row = {"lost": 1 - elements(made) / stored}
    small = {batch: run(made, feeds) for batch, feeds in given.items()}
    row |= {f"batch{b}": not isinstance(small[b], str) if b in small else None for b in BATCHES}
    failed = next((out for out in small.values() if isinstance(out, str)), None) or invalid(made, graph.model)
    if failed:
        return row | {"error": failed}
    zeroed = {batch: run(twin, feeds) for batch, feeds in given.items()}
    if failed := next((out for out in zeroed.values() if isinstance(out, str)), None):
        return row | {"error": f"masked twin: {failed}"}
    return row | {"difference": worst_of(zeroed, small), "moved": worst_of(original, zeroed)}


def said(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def choose(network: Network, ratio: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What stays of every group: random positions, at least one."""
    large = [g for g in network.groups if g.size >= FEWEST]
    return {g.name: np.sort(rng.permutation(g.size)[: g.size - int(g.size * ratio)]) for g in large}


def inputs(graph: Graph, seed: int) -> dict[int, Feeds]:
    """Batch -> smooth noise, token ids and masks that the model takes. A fixed batch stands under 1."""
    specs = settle(input_specs(graph))
    make = noise_maker(specs, graph.inputs, valid_ids(graph), seed)
    lengths = [s.shape[0] for s in specs if s.batched]
    fixed = next((n for n in lengths if n is not None), None)
    first = {1: (0, fixed or 1)} | ({3: (1, 3)} if lengths and fixed is None else {})
    found: dict[int, Feeds] = {}
    for batch, (start, count) in first.items():
        samples = [make(start + i) for i in range(count)]
        found[batch] = {s.name: np.concatenate([x[s.name] for x in samples]) if s.batched else samples[0][s.name] for s in specs}
    return found


def run(model: str | onnx.ModelProto, feeds: Feeds) -> Outputs | str:
    """All outputs, or what ONNX Runtime had to say."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    source = model if isinstance(model, str) else model.SerializeToString()
    try:
        found = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    except Exception as error:
        return said(error)
    return [v for v in found if isinstance(v, np.ndarray)]


def worst_of(expected: Mapping[int, Any], got: Mapping[int, Any]) -> float:
    if any(isinstance(out, str) for out in got.values()):
        return float("inf")
    return max(difference(e, g) for batch in got for e, g in zip(expected[batch], got[batch], strict=True))


def difference(expected: np.ndarray, got: np.ndarray) -> float:
    """The largest difference over the largest value; infinite where shapes differ or something is not finite."""
    a, b = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    if a.shape != b.shape or not (a == b)[~finite].all() or not np.isfinite(b[finite]).all():
        return float("inf")
    a, b = a[finite], b[finite]
    return float(np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-30))


def invalid(made: onnx.ModelProto, original: onnx.ModelProto) -> str:
    """What onnx.checker finds wrong with the cut model and not with the original."""
    found = []
    for model in (made, original):
        try:
            onnx.checker.check_model(model, full_check=True)
            found.append("")
        except Exception as error:
            found.append(said(error))
    return f"onnx.checker: {found[0]}" if found[0] and not found[1] else ""


def tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    constants = [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
    return [t for t in [*model.graph.initializer, *constants] if t.data_type not in NO_WEIGHTS]


def elements(model: onnx.ModelProto) -> int:
    return sum(prod(t.dims) for t in tensors(model))


def tolerance_of(model: onnx.ModelProto) -> float:
    """Relative; of quantised models one step of eight bits, over a range that lies on one side of zero or on both."""
    if any(re.search("Quantize|^QLinear|Integer$|NBits$", n.op_type) for n in model.graph.node):
        return 2 / 255
    return 1e-2 if any(t.data_type in HALF for t in tensors(model)) else 1e-4


def removable_share(graph: Graph, network: Network) -> float:
    """Share of the stored weights that lie on a channel of some group, along one axis or the other."""
    free = np.zeros(network.channel_count, bool)
    for group in network.groups:
        free[group.ids] = True
    axes: dict[str, dict[int, np.ndarray]] = {}
    for slot in network.slots:
        own = axes.setdefault(slot.parameter, {})
        own[slot.axis] = own.get(slot.axis, False) | free[slot.channels]
    stays = total = 0
    for name, tensor in graph.parameters.items():
        if tensor.data_type not in NO_WEIGHTS:
            total += prod(tensor.dims)
            own = axes.get(name, {})
            stays += prod(n - int(own[a].sum()) if a in own else n for a, n in enumerate(tensor.dims))
    return 1 - stays / max(total, 1)


def reasons(network: Network) -> dict[str, int]:
    """Why channels stay, names taken out, the commonest first: reason -> channels."""
    found: Counter[str] = Counter()
    for pin in network.pins:
        found[re.sub(r" *\(node '[^']*'\)", "", re.sub(r"(?<!node )'[^']*'", "...", pin.reason))] += pin.count
    return dict(found.most_common(5))


def plain_seconds(path: Path) -> float:
    begin = time.perf_counter()
    model = onnx.load(path)
    onnx.shape_inference.infer_shapes(model)
    return time.perf_counter() - begin


def resident() -> int:
    """Bytes in use now, without what was freed but kept; `peak` counts from here. Linux only: elsewhere 0."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    with contextlib.suppress(AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status("VmRSS")


def peak() -> int:
    return status("VmHWM")


def status(field: str) -> int:
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)


if __name__ == "__main__":
    name, number, *shares = sys.argv[1:]
    sys.stdout.write("\n" + json.dumps(measure(Path(name), [float(s) for s in shares], int(number))) + "\n")
