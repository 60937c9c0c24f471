"""Mussay et al., "Data-Independent Structured Pruning of Neural Networks via Coresets": Figures 4, 5 and 6a, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
        "a, Gaussian": _random(samples, "normal"),
        "b, uniform": _random(samples, "uniform"),
        "c, trained": _trained(case, samples),
    }
    rows, figures, remarks = [], [], [FIGURE_ONLY]
    for number, (name, neuron) in enumerate(settings.items()):
        progress(f"({name})", number / len(settings))
        sizes = np.unique(np.linspace(len(neuron.points) / SIZES, len(neuron.points), SIZES).round().astype(int))
        curves = _errors(neuron, sizes, seeds)
        figures.append(_figure(f"Fig. 4 ({name}): error of a neuron", "size of the coreset", sizes, curves))
        for way, errors in curves.items():
            rows.append(
                [name, way, *(f"{errors.mean(0)[_near(sizes, s * len(neuron.points))]:.3g}" for s in (0.1, 0.3, 0.5, 0.8))]
            )
        remarks.append(_claim(name, sizes, curves))
    remarks.append(
        "Sizes are distinct points, drawn until there are so many; what is drawn is reweighed, which is unbiased but noisy: "
        "dropping points of small norm unweighted, as percentile does, errs less where weights of both signs cancel."
    )
    return Result(("setting", "method", "10 % of the points", "30 %", "50 %", "80 %"), rows, figures, remarks)


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
    names = [name for name in COMPETITORS if name in METHODS]
    curves = _sweep(case, names, seeds, progress, lambda found: l1_error(found, original))
    figure = _figure("Fig. 5: error of the network", "share of the parameters removed", [1 - k for k in KEPT], curves, log_y=True)
    best = [min(curves, key=lambda n: float(np.nanmean(curves[n][:, i])) if not np.isnan(curves[n][:, i]).all() else np.inf)
            for i in range(len(KEPT))]  # fmt: skip
    first = [f"{100 * (1 - k):.0f} %: {name}" for k, name in zip(KEPT, best, strict=True)]
    remarks = [
        FIGURE_ONLY,
        f"The paper finds its neural coreset ahead of all others, most of all at high compression. Here the least error has at "
        f"{'; '.join(first)}.",
        "The paper's network is LeNet-200-105, trained by its authors; sampled neurons are one draw, reweighed and not refitted, "
        "as in the paper. Sparse matrices keep their shape, so that their size counts weights that are not zero.",
    ]
    missing = [name for name in COMPETITORS if name not in METHODS]
    remarks += [f"Not among the methods: {', '.join(missing)}."] if missing else []
    return Result(("method", *(f"{100 * (1 - k):.0f} % removed" for k in KEPT)), _rows(curves, "{:.3g}"), [figure], remarks)


@experiment("coreset-fig6a", PAPER + ", Figure 6a", "mlp")
def fig6a(case: Case, seeds: int, progress: Progress) -> Result:
    """Accuracy without fine-tuning against compression: coreset, uniform, and the coreset refitted by least squares."""
    names = ["coreset-neuron", "uniform-channel", OURS]
    curves = _sweep(case, names, seeds, progress, lambda found: accuracy(found, case.labels))
    figure = _figure("Fig. 6a: accuracy without fine-tuning", "share of the parameters removed", [1 - k for k in KEPT], curves)
    ahead = np.nanmean(curves["coreset-neuron"] - curves["uniform-channel"], 0)
    gained = np.nanmean(curves[OURS] - curves["coreset-neuron"], 0)
    remarks = [
        FIGURE_ONLY,
        "The paper finds the coreset ahead of uniform sampling at almost all rates; here it is ahead by "
        + ", ".join(f"{100 * a:+.1f}" for a in ahead) + " points.",
        "Refitting the readers (ours, no training) adds " + ", ".join(f"{100 * g:+.1f}" for g in gained) + " points.",
        f"The original is right in {100 * accuracy(answers(case.model, case.test), case.labels):.2f} %.",
    ]  # fmt: skip
    header = ("method", *(f"{100 * (1 - k):.0f} % removed" for k in KEPT))
    return Result(header, _rows(curves, "{:.4f}"), [figure], remarks)


def _sweep(
    case: Case, names: Sequence[str], seeds: int, progress: Progress, judge: Callable[[NDArray[np.float64]], float]
) -> dict[str, NDArray[np.float64]]:
    """Name -> (seeds, sizes): what `judge` says of the outputs of the model with so much left; NaN where it cannot be had."""
    found = {name: np.full((seeds, len(KEPT)), np.nan) for name in names}
    for number, name in enumerate(names):
        for i, kept in enumerate(KEPT):
            for seed in range(seeds):
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
    log_y: bool = False,
) -> Figure:
    places = [float(v) for v in x]
    lines = [
        Line(name, places, [float(v) for v in values.mean(0)], [float(v) for v in values.std(0)])
        for name, values in curves.items()
    ]
    return Figure(title, x_label, "accuracy" if "accuracy" in title else "mean error", lines, log_y=log_y)


def _rows(curves: Mapping[str, NDArray[np.float64]], form: str) -> list[list[str]]:
    return [[name, *("-" if np.isnan(v) else form.format(v) for v in values.mean(0))] for name, values in curves.items()]


def _near(sizes: NDArray[np.int64], wanted: float) -> int:
    return int(np.abs(sizes - wanted).argmin())


def _claim(name: str, sizes: NDArray[np.int64], curves: Mapping[str, NDArray[np.float64]]) -> str:
    """The paper's sentence about Fig. 4, checked."""
    ours = curves["coreset"].mean(0)[:-1]
    others = {way: curves[way].mean(0)[:-1] for way in ("uniform", "percentile")}
    told = []
    for way, theirs in others.items():
        share = ours.mean() / theirs.mean()
        told.append(f"{int((ours < theirs).sum())} of {len(ours)} sizes better than {way} (mean error {share:.2f} of its)")
    return f"({name}) The paper's coreset beats the others at every size; here it is at {' and '.join(told)}."
