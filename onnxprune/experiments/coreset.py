"""Mussay et al., "Data-Independent Structured Pruning of Neural Networks via Coresets": Figures 4, 5 and 6a, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxprune.calibration.views import channel_views
from onnxprune.contract import METHODS, Activation
from onnxprune.decide.labels import GENTLE
from onnxprune.errors import OnnxpruneError, UsageError
from onnxprune.experiments.experiment import Case, Figure, Line, Progress, Result, experiment
from onnxprune.experiments.scoring import accuracy, answers, l1_error, network_of
from onnxprune.methods.coreset import clocks, importances, reweigh
from onnxprune.pipeline import prune

PAPER = "Mussay et al., Coresets"
COMPETITORS = (
    "coreset-neuron", "uniform-channel", "percentile-channel", "svd", "sparsify-l1", "sparsify-l2", "sparsify-l1l2", "corenet",
    "corenet+", "corenet++",
)  # fmt: skip
OURS = "coreset-neuron, refitted"
NO_SIGNS = ", no signs"
# Without chance: the same for every seed.
ONCE = ("percentile-channel", "svd")
# Neurons of Fig. 4 (a) and (b); readers whose error is averaged in (c); test samples that serve as queries.
POINTS, READERS, QUERIES = 1000, 20, 1000
SIZES, KEPT = 20, (0.9, 0.7, 0.5, 0.3, 0.2, 0.1)
FIGURE_ONLY = "The paper shows a picture and gives no numbers for it; what it says of the picture is what can be compared."


@dataclass(frozen=True)
class Neuron:
    """Points P (n, d), biases appended, queries (samples, d) with a 1, and the weights w (k, n) of k neurons that read them."""

    points: Tensor
    queries: Tensor
    weights: Tensor
    activation: Activation


@experiment("coreset-fig4", PAPER + ", Figure 4", "mlp")
def fig4(case: Case, seeds: int, progress: Progress) -> Result:
    """Error of one neuron against the size of the coreset that feeds it; Algorithm 1 for each neuron by itself."""
    few = case.test[:QUERIES]
    samples = torch.from_numpy(few.reshape(len(few), -1).astype(np.float64))
    settings = {
        "(a) Gaussian": _random(samples, "normal"),
        "(b) uniform": _random(samples, "uniform"),
        "(c) trained": _trained(case, samples),
    }
    rows, figures, better = [], [], {}
    for number, (name, neuron) in enumerate(settings.items()):
        progress(name, number / len(settings))
        sizes = np.unique(np.linspace(len(neuron.points) / SIZES, len(neuron.points), SIZES).round().astype(int))
        for made, kind in ((neuron, name), (replace(neuron, weights=neuron.weights.abs()), name + NO_SIGNS)):
            curves = _errors(made, sizes, seeds)
            better[kind] = _better(curves)
            for way, errors in curves.items():
                shown = (errors.mean(0)[_near(sizes, share * len(neuron.points))] for share in (0.1, 0.3, 0.5, 0.8))
                rows.append([kind, way, *(f"{error:.3g}" for error in shown)])
            if kind == name:
                figures.append(_figure(f"{name}: error of one neuron", "neurons in the coreset", sizes, curves))
    header = ("setting", "method", "10 % of the points", "30 %", "50 %", "80 %")
    claim = "The coreset errs less than uniform sampling and than percentile at every size, in all three settings."
    return Result(header, rows, figures, _remarks_of_fig4(better), claim, _verdict_of_fig4(better))


@dataclass(frozen=True)
class Better:
    """How often the coreset errs less than another way, and its mean error over the other's."""

    sizes: int
    of: int
    share: float


def _better(curves: Mapping[str, NDArray[np.float64]]) -> dict[str, Better]:
    """Without the last size, where every point is in."""
    ours = curves["coreset"].mean(0)[:-1]
    others = {way: curves[way].mean(0)[:-1] for way in ("uniform", "percentile")}
    return {
        way: Better(int((ours < theirs).sum()), len(ours), float(ours.mean() / theirs.mean())) for way, theirs in others.items()
    }


def _verdict_of_fig4(better: Mapping[str, Mapping[str, Better]]) -> str:
    def told(way: str, signs: bool) -> str:
        found = [ways[way] for kind, ways in better.items() if kind.endswith(NO_SIGNS) != signs]
        return ", ".join(f"{each.sizes} of {each.of}" if i == 0 else str(each.sizes) for i, each in enumerate(found))

    return (
        f"Less than uniform sampling at {told('uniform', True)} sizes, than percentile at {told('percentile', True)}; "
        f"without the signs of the weights, so that nothing cancels, than percentile at {told('percentile', False)}."
    )


def _remarks_of_fig4(better: Mapping[str, Mapping[str, Better]]) -> list[str]:
    remarks = [FIGURE_ONLY]
    for kind, ways in better.items():
        times = ", ".join(f"{found.share:.2f} times that of {way} (less at {found.sizes} sizes)" for way, found in ways.items())
        remarks.append(f"{kind}: the coreset's mean error is {times}.")
    remarks.append(
        "Why percentile does well here: it drops small terms without reweighing the others, and terms of both signs cancel. "
        "'no signs' is the same with the absolute weights, where nothing cancels."
    )
    remarks.append("Sizes are distinct points, drawn until there are so many; what is drawn is reweighed: unbiased, but noisy.")
    return remarks


def _random(samples: Tensor, kind: str) -> Neuron:
    """(a), (b): points and weights drawn alike, scaled so that the neurons' arguments are of the size of the inputs."""
    rng = torch.Generator().manual_seed(0)
    shape = (POINTS, samples.shape[1] + 1)
    scale = samples.shape[1] ** -0.5
    if kind == "normal":
        points, weights = (torch.randn(s, generator=rng, dtype=torch.float64) for s in (shape, (1, POINTS)))
    else:
        points, weights = (2 * torch.rand(s, generator=rng, dtype=torch.float64) - 1 for s in (shape, (1, POINTS)))
    return Neuron(points * scale, _with_one(samples), weights, Activation("Relu"))


def _trained(case: Case, samples: Tensor) -> Neuron:
    """(c): the rows of the model's first layer, as neurons of its second read them."""
    graph, network = network_of(case.model, case.calibration)
    neurons = [group for group in network.groups if group.kind == "neuron"]
    views = channel_views(graph, network, neurons, {}, "cpu")
    fitting = [v for v in views if len(v.makers) == len(v.readers) == 1 and v.makers[0].weight.shape[1] == samples.shape[1]]
    if not fitting:
        raise UsageError(f"{case.model} does not begin with a fully connected layer", "take an MLP, such as LeNet-300-100")
    maker, reader = fitting[0].makers[0], fitting[0].readers[0]
    points = torch.cat([maker.weight, maker.bias[:, None]], 1).double()
    return Neuron(points, _with_one(samples), reader.weight.T[:READERS].double(), fitting[0].activation)


def _with_one(samples: Tensor) -> Tensor:
    return torch.cat([samples, torch.ones(len(samples), 1, dtype=samples.dtype)], 1)


def _errors(neuron: Neuron, sizes: NDArray[np.int64], seeds: int) -> dict[str, NDArray[np.float64]]:
    """Way -> (seeds, sizes): mean over queries and readers of |sum_P w phi - sum_C u phi|, for coresets of so many points."""
    argument = neuron.queries @ neuron.points.T
    outputs = GENTLE[neuron.activation.name](argument) if neuron.activation.name in GENTLE else argument
    norms = torch.linalg.vector_norm(neuron.points, dim=1)
    beta = float(torch.linalg.vector_norm(neuron.queries, dim=1).max())
    found = {way: np.zeros((seeds, len(sizes))) for way in ("coreset", "uniform", "percentile")}
    by_norm = torch.argsort(norms, descending=True, stable=True)
    for seed in range(seeds):
        rng = torch.Generator().manual_seed(seed)
        for weights in neuron.weights:
            terms = outputs * weights
            chances = importances(norms, weights[None], neuron.activation, beta)
            for way, importance in (("coreset", chances), ("uniform", torch.ones_like(chances))):
                found[way][seed] += _sampled(terms, importance / importance.sum(), sizes, rng)
            dropped = [float(terms[:, by_norm[size:]].sum(1).abs().mean()) for size in sizes]
            found["percentile"][seed] += dropped
    return {way: errors / len(neuron.weights) for way, errors in found.items()}


def _sampled(terms: Tensor, chances: Tensor, sizes: NDArray[np.int64], rng: torch.Generator) -> list[float]:
    """Errors of coresets of 1, 2, ... distinct points of one stream of draws, reweighed at each size."""
    times = clocks(chances, rng)
    order = torch.argsort(times, stable=True)
    errors = []
    for size in sizes:
        keep = order[:size]
        factor = reweigh(chances, times, keep, rng) if size < len(chances) else torch.ones(int(size), dtype=torch.float64)
        errors.append(float((terms.sum(1) - (terms[:, keep] * factor).sum(1)).abs().mean()))
    return errors


@experiment("coreset-fig5", PAPER + ", Figure 5", "mlp")
def fig5(case: Case, seeds: int, progress: Progress) -> Result:
    """Mean L1 error of the whole network's outputs against its size, every competitor that there is a method for; no training."""
    original = answers(case.model, case.test)
    names = [name for name in (*COMPETITORS, OURS) if name.partition(",")[0] in METHODS]
    curves = _sweep(case, names, seeds, progress, lambda found: l1_error(found, original))
    ranked = sorted((name for name in names if name != OURS), key=lambda name: float(np.nanmean(curves[name])))
    removed = [1 - k for k in KEPT]
    shown = {"every method": names, "the best three, and the coreset": [*dict.fromkeys([*ranked[:3], "coreset-neuron", OURS])]}
    figures = [
        _figure(f"Error of the network: {what}", "share of the parameters removed", removed, {n: curves[n] for n in chosen},
                y_label="mean L1 error of the outputs", log_y=True, percent="x")
        for what, chosen in shown.items()
    ]  # fmt: skip
    claim = "The neural coreset errs less than all other methods, most of all at high compression (no numbers are printed)."
    ours = [_rank(curves, i) for i in range(len(KEPT))]
    verdict = (
        f"The least error has {' or '.join(sorted({_least(curves, i) for i in range(len(KEPT))}))}; coreset-neuron is "
        + ", ".join(f"number {rank}" if i == 0 else str(rank) for i, rank in enumerate(ours))
        + f" of {len(ranked)} at {', '.join(f'{100 * r:.0f}' for r in removed)} % removed."
    )
    header = ("method", *(f"-{100 * r:.0f} %" for r in removed))
    return Result(header, _rows(curves, "{:.3g}"), figures, _remarks_of_fig5(curves), claim, verdict)


def _least(curves: Mapping[str, NDArray[np.float64]], i: int) -> str:
    """Which of the paper's methods errs least at the i-th size."""
    means = {name: float(np.mean(values[:, i])) for name, values in curves.items() if name != OURS}
    return min((name for name in means if not np.isnan(means[name])), key=lambda name: means[name])


def _rank(curves: Mapping[str, NDArray[np.float64]], i: int) -> int:
    ours = float(np.mean(curves["coreset-neuron"][:, i]))
    return 1 + sum(float(np.mean(values[:, i])) < ours for name, values in curves.items() if name != OURS)


def _remarks_of_fig5(curves: Mapping[str, NDArray[np.float64]]) -> list[str]:
    coreset, refitted = curves["coreset-neuron"].mean(0), curves[OURS].mean(0)
    times = ", ".join(f"{a / b:.1f}" for a, b in zip(coreset, refitted, strict=True))
    remarks = [
        FIGURE_ONLY + " Its text has the error that is shown here, its caption the accuracy.",
        "Why it is behind here: what is drawn is reweighed, which is noise where terms of both signs cancel (see coreset-fig4), "
        "and whole neurons go where the others take single weights or ranks.",
        f"Refitting the readers, without training, makes the coreset's error {times} times smaller.",
        "The paper's network is LeNet-200-105, trained by its authors; sampled neurons are one draw, reweighed and not refitted, "
        "as in the paper. Sparse matrices keep their shape, so that their size counts weights that are not zero.",
    ]
    missing = [name for name in COMPETITORS if name not in METHODS]
    return remarks + ([f"Not among the methods: {', '.join(missing)}."] if missing else [])


@experiment("coreset-fig6a", PAPER + ", Figure 6a", "mlp")
def fig6a(case: Case, seeds: int, progress: Progress) -> Result:
    """Accuracy without fine-tuning against compression: coreset, uniform, and the coreset refitted by least squares."""
    names, removed = ["coreset-neuron", "uniform-channel", OURS], [1 - k for k in KEPT]
    curves = _sweep(case, names, seeds, progress, lambda found: accuracy(found, case.labels))
    before = accuracy(answers(case.model, case.test), case.labels)
    unpruned = Line("unpruned", (removed[0], removed[-1]), (before, before), level=True)
    figure = _figure("Accuracy without fine-tuning", "share of the parameters removed", removed, curves,
                     y_label="test accuracy", percent="xy", more=[unpruned])  # fmt: skip
    ahead = np.nanmean(curves["coreset-neuron"] - curves["uniform-channel"], 0)
    gained = np.nanmean(curves[OURS] - curves["coreset-neuron"], 0)
    remarks = [
        FIGURE_ONLY,
        f"The original is right in {100 * before:.2f} %. The coreset is ahead of uniform sampling by "
        + ", ".join(f"{100 * a:+.1f}" for a in ahead) + " points.",
        "Refitting the readers (ours, no training) adds " + ", ".join(f"{100 * g:+.1f}" for g in gained)
        + " points; the paper fine-tunes instead (Fig. 6b), which needs labels and training.",
    ]  # fmt: skip
    claim = "Without fine-tuning the coreset is ahead of uniform sampling at almost all rates (no numbers are printed)."
    verdict = (
        f"It is at {int((ahead > 0).sum())} of {len(ahead)} rates, by {100 * ahead.mean():.1f} points on average; refitted, it "
        f"has {100 * curves[OURS][:, -1].mean():.1f} % with {100 * removed[-1]:.0f} % of the parameters removed, plain "
        f"{100 * curves['coreset-neuron'][:, -1].mean():.1f} %."
    )
    header = ("method", *(f"-{100 * r:.0f} %" for r in removed))
    return Result(header, _rows(curves, "{:.4f}"), [figure], remarks, claim, verdict)


def _sweep(
    case: Case, names: Sequence[str], seeds: int, progress: Progress, judge: Callable[[NDArray[np.float64]], float]
) -> dict[str, NDArray[np.float64]]:
    """Name -> (seeds, sizes): what `judge` says of the outputs of the model with so much left; NaN where it cannot be had."""
    found = {name: np.full((1 if name in ONCE else seeds, len(KEPT)), np.nan) for name in names}
    for number, name in enumerate(names):
        for i, kept in enumerate(KEPT):
            for seed in range(len(found[name])):
                progress(name, (number + i / len(KEPT)) / len(names))
                model = _pruned(case, name, kept, seed)
                if model is not None:
                    found[name][seed, i] = judge(answers(model, case.test))
    return found


def _pruned(case: Case, name: str, kept: float, seed: int) -> Any:
    """The model with the share `kept` of its parameters; None where the method cannot get there."""
    method = METHODS[name.partition(",")[0]]
    options: Mapping[str, Any] = {"draws": 1} if "draws" in method.options else {}
    repair = "least-squares" if name == OURS else "none"
    common: dict[str, Any] = {
        "data": case.calibration,
        "test_data": case.calibration[:8],
        "latency": False,
        "samples": len(case.calibration),
    }
    budget: dict[str, Any] = {"budget": "uniform"} if method.target != "rank" else {}
    try:
        return prune(
            case.model, method.name, target=f"params={kept}", repair=repair, options=options, seed=seed, **common, **budget
        ).model
    except OnnxpruneError:
        return None


def _figure(
    title: str,
    x_label: str,
    x: Sequence[float] | NDArray[np.int64],
    curves: Mapping[str, NDArray[np.float64]],
    *,
    y_label: str = "mean error of its output",
    log_y: bool = False,
    percent: str = "",
    more: Sequence[Line] = (),
) -> Figure:
    places = [float(v) for v in x]
    lines = [
        Line(name, places, values.mean(0).tolist(), values.std(0).tolist() if len(values) > 1 else None)
        for name, values in curves.items()
    ]
    return Figure(title, x_label, y_label, [*lines, *more], log_y=log_y, percent=percent)


def _rows(curves: Mapping[str, NDArray[np.float64]], form: str) -> list[list[str]]:
    return [[name, *("-" if np.isnan(v) else form.format(v) for v in values.mean(0))] for name, values in curves.items()]


def _near(sizes: NDArray[np.int64], wanted: float) -> int:
    return int(np.abs(sizes - wanted).argmin())
