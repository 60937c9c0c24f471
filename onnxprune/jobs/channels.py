"""Removing channels: smaller tensors, proven equal to the masked twin, readers refitted.

facts   = gather(..., calibration)         see:    one pass over sample inputs
counts  = by_ratio(...) or by_target(...)  decide: how many channels every group keeps, and which
cut     = cut(graph, network, alive)       do:     smaller tensors
prove(...)                                         equal to the masked twin, or an error
Repair(...).run(...)                               refit what reads fewer channels than before
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from onnxprune import account
from onnxprune.budget.allocate import Counts, by_ratio, by_target, resource
from onnxprune.calibration.refittable import behind_channels
from onnxprune.calibration.repair import LayerRepair, Repair
from onnxprune.compensation.least_squares import least_squares, match_moments
from onnxprune.contract import ChannelMethod, ChannelPlan
from onnxprune.decide import bounds
from onnxprune.decide import channels as decide
from onnxprune.decide import labels as guarantee
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.graph import find
from onnxprune.jobs.job import PROOF_BATCH, Job, Outcome
from onnxprune.network import Bools
from onnxprune.request import WEIGHT_BUDGETS, Request, prefers_width
from onnxprune.rewrite.arrange import Orders, original_positions
from onnxprune.rewrite.cut import Cut, cut
from onnxprune.rewrite.finish import reweigh
from onnxprune.rewrite.prove import prove

SOLVERS = {"least-squares": least_squares, "mean": match_moments}


@dataclass
class ChannelJob(Job):
    """The stages of the story are its methods, in the order of the story."""

    foreign = MappingProxyType({"keep_ends": False, "pattern": None, "sparse_storage": False})
    parts = frozenset({"alignment"})

    method: ChannelMethod
    orders: dict[str, Orders] = field(default_factory=dict)

    @classmethod
    def check(cls, request: Request) -> None:
        super().check(request)
        if request.budget in WEIGHT_BUDGETS:
            raise UsageError(f"the budget {request.budget!r} is for weights, not for channels", "use auto, uniform or global")

    def make(self) -> Outcome:
        with self.clock.stage("observe"):
            decisions = self._see()
        asked = None
        if self.request.guarantee_labels is not None:
            with self.clock.stage("labels"):
                asked = self._required(decisions)
        with self.clock.stage("decide"):
            plans, counts = self._decide(decisions, self.request.epsilon if asked is None else asked.epsilon)
        alive = self.network.alive({name: plan.keep.numpy(force=True) for name, plan in plans.items()})
        with self.clock.stage("rewrite"):
            made = cut(self.graph, self.network, alive)
        with self.clock.stage("prove"):
            few = self.samples.few(PROOF_BATCH)
            difference = prove(self.graph, self.network, alive, made.model, few, self.device, self.broken.keys())
        with self.clock.stage("repair"):
            done, left = self._repair(made, alive, plans)
        told = self._told(made, counts, decisions, difference)
        if self._tells_bounds:
            with self.clock.stage("bounds"):
                told["bounds"] = self._bounds(decisions, plans, asked)
        warnings = account.missed_channels(told["alignment"])
        if all(counts[d.view.name] == d.view.channels for d in decisions):
            warnings += self.all_stays("channel")
        return Outcome(made.model, done, left, told, warnings)

    def options(self) -> dict[str, Any]:
        request = self.request
        return {
            "align": request.align, "reweigh": request.reweigh, "kinds": list(request.kinds),
            "through_norms": request.through_norms,
        }  # fmt: skip

    def _told(self, made: Cut, counts: Counts, decisions: Sequence[decide.Decision], difference: float) -> dict[str, Any]:
        positions = original_positions(made.removed, self.orders)
        choices = [d.candidate.choices for d in decisions]
        return {
            "groups": account.group_figures(self.network, counts),
            "removed": positions.removed,
            "removed_by_block": positions.removed_by_block,
            "reordered": positions.reordered,
            "alignment": account.alignment_figures(
                self.request.align, choices, counts, self.request.ratio, error_first=self.request.error_first
            ),
            "proof": account.proof_figures(
                difference, self.samples, PROOF_BATCH, through_norms=bool(self.network.norms), broken=bool(self.broken)
            ),
        }

    @property
    def _tells_bounds(self) -> bool:
        """A bound is about reweighed readers, not about refitted ones."""
        request = self.request
        return self.method.bounded and request.repair_kind == "none" and request.reweigh

    def _decide(self, decisions: Sequence[decide.Decision], epsilon: float | None) -> tuple[dict[str, ChannelPlan], Counts]:
        if epsilon is not None:
            plans = decide.within(self.method, decisions, epsilon, self.request.seed)
            return plans, {name: len(plan.keep) for name, plan in plans.items()}
        counts = self._budget(decisions)
        self._check_counts(decisions, counts)
        return decide.plans(self.method, decisions, counts, self.request.seed), counts

    def _required(self, decisions: Sequence[decide.Decision]) -> guarantee.Required:
        """The additive error of the one layer that reads the one group."""
        readers = [reader.layer for reader in decisions[0].view.readers]
        if len(decisions) != 1 or len(readers) != 1 or readers[0] not in self.network.layer:
            raise UsageError(
                f"labels are guaranteed by what one layer reads, and {len(decisions)} groups of channels are chosen",
                "name one group with --only that one layer reads",
            )
        return self.required(self.network.layer[readers[0]], additive=True)

    def _bounds(
        self, decisions: Sequence[decide.Decision], plans: Mapping[str, ChannelPlan], asked: guarantee.Required | None
    ) -> dict[str, Any]:
        views = [d.view for d in decisions if d.view.name in plans]
        changes = bounds.of_channels(self.graph, self.network, views, plans, self.device)
        observed = bounds.seen(
            self.graph, changes, self.samples.test, batch=self.batch(), device=self.device, seed=self.request.seed,
            progress=self.progress,
        )  # fmt: skip
        rows = []
        for view in views:
            plan = plans[view.name]
            certain = self.method.errors(view, plan) or {}
            for reader in view.readers:
                found = observed.get((view.name, reader.layer))
                rows.append(
                    {
                        "name": view.name, "layers": [reader.layer], "implied_epsilon": plan.error, "draws": plan.draws,
                        "units": view.channels, "kept": len(plan.keep), "observed": found.figures(0) if found else None,
                        "relative_to_output": found.figures(2) if found else None,
                        "worst_case": float(certain[reader.layer].max()) if reader.layer in certain else None,
                    }
                )  # fmt: skip
        return bounds.figures(rows, additive=True, epsilon=self.request.epsilon, asked=asked)

    def _see(self) -> list[decide.Decision]:
        """Evidence, scores and losses of every group that may be pruned."""
        request = self.request
        groups = decide.select(self.network, self.method, request.only, request.skip, request.kinds)
        if request.guarantee_labels is not None and not request.only:
            last = guarantee.last_layer(self.graph, self.network).name
            groups = [group for group in groups if last in group.readers]
        self.check_weights(decide.weights_of(self.network, groups))
        if request.repair_kind != "none" or request.reweigh:  # else what stays is promised to be as it was, bit for bit
            few = self.samples.few(PROOF_BATCH)
            self.graph, self.orders = decide.arranged(self.graph, self.network, groups, few, self.device, self.broken.keys())
        if self.orders:
            self.network = find(self.graph, inner=prefers_width(request.kinds), through_norms=request.through_norms)
            groups = [self.network.group[group.name] for group in groups]
        evidence = decide.gather(
            self.graph, self.network, groups, self.method, self.samples.calibration,
            weigh=request.budget == "auto" and not request.error_first, bounds=self._tells_bounds,
            batch=self.batch(), device=self.device, seed=request.seed, progress=self.progress,
        )  # fmt: skip
        return decide.judge(
            self.graph, self.network, groups, self.method, evidence, align=request.align, seed=request.seed, device=self.device
        )

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
            if block == 1:
                raise NothingToPruneError("not one channel is to go at this ratio", "ask for more")
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
            figures = self.latency(cut(self.graph, self.network, self.network.alive(kept)).model, seconds=2.0)
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
        layers, left = behind_channels(self.graph, self.network, alive, self.broken.keys())
        worker = Repair(self.graph, self.network, made, alive, solver=SOLVERS[kind], device=self.device, seed=self.request.seed)
        return worker.run(
            layers, self.samples.calibration, self.batch(), self.progress, sequential=self.request.sequential is not False
        ), left
