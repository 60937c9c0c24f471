"""What every pruning run does whatever goes: finish the model, validate it, and tell it all in one report."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import onnx

from onnxprune import account
from onnxprune.calibration.repair import LayerRepair
from onnxprune.calibration.samples import Samples
from onnxprune.contract import Method
from onnxprune.decide import labels as guarantee
from onnxprune.decide.bounds import refuse_unbounded
from onnxprune.decide.evidence import check_weights
from onnxprune.devices import Device
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.figures import SCHEMA, LatencyFigures, Report
from onnxprune.graph import Graph, ModelFile, find, prepare
from onnxprune.graph.recurrence import recurrent_layers
from onnxprune.methods import known
from onnxprune.network import Layer, Network
from onnxprune.request import Request, in_words
from onnxprune.rewrite.finish import finish
from onnxprune.rewrite.prove import check_valid
from onnxprune.rewrite.save import check_target, save
from onnxprune.runtime import Session
from onnxprune.validation.accuracy import AccuracyMeter, as_labels
from onnxprune.validation.deviation import measure
from onnxprune.validation.latency import time_models
from onnxprune.version import __version__

Progress = Callable[[str, float], None]
# Bytes of the largest activation of one batch, and the fewest samples of a batch whatever their size.
BATCH_BYTES, FEWEST_AT_ONCE = 1 << 20, 4
# Samples on which a rewrite is held against what it must equal.
PROOF_BATCH = 2


@dataclass(frozen=True)
class PruneResult:
    """`model`: the pruned model, weights inside. `report`: see figures.Report; the same dictionary that --json writes."""

    model: onnx.ModelProto = field(repr=False)
    report: Report
    external: Mapping[str, str] = field(default_factory=dict, repr=False)
    inputs: tuple[Path, ...] = field(default=(), repr=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model, whole or not at all; external data in the style of the original. Raises SaveError."""
        target = Path(path)
        check_target(target, self.inputs)
        save(self.model, target, self.external, self.inputs)
        return target


@dataclass
class Clock:
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


@dataclass(frozen=True)
class Outcome:
    """What a job made, and what only this kind of job can tell of it.

    done, left   layers that were refitted, and those that were not with the reason
    told         keys of the report that differ between the kinds of job
    """

    model: onnx.ModelProto = field(repr=False)
    done: Sequence[LayerRepair]
    left: Mapping[str, str]
    told: Mapping[str, Any]
    warnings: Sequence[str] = ()


@dataclass
class Job(ABC):
    """One pruning run. A kind of job says how the model is made; what comes after is the same for all.

    foreign   what may be asked for, but has no meaning here: field of Request -> its value when nobody asked
    parts     parts of the report that it fills and others do not (gates.OWN_PARTS)
    """

    foreign: ClassVar[Mapping[str, Any]] = {}
    parts: ClassVar[frozenset[str]] = frozenset()

    request: Request
    method: Method
    file: ModelFile
    graph: Graph
    network: Network
    samples: Samples
    device: Device
    progress: Progress
    clock: Clock
    # Weights that hold no numbers, each with the layer that reads it: nothing is done to them.
    broken: dict[str, str] = field(default_factory=dict, init=False)

    @abstractmethod
    def make(self) -> Outcome:
        """Decide, rewrite, prove, repair."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The options that this kind of job listens to, besides the method's own."""

    @classmethod
    def check(cls, request: Request) -> None:
        """Raises UsageError where something was asked for that this kind of job knows nothing of: silence would be a promise."""
        for name, default in cls.foreign.items():
            if getattr(request, name) != default:
                what = in_words(name, getattr(request, name))
                raise UsageError(
                    f"{what} has no meaning for method {request.method!r}", "leave it out, or see `onnxprune methods`"
                )
        request.check_together()

    def check_bound(self) -> None:
        """Raises UsageError where an error is asked for of a method that has no bound."""
        if self.request.error_first and not getattr(self.method, "bounded", False):
            raise refuse_unbounded(self.method.name, known())

    def check_weights(self, touched: Set[str]) -> None:
        """Raises ModelError where weights that are to be pruned hold no numbers; others are remembered, and told."""
        few = self.samples.few(PROOF_BATCH)
        self.broken = check_weights(self.graph, self.network, touched, few, self.device)

    def required(self, layer: Layer, *, additive: bool) -> guarantee.Required:
        """The error of one layer with which the wanted share of labels stays."""
        assert self.request.guarantee_labels is not None, "asked for by nobody"
        return guarantee.required(
            self.graph, self.network, layer, self.request.guarantee_labels, self.samples.calibration, additive=additive,
            batch=self.batch(), device=self.device, seed=self.request.seed, progress=self.progress,
        )  # fmt: skip

    def run(self, labels: Any, latency: bool) -> PruneResult:
        self.check_bound()
        try:
            made = self.make()
        except NothingToPruneError:
            Session(self.graph.model, self.device).free()  # raises ModelError of a model that no runtime takes
            raise
        with self.clock.stage("finish"):
            finish(made.model, self.graph, self._provenance())
            warnings = check_valid(made.model, self.graph.model)
        report = self._report(made, [*warnings, *made.warnings])
        with self.clock.stage("validate"):
            self._validate(made.model, report, labels, latency)
        return PruneResult(self.store(made.model, report), report, self.file.external, self.file.files)

    def store(self, model: onnx.ModelProto, report: Report) -> onnx.ModelProto:
        """The form in which the model is handed out; what changes by that is written into the report."""
        return model

    def all_stays(self, what: str) -> list[str]:
        """A warning for an error-first run that took nothing."""
        request = self.request
        if not request.error_first:
            return []
        share = f"{request.guarantee_labels} of the labels guaranteed"
        allowed = share if request.epsilon is None else f"an error of at most {request.epsilon:g}"
        return [f"no {what} may go with {allowed}: the method's bound needs all of them; allow more, or give --ratio"]

    def batch(self) -> int:
        """As many samples at a time as was asked for, fewer where their activations are large: beyond that only memory grows."""
        layers = (*self.network.layers, *recurrent_layers(self.graph))
        largest = max((4 * max(prod(layer.input_shape), prod(layer.output_shape)) for layer in layers), default=1)
        return min(self.samples.batch(self.request.batch), max(FEWEST_AT_ONCE, BATCH_BYTES // largest))

    def _provenance(self) -> dict[str, str]:
        request = self.request
        return {
            "onnxprune.version": __version__,
            "onnxprune.method": self.method.name,
            "onnxprune.options": ", ".join(f"{k}={v}" for k, v in sorted(self._options().items())),
            "onnxprune.ratio": str(request.ratio if request.target is None else request.target),
            "onnxprune.seed": str(request.seed),
            "onnxprune.sha256_source": self.file.sha256,
        }

    def _options(self) -> dict[str, Any]:
        request = self.request
        common = {
            "budget": request.budget, "repair": request.repair_kind, "sequential": request.sequential is not False,
            "target": request.target, "epsilon": request.epsilon, "guarantee_labels": request.guarantee_labels,
            "only": list(request.only), "skip": list(request.skip),
        }  # fmt: skip
        return common | self.options() | self.method.values

    def _report(self, made: Outcome, warnings: Sequence[str]) -> Report:
        request = self.request
        pruned, _ = prepare(made.model, self.graph.inputs)
        mode = "none" if request.repair_kind == "none" else "sequential" if request.sequential is not False else "parallel"
        figures = account.model_figures(None, pruned, find(pruned))
        figures["bytes"] = made.model.ByteSize()
        notes = [*self.file.notes, *self.samples.warnings, *([self.device.note] if self.device.note else [])]
        notes += [*account.left_broken(self.broken), *account.grown(made.done), *warnings]
        report = Report(
            schema=SCHEMA,
            tool={"name": "onnxprune", "version": __version__},
            method=self.method.name,
            options=self._options(),
            ratio=request.ratio,
            seed=request.seed,
            device=self.device.provider,
            original=account.model_figures(self.file, self.graph, self.network),
            pruned=figures,
            groups=[],
            weights=[],
            ranks=[],
            removed={},
            removed_by_block={},
            reordered={},
            pinned=account.pin_figures(self.network),
            repair=account.repair_figures(request.repair_kind, mode, made.done, made.left, self.samples.calibration.count),
            alignment={},
            sparsity=None,
            storage={},
            bounds={},
            latency=None,
            deviation={},
            accuracy=None,
            proof={},
            data=account.data_figures(self.samples),
            gates=[],
            timings={},
            warnings=notes,
        )
        report.update(made.told)  # type: ignore[typeddict-item]  # its keys are those of Report
        return report

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
            figures = self.latency(model)
            report["latency"] = figures
            report["original"]["latency_ms"], report["pruned"]["latency_ms"] = figures["original_ms"], figures["pruned_ms"]

    def latency(self, model: onnx.ModelProto, seconds: float = 6.0) -> LatencyFigures:
        feeds = next(self.samples.test.batches(1))
        return time_models(self.graph.model, model, feeds, device=self.device, threads=self.request.threads, seconds=seconds)
