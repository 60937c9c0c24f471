"""The whole story in one place: find, see, decide, do, say.

file    = load(model)                      find:   read it, refuse what is not ONNX
network = find(prepare(file.model))                layers, groups of channels, pins
arrange(...)                                       what goes together in grouped convolutions goes by rank, not by position
facts   = gather(..., calibration)         see:    one pass over sample inputs
counts  = by_ratio(...) or by_target(...)  decide: how many channels every group keeps, and which
cut     = cut(graph, network, alive)       do:     smaller tensors
prove(...)                                         equal to the masked twin, or an error
Repair(...).run(...)                               refit what reads fewer channels than before
save(...)                                          whole or not at all
report  = ...                              say:    what it cost and gained, on held-out inputs
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from onnxprune import account, decide
from onnxprune.budget.allocate import Counts, by_ratio, by_target, resource
from onnxprune.calibration.repair import LayerRepair, Repair, repairable
from onnxprune.calibration.samples import Samples, open_samples
from onnxprune.compensation.least_squares import least_squares, match_moments
from onnxprune.contract import ChannelPlan, Method
from onnxprune.devices import Device, choose_device
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.figures import SCHEMA, LatencyFigures, Report
from onnxprune.graph import Graph, ModelFile, find, load, prepare
from onnxprune.methods import create
from onnxprune.network import Bools, Network
from onnxprune.request import Request, as_kinds, prefers_width
from onnxprune.rewrite.arrange import Orders, original_positions
from onnxprune.rewrite.cut import Cut, cut
from onnxprune.rewrite.finish import finish, reweigh
from onnxprune.rewrite.prove import check_valid, prove
from onnxprune.rewrite.save import check_target, save
from onnxprune.runtime import Session
from onnxprune.validation.accuracy import AccuracyMeter, as_labels
from onnxprune.validation.deviation import measure
from onnxprune.validation.gates import check_measured, check_outputs, evaluate, parse
from onnxprune.validation.latency import time_models
from onnxprune.version import __version__

Progress = Callable[[str, float], None]
SOLVERS = {"least-squares": least_squares, "mean": match_moments}
# Samples on which the rewrite is held against its masked twin.
PROOF_BATCH = 2
# Bytes of the largest activation of one batch, and the fewest samples of a batch whatever their size.
BATCH_BYTES, FEWEST_AT_ONCE = 1 << 20, 4


def _silent(stage: str, share: float) -> None:
    """The default of `progress`."""


@dataclass(frozen=True)
class PruneResult:
    """`model`: the pruned model, weights inside. `report`: see figures.Report; the same dictionary that --json writes."""

    model: onnx.ModelProto = field(repr=False)
    report: Report
    external: Mapping[str, str] = field(default_factory=dict, repr=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model, whole or not at all; external data in the style of the original. Raises SaveError."""
        target = Path(path)
        source = self.report["original"]["path"]
        check_target(target, Path(source) if source else None)
        save(self.model, target, self.external)
        return target


@dataclass
class _Clock:
    """Seconds spent in each stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


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
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    kinds: str | Sequence[str] = (),
    through_norms: bool = False,
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
    gates: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> PruneResult:
    """Prune a model, repair it, prove it, and report what that cost and gained.

    model         path of an .onnx file, or a ModelProto (which is not changed)
    method        see `onnxprune.methods.METHODS`; `options` and `beta` are passed to it
    ratio         share of the channels to remove, 0 <= ratio < 1
    target        instead of ratio: 'macs=0.6', 'params=..', 'bytes=..' or 'latency=..', the share to keep
    data          calibration inputs (see calibration.sources.open_source); None: test data beside the model, else smooth noise
    test_data     inputs for the report; None: `held_out` of `data`. `labels`: their classes
    budget        'auto', 'uniform' or 'global' (see budget.allocate.by_ratio)
    align         'auto' or a block size for channel counts
    repair        'auto', 'least-squares', 'mean' or 'none'; `sequential`: refit on the pruned stream (default) or the original's
    reweigh       with repair 'none': apply the method's factors to the readers' weights
    only, skip    globs of group, layer or weight names
    kinds         only such channels go, see network.KINDS: 'head,neuron'; none: all but 'embedding', which has to be asked for
    through_norms channels under the statistics of LayerNorm, RMSNorm and GroupNorm may go too (see graph.norms)
    gates         expressions that make the result fail, such as 'top1_agreement<0.95'
    output        save there as well

    Raises the errors of onnxprune.errors, each with a remedy.
    """
    request = Request(
        method=method, ratio=ratio, target=target, budget=budget, align=align, repair=repair, reweigh=reweigh, seed=seed,
        sequential=sequential, only=tuple(only), skip=tuple(skip), threads=threads, batch=batch,
        options=dict(options or {}) | ({} if beta is None else {"beta": beta}), gates=tuple(parse(g) for g in gates),
        kinds=as_kinds(kinds), through_norms=through_norms,
    )  # fmt: skip
    for gate in request.gates:
        check_measured(gate, labels=labels is not None, latency=latency)
    clock = _Clock()
    file = load(model)
    if output is not None:
        check_target(Path(output), file.path)
    chosen_device = choose_device(device)
    with clock.stage("find"):
        graph, inputs = open_samples(
            file, data, test_data, samples=samples, held_out=held_out, seed=seed, input_shapes=input_shapes, mean=mean,
            std=std, layout=layout,
        )  # fmt: skip
        network = find(graph, inner=prefers_width(request.kinds), through_norms=request.through_norms)
    for gate in request.gates:
        check_outputs(gate, graph.outputs)
    job = _Job(request, file, graph, network, inputs, chosen_device, progress or _silent, clock)
    result = job.run(labels, latency)
    if output is not None:
        with clock.stage("save"):
            size = save(result.model, Path(output), file.external)
        saved = load(output)
        result.report["pruned"].update({"path": str(output), "sha256": saved.sha256, "bytes": size})
    result.report["timings"] = clock.seconds | {"total": time.perf_counter() - clock.start}
    result.report["gates"] = evaluate(request.gates, result.report)
    return result


@dataclass
class _Job:
    """One pruning run; the stages of the story are its methods, in the order of the story."""

    request: Request
    file: ModelFile
    graph: Graph
    network: Network
    samples: Samples
    device: Device
    progress: Progress
    clock: _Clock
    orders: dict[str, Orders] = field(default_factory=dict)

    def run(self, labels: Any, latency: bool) -> PruneResult:
        method = create(self.request.method, **self.request.options)
        with self.clock.stage("observe"):
            decisions = self._see(method)
        with self.clock.stage("decide"):
            counts = self._budget(decisions)
            self._check_counts(decisions, counts)
            plans = decide.plans(method, decisions, counts, self.request.seed)
        alive = self.network.alive({name: plan.keep.numpy(force=True) for name, plan in plans.items()})
        with self.clock.stage("rewrite"):
            made = cut(self.graph, self.network, alive)
        with self.clock.stage("prove"):
            difference = prove(self.graph, self.network, alive, made.model, self.samples.few(PROOF_BATCH), self.device)
        with self.clock.stage("repair"):
            done, left = self._repair(made, alive, plans)
        with self.clock.stage("finish"):
            finish(made.model, self.graph, self._provenance(method))
            warnings = check_valid(made.model, self.graph.model)
        report = self._report(method, made, counts, decisions, done, left, difference, warnings)
        report["warnings"] += account.shortfall(report["alignment"])
        with self.clock.stage("validate"):
            self._validate(made.model, report, labels, latency)
        return PruneResult(made.model, report, self.file.external)

    def _see(self, method: Method) -> list[decide.Decision]:
        """Evidence, scores and losses of every group that may be pruned."""
        request = self.request
        groups = decide.select(self.network, method, request.only, request.skip, request.kinds)
        decide.check_weights(self.graph, self.network)
        few = self.samples.few(PROOF_BATCH)
        self.graph, self.orders = decide.arranged(self.graph, self.network, groups, few, self.device)
        if self.orders:
            self.network = find(self.graph, inner=prefers_width(request.kinds), through_norms=request.through_norms)
            groups = [self.network.group[group.name] for group in groups]
        evidence = decide.gather(
            self.graph, self.network, groups, method, self.samples.calibration, weigh=request.budget == "auto",
            batch=self._batch(), device=self.device, seed=request.seed, progress=self.progress,
        )  # fmt: skip
        return decide.judge(
            self.graph, self.network, groups, method, evidence, align=request.align, seed=request.seed, device=self.device
        )

    def _batch(self) -> int:
        """As many samples at a time as was asked for, fewer where their activations are large: beyond that only memory grows."""
        largest = max(4 * max(prod(layer.input_shape), prod(layer.output_shape)) for layer in self.network.layers)
        return min(self.samples.batch(self.request.batch), max(FEWEST_AT_ONCE, BATCH_BYTES // largest))

    def _budget(self, decisions: Sequence[decide.Decision]) -> Counts:
        kind, share = self.request.goal
        candidates = [d.candidate for d in decisions]
        if kind == "channels":
            return by_ratio(self.request.budget, candidates, 1 - share)
        if kind == "latency":
            return self._by_latency(decisions, share)
        rationed = resource(self.network, kind, new_biases=self.request.repair_kind != "none")
        return by_target(self.request.budget, candidates, rationed, share)

    def _check_counts(self, decisions: Sequence[decide.Decision], counts: Counts) -> None:
        """Asked for something, got nothing: that is no result."""
        choices = [d.candidate.choices for d in decisions]
        if self.request.goal[1] < 1 and all(counts[c.group] == c.size for c in choices):
            block = min(c.block for c in choices)
            raise NothingToPruneError(
                f"no group of channels is large enough to lose a block of {block}", "ask for more, or use a smaller --align"
            )

    def _by_latency(self, decisions: Sequence[decide.Decision], share: float) -> Counts:
        """Measured, not modelled: bisect over the share of multiplications until the pruned model's time fits."""
        candidates = [d.candidate for d in decisions]
        macs = resource(self.network, "macs")
        least = macs({c.name: c.choices.counts[-1] for c in candidates})
        low, high, best = least, 1.0, by_target(self.request.budget, candidates, macs, least)
        for _ in range(7):
            middle = (low + high) / 2
            counts = by_target(self.request.budget, candidates, macs, middle)
            kept = {d.view.name: d.order[: counts[d.view.name]].sort().values.numpy(force=True) for d in decisions}
            figures = self._latency(cut(self.graph, self.network, self.network.alive(kept)).model, seconds=2.0)
            if 1 / figures["speedup"] <= share:
                low, best = middle, counts
            else:
                high = middle
        if low == least:
            raise UsageError(
                f"a latency of {share:g} of the original's cannot be reached on this machine", "ask for a larger share"
            )
        return best

    def _repair(self, made: Cut, alive: Bools, plans: Mapping[str, ChannelPlan]) -> tuple[list[LayerRepair], dict[str, str]]:
        kind = self.request.repair_kind
        if kind == "none":
            return [], reweigh(made, self.graph, self.network, plans) if self.request.reweigh else {}
        layers, left = repairable(self.graph, self.network, alive)
        worker = Repair(self.graph, self.network, made, alive, solver=SOLVERS[kind], device=self.device, seed=self.request.seed)
        return worker.run(
            layers, self.samples.calibration, self._batch(), self.progress, sequential=self.request.sequential is not False
        ), left

    def _provenance(self, method: Method) -> dict[str, str]:
        request = self.request
        return {
            "onnxprune.version": __version__,
            "onnxprune.method": method.name,
            "onnxprune.options": ", ".join(f"{k}={v}" for k, v in sorted(self._options(method).items())),
            "onnxprune.ratio": str(request.ratio) if request.target is None else str(request.target),
            "onnxprune.seed": str(request.seed),
            "onnxprune.sha256_source": self.file.sha256,
        }

    def _options(self, method: Method) -> dict[str, Any]:
        request = self.request
        return {
            "budget": request.budget, "align": request.align, "repair": request.repair_kind, "reweigh": request.reweigh,
            "sequential": request.sequential is not False, "target": request.target, "only": list(request.only),
            "skip": list(request.skip), "kinds": list(request.kinds), "through_norms": request.through_norms,
        } | method.values  # fmt: skip

    def _report(
        self, method: Method, made: Cut, counts: Counts, decisions: Sequence[decide.Decision], done: Sequence[LayerRepair],
        left: Mapping[str, str], difference: float, warnings: Sequence[str],
    ) -> Report:  # fmt: skip
        request = self.request
        pruned, _ = prepare(made.model, self.graph.inputs)
        mode = "none" if request.repair_kind == "none" else "sequential" if request.sequential is not False else "parallel"
        figures = account.model_figures(None, pruned, find(pruned))
        figures["bytes"] = made.model.ByteSize()
        positions = original_positions(made.removed, self.orders)
        return Report(
            schema=SCHEMA,
            tool={"name": "onnxprune", "version": __version__},
            method=method.name,
            options=self._options(method),
            ratio=request.ratio,
            seed=request.seed,
            device=self.device.provider,
            original=account.model_figures(self.file, self.graph, self.network),
            pruned=figures,
            groups=account.group_figures(self.network, counts),
            removed=positions.removed,
            removed_by_block=positions.removed_by_block,
            reordered=positions.reordered,
            pinned=account.pin_figures(self.network),
            repair=account.repair_figures(request.repair_kind, mode, done, left, self.samples.calibration.count),
            alignment=account.alignment_figures(request.align, [d.candidate.choices for d in decisions], counts, request.ratio),
            latency=None,
            deviation={},
            accuracy=None,
            proof=account.proof_figures(difference, self.samples, PROOF_BATCH, through_norms=bool(self.network.norms)),
            data=account.data_figures(self.samples),
            gates=[],
            timings={},
            warnings=[*self.file.notes, *self.samples.warnings, *([self.device.note] if self.device.note else []), *warnings],
        )

    def _validate(self, model: onnx.ModelProto, report: Report, labels: Any, latency: bool) -> None:
        """Deviation and accuracy on inputs that nothing was fitted to; latency of both, in turns."""
        meter = AccuracyMeter(self.samples.labels(as_labels(labels))) if labels is not None else None
        original, pruned = Session(self.graph.model, self.device), Session(model, self.device)
        report["deviation"] = measure(original, pruned, self.samples.test.batches(self.samples.batch(self.request.batch)), meter)
        report["accuracy"] = meter.result() if meter else None
        original.free()
        pruned.free()
        if latency:
            self.progress("timing both models", 0.0)
            figures = self._latency(model)
            report["latency"] = figures
            report["original"]["latency_ms"], report["pruned"]["latency_ms"] = figures["original_ms"], figures["pruned_ms"]

    def _latency(self, model: onnx.ModelProto, seconds: float = 6.0) -> LatencyFigures:
        feeds = next(self.samples.test.batches(1))
        return time_models(self.graph.model, model, feeds, device=self.device, threads=self.request.threads, seconds=seconds)
