"""`compare`: two models side by side on the same inputs; the last step of pruning, alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune import account
from onnxprune.calibration.samples import input_specs, valid_ids
from onnxprune.calibration.sources import open_source, refuse_without_images
from onnxprune.devices import choose_device
from onnxprune.errors import DataError
from onnxprune.figures import SCHEMA, Report
from onnxprune.graph import ModelFile, find, load, prepare
from onnxprune.runtime import Session
from onnxprune.validation.accuracy import AccuracyMeter, as_labels
from onnxprune.validation.deviation import measure
from onnxprune.validation.gates import check_measured, check_outputs, evaluate, parse
from onnxprune.validation.latency import time_models
from onnxprune.version import __version__


def compare(
    a: str | os.PathLike[str] | Any,
    b: str | os.PathLike[str] | Any,
    *,
    data: Any = None,
    labels: Any = None,
    device: str = "auto",
    threads: int = 1,
    samples: int = 1 << 30,
    batch: int = 32,
    mean: Any = None,
    std: Any = None,
    layout: str = "auto",
    latency: bool = True,
    gates: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> Report:
    """How model b differs from model a on `data`: sizes, latency, deviation of every output, accuracy if `labels` are given.

    The report has the keys of figures.Report; `original` is a, `pruned` is b, and what only pruning knows is empty.
    Raises DataError where the two models do not take the same inputs.
    """
    asked = [parse(g) for g in gates]
    for gate in asked:
        check_measured(gate, labels=labels is not None, latency=latency)
    files = load(a), load(b)
    graphs = [prepare(file.model, input_shapes)[0] for file in files]
    if graphs[0].inputs.keys() != graphs[1].inputs.keys():
        names = [", ".join(sorted(g.inputs)) for g in graphs]
        raise DataError(f"the models take different inputs: {names[0]} and {names[1]}", "compare models with the same inputs")
    for gate in asked:
        check_outputs(gate, graphs[0].outputs)
    where = choose_device(device)
    source = open_source(
        data, input_specs(graphs[0]), model_path=files[0].path, samples=samples if data is not None else min(samples, 64),
        mean=mean, std=std, layout=layout, shapes=graphs[0].inputs, int_high=valid_ids(graphs[0]),
    )  # fmt: skip
    refuse_without_images([source], mean, std, layout)
    meter = AccuracyMeter(as_labels(labels)) if labels is not None else None
    sessions = [Session(g.model, where) for g in graphs]
    told: list[str] = []
    deviation = measure(sessions[0], sessions[1], source.batches(batch), meter, told=told)
    for session in sessions:
        session.free()
    report = _report(files, graphs, source, where.provider)
    report["warnings"] += told
    report["deviation"], report["accuracy"] = deviation, meter.result() if meter else None
    if latency:
        figures = time_models(graphs[0].model, graphs[1].model, next(source.batches(1)), device=where, threads=threads)
        report["latency"] = figures
        report["original"]["latency_ms"], report["pruned"]["latency_ms"] = figures["original_ms"], figures["pruned_ms"]
    report["gates"] = evaluate(asked, report)
    return report


def _report(files: Sequence[ModelFile], graphs: Sequence[Any], source: Any, device: str) -> Report:
    figures = [account.model_figures(file, graph, find(graph)) for file, graph in zip(files, graphs, strict=True)]
    summary = f"{source.label} ({source.count} samples)"
    described = {"test": source.label, "test_samples": source.count, "real": source.real, "summary": summary}
    return Report(
        schema=SCHEMA, tool={"name": "onnxprune", "version": __version__}, method="", options={}, ratio=None, seed=0,
        device=device, original=figures[0], pruned=figures[1], groups=[], weights=[], ranks=[], removed={},
        removed_by_block={}, reordered={}, pinned=[], repair={}, alignment={}, sparsity=None, storage={}, bounds={},
        latency=None, deviation={}, accuracy=None, proof={}, data=described, gates=[], timings={}, warnings=list(source.warnings),
    )  # fmt: skip
