"""Qian and Klabjan, "A Probabilistic Approach to Neural Network Pruning": its tables and figures, its theorems at work."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxprune import theorems
from onnxprune.experiments.experiment import Case, Figure, Line, Progress, Result, experiment
from onnxprune.experiments.probabilistic_tables import DRAWS2, DRAWS3, QUANTILES, TABLE1, TABLE2, TABLE3, Constant
from onnxprune.experiments.scoring import accuracy, answers
from onnxprune.guarantee import Bounds, bounds
from onnxprune.pipeline import prune

PAPER = "Qian and Klabjan (ICML 2021)"
# Draws for one seed, and matrices whose norms are found at a time.
DRAWS, AT_ONCE = 100, 50
RATIOS = (0.01, 0.1, 0.3, 0.5, 0.7, 0.9)
CALIBRATION = 64


def norms(matrices: Tensor) -> Tensor:
    """Spectral norms of (n, rows, columns), through the smaller of the products."""
    small = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    largest: Tensor = torch.linalg.eigvalsh(small @ small.mT)[:, -1]
    return largest.clamp(min=0).sqrt()


@experiment("probabilistic-table2", PAPER + ", Table 2", "none")
def table2(case: Case, seeds: int, progress: Progress) -> Result:
    """Lemma 3: c0 and delta0 with P(||B||_2 <= c0) = 1 - 2 exp(-4 delta0 n) = q."""
    draws, rng, rows, gaps = min(DRAWS * seeds, DRAWS2), torch.Generator().manual_seed(0), [], []
    for number, paper in enumerate(TABLE2):
        progress(f"{paper.n1} x {paper.n2}", number / len(TABLE2))
        widest = max(paper.n1, paper.n2)
        drawn = []
        for start in range(0, draws, AT_ONCE):
            shape = (min(AT_ONCE, draws - start), paper.n1, paper.n2)
            b = (2 * torch.rand(shape, generator=rng, dtype=torch.float64) - 1) * paper.k / sqrt(widest)
            drawn.append(norms(b))
        found = torch.cat(drawn).numpy()
        gap = (found.mean() - paper.mean) / (found.std() * sqrt(1 / draws + 1 / DRAWS2) + 0.0005)
        gaps.append(float(gap))
        cells = [f"{np.quantile(found, q):.3f} ({c0:.3f})" for q, c0 in zip(QUANTILES, paper.c0, strict=True)]
        deltas = " ".join(f"{-log((1 - q) / 2) / (4 * widest):.3f}" for q in QUANTILES)
        k = "1" if paper.k == 1 else "sqrt 3"
        mean = f"{found.mean():.3f} ({paper.mean:.3f})"
        rows.append(
            [f"{paper.n1} x {paper.n2}", k, mean, f"{gap:+.1f}", f"{found.std():.3f} ({paper.deviation:.3f})", *cells, deltas]
        )
    header = ("B", "K", "E ||B||", "standard errors apart", "deviation", *(f"c0, {100 * q:g} %" for q in QUANTILES), "delta0")
    remarks = [
        f"{draws} draws a row, the paper's {DRAWS2}; in brackets the paper's. {_near(gaps)}",
        "delta0 follows from q and n alone, -log((1 - q) / 2) / (4 n), whatever is drawn.",
        f"With {draws} draws the quantile at 99.99 % is all but the largest value, as it is with the paper's {DRAWS2}.",
    ]
    return Result(header, rows, (), remarks)


def _near(gaps: Sequence[float]) -> str:
    near = sum(abs(gap) <= 2 for gap in gaps)
    return (
        f"Of {len(gaps)} mean norms {near} are within two standard errors of the difference and its rounding; the farthest is "
        f"{max(map(abs, gaps)):.1f} away."
    )


@experiment("probabilistic-table3", PAPER + ", Table 3", "none")
def table3(case: Case, seeds: int, progress: Progress) -> Result:
    """Lemma 4: the smallest C with E ||A|| <= C (max row + max column + fourth moments)."""
    draws, rng, rows, gaps = min(DRAWS * seeds, DRAWS3), torch.Generator().manual_seed(0), [], []
    for number, paper in enumerate(TABLE3):
        progress(f"d = {paper.d}", number / len(TABLE3))
        kept, gone = _Latala(paper.d), _Latala(paper.d)
        for start in range(0, draws, AT_ONCE):
            a, hit = _drawn(paper, min(AT_ONCE, draws - start), rng)
            kept.add(a * ~hit)
            if paper.alpha is not None:
                gone.add(a * hit)
        gap = (kept.norm - paper.norm) / (kept.deviation * sqrt(1 / draws + 1 / DRAWS3) + 0.0005)
        gaps.append(gap)
        cells = [f"{a:.3f} ({b:.3f})" for a, b in zip((*kept.terms, kept.norm), (*paper.terms, paper.norm), strict=True)]
        rows.append(
            [str(paper.d), {"u": "uniform", "1": "N(0, 1/d)", "3": "N(0, 3/d)"}[paper.drawn], str(paper.alpha or "-"), *cells,
             f"{gap:+.1f}", f"{kept.c:.3f} ({paper.c:.3f})", f"{gone.c:.3f}" if paper.alpha is not None else "-"]
        )  # fmt: skip
    remarks = [
        f"{draws} draws a row, the paper's {DRAWS3}; in brackets the paper's. {_near(gaps)}",
        "The terms of rows and columns are the largest of d estimates and lie above the expectation (1 for the unpruned matrices "
        "of variance 1/d), the more so the fewer draws there are; C comes out smaller by that.",
        "What the paper measures under alpha is the matrix that is left after floor(d^(2 - alpha)) draws with replacement; the "
        "inequality (19) is about what goes, whose C is in the last column.",
    ]
    header = ("d", "entries", "alpha", "rows", "columns", "fourth", "E ||A||", "standard errors apart", "C", "C of what goes")
    return Result(header, rows, (), remarks)


def _drawn(paper: Constant, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(count, d, d) matrices, and what floor(d^(2 - alpha)) draws with replacement hit in each."""
    d, shape = paper.d, (count, paper.d, paper.d)
    if paper.drawn == "u":
        a = (2 * torch.rand(shape, generator=rng, dtype=torch.float64) - 1) * sqrt(3 / d)
    else:
        a = torch.randn(shape, generator=rng, dtype=torch.float64) * sqrt(int(paper.drawn) / d)
    hit = torch.zeros(count, d * d, dtype=torch.bool)
    if paper.alpha is not None:
        hit.scatter_(1, torch.randint(d * d, (count, theorems.pruned_kernels(d, paper.alpha)), generator=rng), True)
    return a, hit.reshape(shape)


class _Latala:
    """The quantities of Lemma 4, estimated from draws."""

    def __init__(self, d: int) -> None:
        self.count = 0
        self.squares, self.fourths = torch.zeros(d, d, dtype=torch.float64), 0.0
        self._norms: list[Tensor] = []

    def add(self, matrices: Tensor) -> None:
        self.count += len(matrices)
        self.squares += (matrices**2).sum(0)
        self.fourths += float((matrices**4).sum())
        self._norms.append(norms(matrices))

    @property
    def terms(self) -> tuple[float, float, float]:
        mean = self.squares / self.count
        return sqrt(float(mean.sum(1).max())), sqrt(float(mean.sum(0).max())), (self.fourths / self.count) ** 0.25

    @property
    def norm(self) -> float:
        return float(torch.cat(self._norms).mean())

    @property
    def deviation(self) -> float:
        return float(torch.cat(self._norms).std())

    @property
    def c(self) -> float:
        return self.norm / sum(self.terms)


@experiment("probabilistic-fig1", PAPER + ", Figure 1 and Table 1", "mlp")
def fig1(case: Case, seeds: int, progress: Progress) -> Result:
    """Histograms and moments of the weights of a trained fully connected network."""
    paper = [
        [f"paper, {n}", f"{mean:.4f}", f"{variance:.4f}", f"{1024 * variance:.2f}", "", "", "", ""]
        for n, mean, variance in TABLE1
    ]
    return _weights(case, paper, "the paper's are of five hidden layers of 1024 trained on Covertype, m = 1024")


@experiment("probabilistic-fig2", PAPER + ", Figure 2", "cnn")
def fig2(case: Case, seeds: int, progress: Progress) -> Result:
    """Histograms and moments of the weights of a trained convolutional network (the paper's is VGG-16)."""
    return _weights(case, [], "the paper shows VGG-16")


def _weights(case: Case, paper: Sequence[Sequence[str]], remark: str) -> Result:
    found = bounds(case.model, ratio=0.0, input_shapes=_shapes(case))
    rows, lines = [], []
    for row in found.layers:
        m = row.moments
        rows.append(
            [row.layer.name, f"{m.mean:.4f}", f"{m.variance:.4f}", f"{m.k1:.2f}", f"{m.k2:.2f}", f"{m.kurtosis:.2f}",
             f"{m.uniform:.3f}", f"{m.gaussian:.3f}"]
        )  # fmt: skip
        bins = len(m.histogram)
        middles = [(2 * (i + 0.5) / bins - 1) * m.largest for i in range(bins)]
        lines.append(Line(row.layer.name, middles, [n / m.weights for n in m.histogram]))
    inner = found.layers[1:-1]
    nearer = sum(row.moments.gaussian < row.moments.uniform for row in inner)
    remarks = [
        f"{nearer} of {len(inner)} inner layers are nearer to a Gaussian than to a uniform distribution, as the paper's are; "
        f"{sum(row.moments.looks_uniform for row in inner)} could be uniform, as Theorem 1 needs.",
        f"The moments depend on the model: {remark}.",
    ]
    header = ("layer", "mean", "variance", "m E w^2", "m^2 E w^4", "kurtosis", "from uniform", "from Gaussian")
    figure = Figure("Weights of the layers", "weight", "share of the weights", lines)
    return Result(header, [*rows, *paper], (figure,), remarks)


def _shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """One sample at a time, in the size of those that were given."""
    return {"": (1, *case.test.shape[1:])}


@experiment("probabilistic-mlp", PAPER + ", Theorems 1 and 2 (no figure in the paper)", "mlp")
def mlp(case: Case, seeds: int, progress: Progress) -> Result:
    """Error and accuracy of pruned weights against the ratio, beside what cannot be exceeded. No repair; the ends stay whole."""
    return _curves(case, seeds, progress, {"magnitude": {}, "random": {"replace": True}}, within=True)


@experiment("probabilistic-cnn", PAPER + ", Theorem 3 and appendix C.2 (no figure in the paper)", "cnn")
def cnn(case: Case, seeds: int, progress: Progress) -> Result:
    """Error and accuracy of pruned 2-D filters and weights against the ratio. No repair; the ends stay whole."""
    ways: dict[str, dict[str, Any]] = {name: {} for name in ("magnitude-kernel", "random-kernel", "magnitude", "random")}
    return _curves(case, seeds, progress, ways, within=False)


def _curves(case: Case, seeds: int, progress: Progress, ways: dict[str, dict[str, Any]], *, within: bool) -> Result:
    original, radius = answers(case.model, case.test), _radius(case)
    rows, accuracies, errors = [], [], []
    for number, (name, options) in enumerate(ways.items()):
        repeats = seeds if name.startswith("random") else 1
        table = np.zeros((len(RATIOS), repeats, 2))
        for (i, ratio), seed in ((r, s) for r in enumerate(RATIOS) for s in range(repeats)):
            progress(name, (number + i / len(RATIOS)) / len(ways))
            result = prune(
                case.model, name, ratio, data=case.calibration[:CALIBRATION], repair="none", keep_ends=True, latency=False,
                options=options, seed=seed,
            )  # fmt: skip
            found = answers(result.model, case.test)
            table[i, seed] = accuracy(found, case.labels), np.linalg.norm(found - original, axis=1).max()
        mean, spread = table.mean(1), table.std(1)
        accuracies.append(Line(name, RATIOS, mean[:, 0].tolist(), spread[:, 0].tolist() if repeats > 1 else None))
        errors.append(Line(name, RATIOS, mean[:, 1].tolist(), spread[:, 1].tolist() if repeats > 1 else None))
        rows.append([name, *(f"{100 * a:.1f} % / {e:.3g}" for a, e in mean)])
    remarks = [
        f"Unpruned: {100 * accuracy(original, case.labels):.1f} % of {len(case.labels)} samples, outputs of norm "
        f"{np.linalg.norm(original, axis=1).mean():.3g} on average. The paper has no such figure."
    ]
    said = [bounds(case.model, ratio=r, radius=radius, input_shapes=_shapes(case)) for r in (RATIOS if within else RATIOS[:1])]
    if within and all(b.error for b in said):
        limits = [sum(b.error.values()) for b in said]
        errors.append(Line("never more, magnitude", RATIOS, limits))
        rows.append(["never more, magnitude", *(f"- / {limit:.3g}" for limit in limits)])
        remarks.append(f"The last row holds for every input of norm at most {radius:.3g}, the largest of the test samples.")
    remarks += _regime(said[0])
    figures = (
        Figure("Accuracy after pruning", "share removed", "accuracy", accuracies),
        Figure("Largest error of the outputs", "share removed", "||f(x) - F(x)||", errors, log_y=True),
    )
    return Result(("method", *(f"{100 * r:g} %" for r in RATIOS)), rows, figures, remarks)


def _radius(case: Case) -> float:
    return float(np.linalg.norm(case.test.reshape(len(case.test), -1).astype(np.float64), axis=1).max())


def _regime(said: Bounds) -> list[str]:
    lines: list[str] = []
    for theorem in said.theorems:
        if theorem.outside:
            lines.append(f"{theorem.name}: outside its regime: {'; '.join(theorem.outside[:3])}")
        elif theorem.promise is not None:
            lines.append(f"{theorem.name}: error {theorem.promise.error:.3g} with probability {theorem.promise.confidence:.3g}")
    return lines
