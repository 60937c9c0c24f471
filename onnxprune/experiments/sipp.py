"""SiPP's four variants against weight thresholding (WT): accuracy over the share of weights that go, without retraining."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnxprune.calibration.samples import open_samples
from onnxprune.contract import WeightMethod
from onnxprune.decide import weights as decide
from onnxprune.devices import choose_device
from onnxprune.experiments.experiment import Case, Figure, Line, Progress, Result, experiment
from onnxprune.experiments.scoring import accuracy, answers
from onnxprune.graph import find, load
from onnxprune.methods import create
from onnxprune.methods.sipp import SippDet
from onnxprune.pipeline import prune
from onnxprune.rewrite.sparsify import Thinned, sparsify

RATIOS: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
METHODS = {"sipp-det": "SiPPDet", "sipp-rand": "SiPPRand", "sipp-hybrid": "SiPPHybrid", "sipp-simple": "SiPPSimple"}
BASELINE = {"magnitude-global": "WT"}
RANDOM = ("sipp-rand", "sipp-hybrid")
REPAIRS = {"none": "none", "least-squares": "refitted"}
REFITTED = ("sipp-det", "magnitude-global")
NAMES = METHODS | BASELINE
BATCH = 100
# Accuracy that may go before a ratio counts as too much.
TOLERANCE = 0.01
CLAIM = "SiPP is on a par with weight thresholding (WT) at every prune ratio, its variants alike, pruned and retrained in turns."
Scores = dict[tuple[str, str], list[list[float]]]


@experiment("sipp-curves", "SiPP, Fig. 3 and S1, before any retraining", "cnn")
def curves(case: Case, seeds: int, progress: Progress) -> Result:
    """Accuracy at each ratio; the random variants on `seeds` draws. Sensitivities are measured once for all."""
    before = accuracy(answers(case.model, case.test), case.labels)
    found: Scores = {}
    plan = [(method, "none") for method in METHODS | BASELINE] + [(method, "least-squares") for method in REFITTED]
    pruned = _Pruned(case)
    for number, (method, repair) in enumerate(plan):
        for step, ratio in enumerate(RATIOS):
            progress(f"{method}, {REPAIRS[repair]}, {ratio:.0%}", (number + step / len(RATIOS)) / len(plan))
            make = pruned.refitted if repair != "none" else pruned.plain
            draws = range(seeds if method in RANDOM else 1)
            made = (make(method, ratio, seed) for seed in draws)
            found.setdefault((method, repair), []).append([accuracy(answers(m, case.test), case.labels) for m in made])
    rows = [_row(NAMES[method], repair, found[method, repair], before) for method, repair in plan]
    header = ("method", "repair", *(f"-{ratio:.0%}" for ratio in RATIOS), f"goes for {TOLERANCE:.0%}")
    return Result(header, rows, [_figure(found, before)], _remarks(found, before), CLAIM, _verdict(found, before))


class _Pruned:
    """The model without some of its weights; statistics of one look at the samples serve every variant and ratio."""

    def __init__(self, case: Case) -> None:
        self.case = case
        graph, samples = open_samples(
            load(case.model), case.calibration, case.test[:8], samples=len(case.calibration), held_out=0.0, seed=0,
            input_shapes=None, mean=None, std=None, layout="auto",
        )  # fmt: skip
        first = SippDet()
        self.graph = graph
        self.sites, _ = decide.select(*decide.sites(graph, find(graph)), first, (), ())
        self.views = decide.Views(
            graph,
            self.sites,
            first,
            samples.calibration,
            samples.batch(BATCH),
            choose_device("cpu"),
            0,
            lambda stage, share: None,
        )

    def plain(self, method: str, ratio: float, seed: int) -> onnx.ModelProto:
        made = create(method)
        assert isinstance(made, WeightMethod)
        decided = decide.decide(made, self.views, self.sites, "auto", ratio, None, seed)
        thinned = {site.name: Thinned(site.layer, decided.plans[site.name]) for site in self.sites}
        return sparsify(self.graph, thinned)

    def refitted(self, method: str, ratio: float, seed: int) -> onnx.ModelProto:
        case = self.case
        return prune(
            case.model, method, ratio, data=case.calibration, test_data=case.test[:8], samples=len(case.calibration),
            latency=False, seed=seed,
        ).model  # fmt: skip


def _means(scores: Sequence[Sequence[float]]) -> list[float]:
    return [float(np.mean(s)) for s in scores]


def _affordable(scores: Sequence[Sequence[float]], before: float) -> float:
    """The largest ratio up to which no more than TOLERANCE is lost."""
    found = 0.0
    for ratio, mean in zip(RATIOS, _means(scores), strict=True):
        if mean < before - TOLERANCE:
            break
        found = ratio
    return found


def _row(name: str, repair: str, scores: Sequence[Sequence[float]], before: float) -> list[str]:
    return [name, REPAIRS[repair], *(f"{m:.1%}" for m in _means(scores)), f"{_affordable(scores, before):.0%}"]


def _figure(found: Scores, before: float) -> Figure:
    lines = [
        Line(
            NAMES[method] if repair == "none" else f"{NAMES[method]}, refitted", RATIOS, _means(scores),
            [float(np.std(s)) for s in scores] if len(scores[0]) > 1 else None, like=None if repair == "none" else NAMES[method],
        )
        for (method, repair), scores in found.items()
    ]  # fmt: skip
    lines.append(Line("unpruned", (RATIOS[0], RATIOS[-1]), (before, before), level=True))
    return Figure("Single weights pruned, no retraining", "share of the weights removed", "test accuracy", lines, percent="xy")


def _average(found: Scores, method: str, repair: str = "none") -> float:
    return float(np.mean(_means(found[method, repair])))


def _verdict(found: Scores, before: float) -> str:
    wt = _average(found, "magnitude-global")
    ranked = sorted(METHODS, key=lambda method: -_average(found, method))
    behind = ", ".join(f"{METHODS[m]} {100 * (_average(found, m) - wt):+.1f}" for m in ranked)
    refitted = 100 * (_average(found, "sipp-det", "least-squares") - _average(found, "magnitude-global", "least-squares"))
    return (
        f"Without retraining, points of accuracy against WT ({wt:.1%} on average over the ratios, {before:.1%} unpruned): "
        f"{behind}; both refitted, SiPPDet {refitted:+.1f}."
    )


def _remarks(found: Scores, before: float) -> list[str]:
    plain = {m: _affordable(found[m, "none"], before) for m in NAMES}
    refitted = {m: _affordable(found[m, "least-squares"], before) for m in REFITTED}
    spread = [_average(found, m) for m in METHODS if m != "sipp-simple"]
    return [
        "The paper prunes and retrains in turns (Fig. 3, S1; curves without numbers), which hides much of what a criterion gets "
        "wrong; there is no retraining here.",
        f"Between Det, Rand and Hybrid lie {100 * (max(spread) - min(spread)):.1f} points on average. For at most "
        f"{TOLERANCE:.0%} of accuracy may go: "
        + ", ".join(f"{label} {plain[m]:.0%}" for m, label in NAMES.items())
        + "; refitted "
        + ", ".join(f"{NAMES[m]} {refitted[m]:.0%}" for m in REFITTED)
        + ".",
        "A likely reason, not tested here: sensitivities do not change when a row is scaled: they say nothing of how much a "
        "row matters to the network; the magnitudes of WT do.",
    ]
