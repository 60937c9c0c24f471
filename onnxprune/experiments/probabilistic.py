"""Qian and Klabjan, "A Probabilistic Approach to Neural Network Pruning": its tables and figures, its theorems at work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log, pi, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxprune.calibration.views import tensor
from onnxprune.experiments.experiment import Case, Figure, Line, Progress, Result, experiment
from onnxprune.experiments.probabilistic_tables import DRAWS2, DRAWS3, QUANTILES, TABLE1, TABLE2, TABLE3, Constant, Norm
from onnxprune.experiments.scoring import accuracy, answers, network_of
from onnxprune.pipeline import prune
from onnxprune.theory import theorems
from onnxprune.theory.guarantee import Bounds, bounds

PAPER = "Qian and Klabjan (ICML 2021)"
# Draws for one seed, and matrices whose norms are found at a time.
DRAWS, AT_ONCE = 100, 50
ENTRIES = {"u": "uniform", "1": "N(0,1/d)", "3": "N(0,3/d)"}
# Layers drawn in a histogram, its bins, and how many standard deviations it reaches to both sides.
SHOWN, BINS, REACH = 6, 40, 4.0
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
    measured: dict[Norm, tuple[float, float]] = {}
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
        measured[paper] = float(found.mean()), float(found.std())
        cells = [f"{np.quantile(found, q):.3f} ({c0:.3f})" for q, c0 in zip(QUANTILES, paper.c0, strict=True)]
        k = "1" if paper.k == 1 else "√3"
        mean = f"{found.mean():.3f} ({paper.mean:.3f})"
        rows.append([f"{paper.n1} x {paper.n2}", k, mean, f"{gap:+.1f}", f"{found.std():.3f} ({paper.deviation:.3f})", *cells])
    header = ("B", "K", "E ||B||", "apart", "deviation", *(f"c0, {100 * q:g} %" for q in QUANTILES))
    remarks = [
        f"{draws} draws a row, the paper's {DRAWS2}; in brackets the paper's. Apart: in standard errors of the difference.",
        "delta0 follows from q and n = max(n1, n2) alone, -log((1 - q) / 2) / (4 n), as it is printed: " + _deltas() + ".",
        f"With {draws} draws the quantile at 99.99 % is all but the largest value, as it is with the paper's {DRAWS2}.",
    ]
    least, most = min(row.mean for row in TABLE2), max(row.mean for row in TABLE2)
    claim = f"Norms of random matrices, from which the constants of Lemma 3 follow: E ||B|| between {least} and {most}."
    worst = max(abs(float(np.log(measured[row][0] / row.mean))) for row in measured)
    verdict = f"{_near(gaps)} No mean is more than {100 * worst:.2f} % off the printed one."
    return Result(header, rows, _norm_figures(measured), remarks, claim, verdict)


def _deltas() -> str:
    widths = sorted({max(row.n1, row.n2) for row in TABLE2})
    return "; ".join(f"n = {n}: " + " ".join(f"{-log((1 - q) / 2) / (4 * n):.3f}" for q in QUANTILES) for n in widths)


def _norm_figures(measured: Mapping[Norm, tuple[float, float]]) -> list[Figure]:
    """One for each K: the mean norm against n2, a line for each n1."""
    figures = []
    for k in dict.fromkeys(row.k for row in measured):
        lines = []
        for n1 in dict.fromkeys(row.n1 for row in measured):
            of = [row for row in measured if row.n1 == n1 and row.k == k]
            x, found = [row.n2 for row in of], [measured[row] for row in of]
            lines.append(Line(f"n1 = {n1}", x, [mean for mean, _ in found], [spread for _, spread in found]))
            lines.append(Line(f"n1 = {n1}, paper", x, [row.mean for row in of], paper=True, like=f"n1 = {n1}"))
        name = "1" if k == 1 else "√3"
        title = f"Norms of random matrices, entries uniform on ±K / √n2, K = {name}"
        figures.append(Figure(title, "n2", "E ||B||, of n1 x n2 matrices", lines, log_x=True))
    return figures


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
    measured: dict[Constant, float] = {}
    for number, paper in enumerate(TABLE3):
        progress(f"d = {paper.d}", number / len(TABLE3))
        kept, gone = _Latala(paper.d), _Latala(paper.d)
        for start in range(0, draws, AT_ONCE):
            a, hit = _drawn(paper, min(AT_ONCE, draws - start), rng)
            kept.add(a * ~hit)
            if paper.alpha is not None:
                gone.add(a * hit)
        measured[paper] = kept.c
        gap = (kept.norm - paper.norm) / (kept.deviation * sqrt(1 / draws + 1 / DRAWS3) + 0.0005)
        gaps.append(gap)
        cells = [f"{a:.3f} ({b:.3f})" for a, b in zip((*kept.terms, kept.norm), (*paper.terms, paper.norm), strict=True)]
        rows.append(
            [str(paper.d), ENTRIES[paper.drawn], str(paper.alpha or "-"), *cells,
             f"{gap:+.1f}", f"{kept.c:.3f} ({paper.c:.3f})", f"{gone.c:.3f}" if paper.alpha is not None else "-"]
        )  # fmt: skip
    remarks = [
        f"{draws} draws a row, the paper's {DRAWS3}; in brackets the paper's. Apart: in standard errors of the difference.",
        "The terms of rows and columns are the largest of d estimates and lie above the expectation (1 for the unpruned matrices "
        "of variance 1/d), the more so the fewer draws there are; C comes out smaller by that.",
        "What the paper measures under alpha is the matrix that is left after floor(d^(2 - alpha)) draws with replacement; the "
        "inequality (19) is about what goes, whose C is in the last column.",
    ]
    header = ("d", "entries", "alpha", "rows", "columns", "fourth", "E ||A||", "apart", "C", "gone")
    claim = f"The constant of Latala's inequality is small: C between {min(r.c for r in TABLE3)} and {max(r.c for r in TABLE3)}."
    worst = max(abs(c - row.c) for row, c in measured.items())
    verdict = (
        f"C between {min(measured.values()):.3f} and {max(measured.values()):.3f}, at most {worst:.3f} from the printed. "
        + _near(gaps)
    )
    return Result(header, rows, [_constant_figure(measured)], remarks, claim, verdict)


def _constant_figure(measured: Mapping[Constant, float]) -> Figure:
    """C against d: a line for each kind of matrix, the paper's dotted."""
    lines = []
    for drawn, alpha in dict.fromkeys((row.drawn, row.alpha) for row in measured):
        of = [row for row in measured if (row.drawn, row.alpha) == (drawn, alpha)]
        name = ENTRIES[drawn] + (f", pruned, alpha = {alpha:g}" if alpha is not None else "")
        x = [row.d for row in of]
        lines.append(Line(name, x, [measured[row] for row in of]))
        lines.append(Line(f"{name}, paper", x, [row.c for row in of], paper=True, like=name))
    return Figure("The constant of Latala's inequality", "d, of d x d matrices", "smallest C that holds", lines, log_x=True)


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
    rows = []
    for row in found.layers:
        m = row.moments
        rows.append(
            [row.layer.name, f"{m.mean:.4f}", f"{m.variance:.4f}", f"{m.k1:.2f}", f"{m.k2:.2f}", f"{m.kurtosis:.2f}",
             f"{m.uniform:.3f}", f"{m.gaussian:.3f}"]
        )  # fmt: skip
    inner = found.layers[1:-1]
    nearer = sum(row.moments.gaussian < row.moments.uniform for row in inner)
    uniform = sum(row.moments.looks_uniform for row in inner)
    kurtoses = [row.moments.kurtosis for row in inner]
    remarks = [
        f"The moments depend on the model: {remark}.",
        f"Drawn: weights over their standard deviation, {SHOWN} layers at most. Kurtosis: 1.8 if uniform, 3 if Gaussian; 'from "
        "uniform' and 'from Gaussian' are the largest gaps between distribution functions.",
    ]
    claim = "Weights of a trained network's inner layers are about Gaussian, with moments bounded as the theorems assume"
    claim += (
        f" (m times the variance: {min(float(row[3]) for row in paper)} to {max(float(row[3]) for row in paper)})."
        if paper
        else "."
    )
    verdict = f"{nearer} of {len(inner)} inner layers are nearer to a Gaussian than to a uniform distribution"
    if inner:
        verdict += (
            f", with heavier tails (kurtosis {min(kurtoses):.1f} to {max(kurtoses):.1f}, a Gaussian has 3), m E w^2 up to "
            f"{max(row.moments.k1 for row in inner):.3g}; {uniform} could be uniform, as Theorem 1 needs"
        )
    header = ("layer", "mean", "variance", "m E w^2", "m^2 E w^4", "kurtosis", "from uniform", "from Gaussian")
    return Result(header, [*rows, *paper], (_histograms(case, found),), remarks, claim, verdict + ".")


def _histograms(case: Case, found: Bounds) -> Figure:
    """Densities of the weights over their standard deviation, so that layers can be compared, and a Gaussian's."""
    graph, _ = network_of(case.model, case.calibration)
    picked = np.unique(np.linspace(0, len(found.layers) - 1, SHOWN).round().astype(int))
    edges = np.linspace(-REACH, REACH, BINS + 1)
    middles, width = (edges[1:] + edges[:-1]) / 2, 2 * REACH / BINS
    lines = []
    for row in (found.layers[i] for i in picked):
        weights = tensor(graph, row.layer.weight, "cpu").double().numpy().ravel()
        counts = np.histogram((weights - weights.mean()) / (weights.std() or 1.0), edges)[0]
        lines.append(Line(row.layer.name, middles.tolist(), (counts / weights.size / width).tolist()))
    gaussian = np.exp(-(middles**2) / 2) / sqrt(2 * pi)
    lines.append(Line("Gaussian", middles.tolist(), gaussian.tolist(), level=True))
    return Figure("Weights of the layers", "weight, in standard deviations of its layer", "density", lines)


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
    before = accuracy(original, case.labels)
    rows: list[list[str]] = []
    accuracies: list[Line] = []
    errors: list[Line] = []
    for number, (name, options) in enumerate(ways.items()):
        table = np.zeros((len(RATIOS), seeds if name.startswith("random") else 1, 2))
        for i, ratio in enumerate(RATIOS):
            progress(name, (number + i / len(RATIOS)) / len(ways))
            for seed in range(table.shape[1]):
                result = prune(
                    case.model, name, ratio, data=case.calibration[:CALIBRATION], repair="none", keep_ends=True, latency=False,
                    options=options, seed=seed,
                )  # fmt: skip
                found = answers(result.model, case.test)
                table[i, seed] = accuracy(found, case.labels), np.linalg.norm(found - original, axis=1).max()
        mean, spread = table.mean(1), table.std(1) if table.shape[1] > 1 else None
        for column, lines in enumerate((accuracies, errors)):
            lines.append(Line(name, RATIOS, mean[:, column].tolist(), None if spread is None else spread[:, column].tolist()))
        rows.append([name, *(f"{100 * a:.1f} % / {e:.3g}" for a, e in mean)])
    size = float(np.linalg.norm(original, axis=1).mean())
    remarks = [
        f"Cells: accuracy / largest error of the outputs. Unpruned: {100 * before:.1f} % of {len(case.labels)} samples, outputs "
        f"of norm {size:.3g} on average. The paper has theorems and no such figure."
    ]
    said = [bounds(case.model, ratio=r, radius=radius, input_shapes=_shapes(case)) for r in (RATIOS if within else RATIOS[:1])]
    if within and all(b.error for b in said):
        limits = [sum(b.error.values()) for b in said]
        errors.append(Line("magnitude, never more", RATIOS, limits, like="magnitude"))
        rows.append(["at most", *(f"- / {limit:.3g}" for limit in limits)])
        remarks.append(f"At most: of magnitude, for every input of norm at most {radius:.3g}, the largest of the test samples.")
    outside = _regime(said[0])
    accuracies.append(Line("unpruned", (RATIOS[0], RATIOS[-1]), (before, before), level=True))
    figures = (
        Figure("Weights set to zero, nothing repaired", "share removed", "test accuracy", accuracies, percent="xy"),
        Figure("Largest error of the outputs", "share removed", "||f(x) - F(x)||", errors, log_y=True, percent="x"),
    )
    claim, verdict = _verdict(said[0], accuracies, errors)
    return Result(("method", *(f"{100 * r:g} %" for r in RATIOS)), rows, figures, remarks + outside, claim, verdict)


def _verdict(said: Bounds, accuracies: Sequence[Line], errors: Sequence[Line]) -> tuple[str, str]:
    claim = "A share that vanishes as the network widens may go, by magnitude or at random, with error eps and high probability."
    outside = [theorem.name for theorem in said.theorems if theorem.outside]
    at = len(RATIOS) // 2
    shown = ", ".join(f"{line.label} {100 * line.y[at]:.1f} %" for line in accuracies[:-1])
    verdict = f"Of {len(said.theorems)} theorems {len(outside)} say nothing of this network; "
    verdict += f"with {RATIOS[at]:.0%} removed: {shown}"
    limits = {line.like: line for line in errors if line.like}
    if "magnitude" in limits:
        measured = next(line for line in errors if line.label == "magnitude")
        loose = [most / seen for most, seen in zip(limits["magnitude"].y, measured.y, strict=True) if seen]
        verdict += f"; the bound that always holds is {min(loose):.0f} to {max(loose):.0f} times what is seen" if loose else ""
    return claim, verdict + "."


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
