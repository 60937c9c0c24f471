"""Setting single weights or 2-D filters to zero: tensors keep their shapes, what stays is refitted.

sites   = select(...)                      find:   stored matrices that may lose weights
views   = Views(...)                       see:    statistics of their inputs, over sample inputs
plans   = decide(...)                      decide: how many weights each keeps, which, and with which values
model   = sparsify(graph, plans)           do
Repair(...).run(...)                               refit what stays, on its mask
prove_zeros(...)                                   every weight that had to go is gone, or an error
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from onnxprune import account
from onnxprune.budget.weights import FLOOR
from onnxprune.calibration.refittable import behind_weights, reading
from onnxprune.calibration.repair import LayerRepair, Repair, Solver
from onnxprune.compensation.least_squares import match_moments
from onnxprune.compensation.masked import masked_least_squares
from onnxprune.contract import WeightMethod
from onnxprune.decide import bounds
from onnxprune.decide import labels as guarantee
from onnxprune.decide import weights as decide
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.figures import Report, WeightFigures
from onnxprune.jobs.job import PROOF_BATCH, Job, Outcome
from onnxprune.rewrite.cut import Cut
from onnxprune.rewrite.sparsify import Thinned, prove_zeros, sparsify
from onnxprune.rewrite.store_sparse import same_function, store_sparse
from onnxprune.sparsity import sparsity_figures, storage_figures, weight_figures

SOLVERS: dict[str, Solver] = {"least-squares": masked_least_squares, "mean": match_moments}


@dataclass
class WeightJob(Job):
    """The stages of the story are its methods, in the order of the story."""

    foreign = MappingProxyType({"align": "auto", "kinds": (), "through_norms": False, "reweigh": True})
    parts = frozenset({"weights", "sparsity", "storage"})

    method: WeightMethod

    def make(self) -> Outcome:
        request = self.request
        found, left = decide.sites(self.graph, self.network)
        chosen, left = decide.select(
            found, left, self.method, request.only, request.skip, keep_ends=request.keep_ends, pattern=request.pattern
        )
        asked = None
        if request.guarantee_labels is not None:
            chosen = [self._one(chosen)]
        self.check_weights({site.name for site in chosen})
        if request.guarantee_labels is not None:
            with self.clock.stage("labels"):
                asked = self.required(chosen[0].layer, additive=False)
        with self.clock.stage("decide"):
            views = decide.Views(
                self.graph, chosen, self.method, self.samples.calibration, self.batch(), self.device, request.seed, self.progress
            )
            decided = self._decide(views, chosen, request.epsilon if asked is None else asked.epsilon)
        thinned = {site.name: Thinned(site.layer, decided.plans[site.name]) for site in chosen}
        with self.clock.stage("rewrite"):
            model = sparsify(self.graph, thinned)
        with self.clock.stage("repair"):
            changed = {name for name, t in thinned.items() if t.plan.matrix is not None or not bool(t.plan.keep.all())}
            done, not_refitted = self._repair(model, changed)
        with self.clock.stage("prove"):
            zeros = prove_zeros(model, thinned)
        told = self._told(model, found, chosen, left, zeros)
        with self.clock.stage("bounds"):
            told["bounds"] = dict(self.method.bounds(decided.facts, self.samples.calibration.count) if decided.facts else {})
            warnings = [*self._limits(told["weights"]), *told["bounds"].pop("warnings", ())]
            if self._tells_bounds:
                told["bounds"] = bounds.joined(told["bounds"], self._bounds(chosen, decided, asked))
        return Outcome(model, done, not_refitted, told, warnings)

    @property
    def _tells_bounds(self) -> bool:
        """A bound is about weights as the method leaves them."""
        return self.method.bounded and self.request.repair_kind == "none"

    def _decide(self, views: decide.Views, chosen: Sequence[decide.Site], epsilon: float | None) -> decide.Decided:
        request = self.request
        if epsilon is not None:
            return decide.within(self.method, views, epsilon, request.seed)
        decided = decide.decide(
            self.method, views, chosen, request.budget, request.share_removed, request.pattern, request.seed,
            bounds=self._tells_bounds,
        )  # fmt: skip
        if request.share_removed > 0 and all(bool(plan.keep.all()) for plan in decided.plans.values()):
            raise NothingToPruneError("not one weight is to go at this ratio", "ask for more")
        return decided

    def _limits(self, rows: Sequence[WeightFigures]) -> list[str]:
        """Where floors kept more weights than was asked for, an error allowed none to go, or some matrices lost all of theirs."""
        chosen = [row for row in rows if row["reason"] is None]
        emptied = account.emptied([row["name"] for row in chosen if row["zeros_before"] < row["zeros"] == row["weights"]])
        if self.request.error_first:
            return emptied or (self.all_stays("weight") if all(r["zeros"] == r["zeros_before"] for r in chosen) else [])
        got = sum(row["zeros"] for row in chosen) / max(sum(row["weights"] for row in chosen), 1)
        why = f"every layer keeps {100 * FLOOR:g} % of its weights, or one, where layers compete"
        remedy = "ask for less, or let each lose the same share: --budget uniform"
        return emptied + account.missed(self.request.share_removed, got, "weights", why, remedy)

    def _one(self, chosen: Sequence[decide.Site]) -> decide.Site:
        """The matrix whose error is to leave labels alone: the one that was named, else the last layer's."""
        if not self.request.only:
            last = guarantee.last_layer(self.graph, self.network)
            chosen = [site for site in chosen if last.name in {layer.name for layer in site.layers}]
            if not chosen:
                problem = f"labels are guaranteed by the last layer, and {last.name!r} is left alone"
                raise UsageError(problem, "name another with --only")
        if len(chosen) != 1:
            raise UsageError(
                f"labels are guaranteed by one layer at a time, and {len(chosen)} are chosen", "name one with --only"
            )
        return chosen[0]

    def _bounds(self, chosen: Sequence[decide.Site], decided: decide.Decided, asked: guarantee.Required | None) -> dict[str, Any]:
        changes = bounds.of_weights(self.graph, chosen, decided.plans, self.device)
        observed = bounds.seen(
            self.graph, changes, self.samples.test, batch=self.batch(), device=self.device, seed=self.request.seed,
            progress=self.progress,
        )  # fmt: skip
        rows = []
        for name, plan in decided.plans.items():
            kept = int((changes[name].after != 0).sum())
            rows.append(
                {
                    "name": name, "layers": [site.layer.name for site in chosen if site.name == name],
                    "implied_epsilon": plan.error, "draws": plan.draws, "units": plan.keep.numel(), "kept": kept,
                    "observed": observed[name].figures(1), "relative_to_output": observed[name].figures(2),
                    "absolute": observed[name].figures(0),
                }
            )  # fmt: skip
        return bounds.figures(rows, additive=False, epsilon=self.request.epsilon, asked=asked)

    def options(self) -> dict[str, Any]:
        request = self.request
        pattern = "" if request.pattern is None else f"{request.pattern[0]}:{request.pattern[1]}"
        return {"keep_ends": request.keep_ends, "pattern": pattern, "sparse_storage": request.sparse_storage}

    def store(self, model: onnx.ModelProto, report: Report) -> onnx.ModelProto:
        """With --sparse-storage: weights as sparse initializers where that is smaller, and ONNX Runtime gives the same for it."""
        if not self.request.sparse_storage:
            return model
        found = store_sparse(model, [row["name"] for row in report["weights"]])
        left = dict(found.left)
        stored, refusal = found.model, ""
        if found.sizes:
            refusal = same_function(stored, model, self.samples.few(PROOF_BATCH), self.device)
            if refusal:
                stored = model
                left |= dict.fromkeys(found.sizes, refusal)
        report["storage"] = storage_figures({} if refusal else found.sizes, left)
        report["pruned"]["bytes"] = stored.ByteSize()
        return stored

    def _repair(self, model: onnx.ModelProto, pruned: set[str]) -> tuple[list[LayerRepair], dict[str, str]]:
        kind = self.request.repair_kind
        if kind == "none":
            return [], {}
        altered, broken = (reading(self.graph, names) for names in (pruned, self.broken.keys()))
        layers, left = behind_weights(self.graph, self.network, altered, broken)
        everything = np.ones(self.network.channel_count, bool)
        worker = Repair(
            self.graph, self.network, Cut(model, {}, {}), everything, solver=SOLVERS[kind], device=self.device,
            seed=self.request.seed,
        )  # fmt: skip
        done = worker.run(
            layers, self.samples.calibration, self.batch(), self.progress, sequential=self.request.sequential is not False
        )
        return done, left

    def _told(
        self, model: onnx.ModelProto, found: Sequence[decide.Site], chosen: Sequence[decide.Site], left: Mapping[str, str],
        zeros: int,
    ) -> dict[str, Any]:  # fmt: skip
        rows = weight_figures(self.graph, model, found, {site.name for site in chosen}, left)
        where = "1 matrix" if len(chosen) == 1 else f"{len(chosen)} matrices"
        summary = f"all {zeros:,} zeros are where they were decided to be, in {where}"
        return {
            "groups": account.group_figures(self.network, {}),
            "weights": rows,
            "sparsity": sparsity_figures(
                self.graph.model,
                model,
                rows,
                None if self.request.error_first else self.request.share_removed,
                pattern=self.request.pattern,
                sparse=self.request.sparse_storage,
            ),
            "proof": {"summary": summary, "zeros": zeros},
        }
