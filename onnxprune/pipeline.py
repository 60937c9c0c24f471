"""The whole story in one place: find, see, decide, do, say.

file    = load(model)                      find:   read it, refuse what is not ONNX
network = find(prepare(file.model))                layers, groups of channels, pins
job     = JOBS[method](...)                        removing channels, zeroing weights, or making layers thin
job.run(...)                               see, decide, do: one file each in jobs/
save(...)                                          whole or not at all
report  = ...                              say:    what it cost and gained, on held-out inputs
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from onnxprune.calibration.samples import open_samples
from onnxprune.contract import ChannelMethod, Method, RankMethod, WeightMethod
from onnxprune.devices import choose_device
from onnxprune.graph import find, load
from onnxprune.jobs.channels import ChannelJob
from onnxprune.jobs.job import Clock, Job, Progress, PruneResult
from onnxprune.jobs.ranks import RankJob
from onnxprune.jobs.weights import WeightJob
from onnxprune.methods import create
from onnxprune.request import MOST_SEED, Request, as_kinds, as_names, as_options, as_pattern, as_whole, prefers_width
from onnxprune.rewrite.save import check_target, save
from onnxprune.validation.gates import check_measured, check_outputs, check_there, evaluate, parse

__all__ = ["JOBS", "PruneResult", "prune"]

JOBS: dict[type[Method], type[Job]] = {ChannelMethod: ChannelJob, WeightMethod: WeightJob, RankMethod: RankJob}


def _silent(stage: str, share: float) -> None:
    """The default of `progress`."""


def prune(
    model: str | os.PathLike[str] | onnx.ModelProto,
    method: str = "coreset-channel",
    ratio: float | None = None,
    *,
    target: str | None = None,
    data: Any = None,
    test_data: Any = None,
    labels: str | os.PathLike[str] | NDArray[Any] | None = None,
    budget: str = "auto",
    align: str | int = "auto",
    repair: str = "auto",
    sequential: bool | None = None,
    reweigh: bool = True,
    beta: float | None = None,
    options: Mapping[str, Any] | None = None,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    kinds: str | Sequence[str] = (),
    through_norms: bool = False,
    keep_ends: bool = False,
    pattern: str | None = None,
    epsilon: float | None = None,
    guarantee_labels: float | None = None,
    sparse_storage: bool = False,
    device: str = "auto",
    threads: int = 1,
    seed: int = 0,
    samples: int = 1024,
    held_out: float = 0.2,
    batch: int = 32,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    mean: Any = None,
    std: Any = None,
    layout: str = "auto",
    latency: bool = True,
    gates: str | Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> PruneResult:
    """Prune a model, repair it, prove it, and report what that cost and gained.

    model         path of an .onnx file, or a ModelProto (which is not changed)
    method        see `onnxprune.methods.METHODS`; `options` and `beta` are passed to it
    ratio         share of the channels or weights to remove, 0 <= ratio < 1
    target        instead of ratio: 'macs=0.6', 'params=..', 'bytes=..' or 'latency=..', the share to keep
    data          calibration inputs (see calibration.sources.open_source); None: test data beside the model, else smooth noise
    test_data     inputs for the report; None: `held_out` of `data`. `labels`: their classes
    budget        'auto', 'uniform' or 'global' (see budget.allocate.by_ratio); of weight methods also 'row' and 'bound' (see
                  budget.weights.by_scope), and 'auto' is what the method's paper does
    align         'auto' or a block size for channel counts
    repair        'auto', 'least-squares', 'mean' or 'none'; `sequential`: refit on the pruned stream (default) or the original's
    reweigh       with repair 'none': apply the method's factors to the readers' weights
    only, skip    a glob or globs of group, layer or weight names
    kinds         only such channels go, see network.KINDS: 'head,neuron'; none: all but 'embedding', which has to be asked for
    keep_ends     of weight methods: the first and the last layer keep theirs
    pattern       of weight methods, instead of ratio: 'N:M', of every M neighbouring inputs of a row N stay
    epsilon       instead of ratio, of methods with a bound: the error that every layer's output may have at most
    guarantee_labels  instead of ratio: of one layer, the last or the one in `only`, so little goes that this share of the
                  calibration samples is guaranteed to keep its label (see decide.labels)
    sparse_storage  of weight methods: weights are written as sparse initializers where that makes the file smaller
    through_norms channels under the statistics of LayerNorm, RMSNorm and GroupNorm may go too (see graph.norms)
    gates         an expression or several that make the result fail, such as 'top1_agreement<0.95'
    output        save there as well
    progress      called with (stage, share done), also right before saving; what it raises stops the run

    Raises the errors of onnxprune.errors, each with a remedy.
    """
    request = Request(
        method=method, ratio=ratio, target=target, budget=budget, align=align, repair=repair, reweigh=reweigh,
        seed=as_whole("seed", seed, 0, MOST_SEED), sequential=sequential, only=as_names("only", only),
        skip=as_names("skip", skip), threads=as_whole("threads", threads, 1), batch=as_whole("batch", batch, 1),
        options=as_options(options, beta), gates=tuple(parse(gate) for gate in as_names("gates", gates)),
        kinds=as_kinds(kinds), through_norms=through_norms, keep_ends=keep_ends, pattern=as_pattern(pattern),
        epsilon=epsilon, guarantee_labels=guarantee_labels, sparse_storage=sparse_storage,
        samples=as_whole("samples", samples, 1), held_out=held_out,
    )  # fmt: skip
    chosen = create(method, **request.options)
    kind = next(job for target, job in JOBS.items() if isinstance(chosen, target))
    kind.check(request)
    for gate in request.gates:
        check_measured(gate, labels=labels is not None, latency=latency, parts=kind.parts)
    clock, move = Clock(), progress or _silent
    move("reading the model", 0.0)
    file = load(model)
    if output is not None:
        check_target(Path(output), file.files)
    chosen_device = choose_device(device)
    with clock.stage("find"):
        graph, inputs = open_samples(
            file, data, test_data, samples=request.samples, held_out=held_out, seed=request.seed,
            input_shapes=input_shapes, mean=mean, std=std, layout=layout,
        )  # fmt: skip
        network = find(graph, inner=prefers_width(request.kinds), through_norms=request.through_norms)
    for gate in request.gates:
        check_outputs(gate, graph.outputs)
    job = kind(request, chosen, file, graph, network, inputs, chosen_device, move, clock)
    result = job.run(labels, latency)
    to_come = ("total",) if output is None else ("save", "total")
    check_there(request.gates, result.report | {"timings": clock.seconds | dict.fromkeys(to_come, 0.0)})
    if output is not None:
        move("saving", 1.0)
        with clock.stage("save"):
            size = save(result.model, Path(output), file.external, file.files)
        saved = load(output)
        result.report["pruned"].update({"path": str(output), "sha256": saved.sha256, "bytes": size})
    result.report["timings"] = clock.seconds | {"total": time.perf_counter() - clock.start}
    result.report["gates"] = evaluate(request.gates, result.report)
    return result
