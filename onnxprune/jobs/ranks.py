"""Making layers into two thin ones each: smaller and faster files, proven equal to the product of both, refitted.

sites   = select(...)                       find:   layers that may become two
ranks   = by_spectrum(...) or uniform(...)  decide: at which rank each stands
model   = factorised(graph, splits)         do
prove_factorised(...)                               equal to the original with the products as weights, or an error
Repair(...).run(...)                                refit the second of each two, and whole layers that read what changed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from onnxprune import account
from onnxprune.budget.ranks import Ranks, Spectrum, by_target, share_gone
from onnxprune.calibration.fitting import fixed_batch
from onnxprune.calibration.refittable import behind_weights, reading
from onnxprune.calibration.repair import LayerRepair, Repair
from onnxprune.calibration.segments import Parts
from onnxprune.compensation.least_squares import least_squares, match_moments
from onnxprune.contract import RankMethod
from onnxprune.decide import ranks as decide
from onnxprune.decide.weights import Site, Views, choose, sites
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.figures import RankFigures
from onnxprune.graph import find, prepare
from onnxprune.jobs.job import PROOF_BATCH, Job, Outcome
from onnxprune.request import WEIGHT_BUDGETS, Request
from onnxprune.rewrite.cut import Cut
from onnxprune.rewrite.factorise import Split, dense_twin, factorised, whole_twin
from onnxprune.rewrite.prove import prove_factorised

SOLVERS = {"least-squares": least_squares, "mean": match_moments}


@dataclass
class RankJob(Job):
    """The stages of the story are its methods, in the order of the story."""

    foreign = MappingProxyType(
        {
            "align": "auto",
            "kinds": (),
            "through_norms": False,
            "pattern": None,
            "sequential": None,
            "sparse_storage": False,
            "reweigh": True,
        }
    )
    parts = frozenset({"ranks"})

    method: RankMethod

    @classmethod
    def check(cls, request: Request) -> None:
        super().check(request)
        if request.budget in WEIGHT_BUDGETS:
            raise UsageError(f"the budget {request.budget!r} is for weights, not for ranks", "use auto, uniform or global")
        if request.goal[0] == "latency":
            raise UsageError("ranks are not chosen by measured latency", "give a target of macs instead")

    def make(self) -> Outcome:
        request = self.request
        found, left = sites(self.graph, self.network)
        chosen, left = decide.select(self.graph, choose(found, request.only, request.skip, keep_ends=request.keep_ends), left)
        self.check_weights({site.name for site in chosen})
        with self.clock.stage("decide"):
            views = Views(
                self.graph, chosen, self.method, self.samples.calibration, self.batch(), self.device, request.seed, self.progress
            )
            seen = decide.RankViews(self.graph, views)
            spectra = decide.spectra(self.method, seen)
            if request.budget == "auto" and self.method.needs:
                spectra = decide.weighed(spectra, views.gains(chosen))
            ranks = self._ranks(spectra, chosen)
            factors = decide.factors(self.method, seen, ranks)
        splits = [Split(site.layers, factors[site.name]) for site in chosen if site.name in factors]
        with self.clock.stage("rewrite"):
            model = factorised(self.graph, splits)
        with self.clock.stage("prove"):
            twin = dense_twin(self.graph, splits)
            few = self.samples.few(PROOF_BATCH)
            difference = prove_factorised(self.graph, twin, model, few, self.device, self.broken.keys())
            del twin
        with self.clock.stage("repair"):
            done, unfit = self._repair(model)
        why, remedy = "every layer keeps rank 1", "ask for less, or use a -channel method, which takes whole outputs"
        warnings = account.missed(request.ratio, share_gone(spectra, ranks), "eligible weights", why, remedy)
        return Outcome(model, done, unfit, self._told(found, spectra, ranks, left, difference), warnings)

    def options(self) -> dict[str, Any]:
        return {"keep_ends": self.request.keep_ends}

    def _ranks(self, spectra: Sequence[Spectrum], chosen: Sequence[Site]) -> Ranks:
        kind, share = self.request.goal
        if kind == "macs":
            spectra = [replace(s, price=decide.macs_per_weight(site)) for s, site in zip(spectra, chosen, strict=True)]
        choices = decide.chooser(spectra, self.request.budget)
        if kind == "channels":
            ranks = choices(1 - share)
        else:
            shifts = bool(self.method.needs) or self.request.repair_kind != "none"
            left = decide.measure(self.graph, self.network, chosen, kind, new_biases=shifts)
            ranks = by_target(choices, left, share)
        if share < 1 and all(rank is None for rank in ranks.values()):
            raise NothingToPruneError("every layer that may become two stays whole at this ratio", "ask for more")
        return ranks

    def _repair(self, model: onnx.ModelProto) -> tuple[list[LayerRepair], dict[str, str]]:
        """The result is the student; the original, an Identity before each layer that became two, is the teacher."""
        kind = self.request.repair_kind
        if kind == "none":
            return [], {}
        graph, _ = prepare(model, self.graph.inputs)
        network = find(graph)
        # The first of each two gives a tensor that the original does not know.
        first = {index for index, node in enumerate(graph.nodes) if node.output[0] not in self.graph.producer}
        layers, left = behind_weights(graph, network, first, reading(graph, self.broken.keys()), fixed=first)
        teacher = Parts(graph, whole_twin(self.graph, model), self.graph.model)
        worker = Repair(
            graph, network, Cut(model, {}, {}), np.ones(network.channel_count, bool), solver=SOLVERS[kind], device=self.device,
            seed=self.request.seed, teacher=teacher,
        )  # fmt: skip
        return worker.run(layers, self.samples.calibration, self.batch(), self.progress, sequential=True), left

    def _told(
        self, found: Sequence[Site], spectra: Sequence[Spectrum], ranks: Ranks, left: Mapping[str, str], difference: float
    ) -> dict[str, Any]:
        known = {s.name: s for s in spectra}
        rows = [_row(site, known.get(site.name), ranks.get(site.name), left) for site in found]
        count = fixed_batch(self.samples.calibration.inputs) or min(PROOF_BATCH, self.samples.calibration.count)
        equal = "exactly" if difference == 0 else f"to {difference:.0e}"
        two = sum(row["rank"] is not None for row in rows)
        layers = "1 matrix" if two == 1 else f"{two} matrices"
        summary = f"before repair {layers} as two give what their products give, {equal} on {count} samples"
        summary += account.REPLACED if self.broken else ""
        return {
            "groups": account.group_figures(self.network, {}),
            "ranks": rows,
            "proof": {"summary": summary, "max_relative_difference": difference, "samples": count},
        }


def _row(site: Site, spectrum: Spectrum | None, rank: int | None, left: Mapping[str, str]) -> RankFigures:
    """What became of one matrix."""
    size = site.layer.weight_shape
    before = int(np.prod(size))
    reasons = [left[layer.name] for layer in site.layers if layer.name in left] or ["not chosen"]
    whole = "its spectrum is flat" if spectrum is not None else reasons[0]
    out, inputs = (spectrum.out, spectrum.inputs) if spectrum is not None else (0, 0)
    return RankFigures(
        name=site.name, layers=[layer.name for layer in site.layers], shape=list(size), rank=rank, parameters_before=before,
        parameters=before if rank is None else rank * (out + inputs),
        lost=None if spectrum is None else spectrum.loss(rank), reason=whole if rank is None else None,
    )  # fmt: skip
