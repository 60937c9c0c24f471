"""The report card of "When Are Neural Pruning Approximation Bounds Useful?" (Figures 2, 3, 6 and 8) and its appendix C.2.

`report_card` is for any model with a fully connected last layer: what error a wanted share of labels needs, what a bound promises
for a pruning, and what is then seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.decide.labels import last_layer
from onnxprune.errors import UsageError
from onnxprune.experiments.experiment import Case, Figure, Line, Progress, Result, experiment
from onnxprune.experiments.scoring import accuracy, answers, network_of
from onnxprune.jobs.job import PruneResult
from onnxprune.network import Layer
from onnxprune.pipeline import prune
from onnxprune.validation.labels import additive_margins, guaranteed_share, multiplicative_margins, required_epsilon

PAPER = "When Are Neural Pruning Approximation Bounds Useful?"
WAYS = {"Wt Rnd": "coreset-weight-rand", "Wt Det": "coreset-weight-det", "Neuron": "coreset-neuron"}
# Figure 2, LeNet, "easy" and "difficult": (required eps, observed error, accuracy, samples, sparsity in %).
FIGURE_2 = {
    ("Wt Rnd", "easy"): ("0.46", "0.04±0.18", "0.98", "271K", "94.06"),
    ("Wt Rnd", "as it is"): ("0.49", "0.03±0.18", "0.98", "1M", "0.00"),
    ("Wt Det", "easy"): ("0.46", "0.00±0.00", "0.98", "60", "94.06"),
    ("Wt Det", "as it is"): ("0.49", "0.01±0.04", "0.98", "927", "8.22"),
    ("Neuron", "easy"): ("5.69", "0.06±0.05", "0.98", "62K", "90.00"),
    ("Neuron", "as it is"): ("5.20", "0.13±0.09", "0.98", "114K", "0.00"),
}
CASES = ("easy", "as it is")
SHARE = 0.5
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
RATIOS = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9)
ALPHAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# Share of the last layer's weights, and of the neurons before it, that the easy case is without.
EASY = {"Wt Rnd": 0.95, "Wt Det": 0.95, "Neuron": 0.9}


@dataclass(frozen=True)
class Card:
    """One line of Figure 2. Errors are additive for neurons, else relative to the output (bias included), as the paper has them.

    required    eps that the wanted share of labels needs by Lemma 4.1; None for layers further back
    implied     eps that the method's bound gives for what was done
    guaranteed  share of labels that `implied` guarantees by Lemma 4.1
    observed    (mean, standard deviation, maximum) on test samples
    units       weights of the layer, or neurons; `kept` of them stay, `draws` is what sampling took
    """

    way: str
    layer: str
    mode: str
    required: float | None
    implied: float | None
    guaranteed: float | None
    observed: tuple[float, float, float]
    agreement: float
    accuracy: float
    units: int
    kept: int
    draws: int | None

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / self.units


@dataclass(frozen=True)
class Subject:
    """A model with what is known of it before any pruning: margins are those of test samples that it gets right."""

    model: onnx.ModelProto
    layers: tuple[Layer, ...]
    last: Layer
    outputs: NDArray[np.float64]
    right: NDArray[np.bool_]

    @classmethod
    def of(cls, model: onnx.ModelProto, case: Case) -> Subject:
        graph, network = network_of(model, case.calibration)
        dense = tuple(layer for layer in network.layers if layer.op in ("Gemm", "MatMul"))
        last = last_layer(graph, network)
        if last.output not in graph.outputs:
            raise UsageError("the model's outputs are no logits", "take a model without the Softmax at its end")
        found = answers(model, case.test)
        return cls(model, dense, last, found, found.argmax(1) == case.labels)

    def margins(self, way: str) -> NDArray[np.float64]:
        """eps from which on each right answer may turn wrong, by Lemma 4.1."""
        logits = self.outputs[self.right]
        return additive_margins(logits) if way == "Neuron" else multiplicative_margins(logits)

    def before(self, layer: Layer) -> Layer | None:
        """The fully connected layer whose neurons this one reads."""
        at = self.layers.index(layer)
        return self.layers[at - 1] if at else None


def report_card(
    case: Case,
    subject: Subject,
    way: str,
    layer: Layer,
    *,
    epsilon: float | None = None,
    ratio: float | None = None,
    seed: int = 0,
) -> Card:
    """One layer pruned by one method: error-first by `epsilon`, else sparsity-first by `ratio`."""
    result = _run(case, subject, way, layer, epsilon=epsilon, ratio=ratio, seed=seed)
    rows = [row for row in result.report["bounds"]["layers"] if layer.name in row["layers"]]
    if not rows:
        raise UsageError(f"method {WAYS[way]!r} does nothing to {layer.name!r}", "choose another layer")
    row, found = rows[0], answers(result.model, case.test)
    margins = subject.margins(way) if layer.name == subject.last.name else None
    seen, implied = row["observed" if way == "Neuron" else "relative_to_output"], row["implied_epsilon"]
    return Card(
        way=way, layer=layer.name, mode=f"{100 * (ratio or 0):.0f} % gone" if epsilon is None else f"error-first, {epsilon:.3g}",
        required=required_epsilon(margins, SHARE) if margins is not None else None, implied=implied,
        guaranteed=guaranteed_share(margins, implied) if margins is not None and implied is not None else None,
        observed=(seen["mean"], seen["std"], seen["max"]), agreement=float((found.argmax(1) == subject.outputs.argmax(1)).mean()),
        accuracy=accuracy(found, case.labels), units=row["units"], kept=row["kept"], draws=row["draws"],
    )  # fmt: skip


def _run(
    case: Case, subject: Subject, way: str, layer: Layer, *, epsilon: float | None = None, ratio: float | None = None,
    share: float | None = None, seed: int = 0,
) -> PruneResult:  # fmt: skip
    named: dict[str, Any] = {"only": [layer.weight]} if way != "Neuron" else _neurons_before(case, subject, layer)
    options: dict[str, Any] = {"draws": 1} if way == "Neuron" else {}
    return prune(
        subject.model, WAYS[way], ratio, epsilon=epsilon, guarantee_labels=share, repair="none",
        budget="auto" if ratio is None else "uniform", options=options, data=case.calibration, test_data=case.test,
        samples=max(len(case.calibration), len(case.test)), latency=False, seed=seed, **named,
    )  # fmt: skip


def _neurons_before(case: Case, subject: Subject, layer: Layer) -> dict[str, Any]:
    """--only and --skip that name the neurons that `layer` reads, and not those that their own layer reads."""
    maker = subject.before(layer)
    if maker is None:
        raise UsageError(f"no neurons stand before {layer.name!r}", "choose a later layer")
    _, network = network_of(subject.model, case.calibration)
    return {
        "only": [maker.name],
        "skip": [name for group in network.groups if maker.name in group.readers for name in group.makers],
    }


@experiment("bounds-report-card", PAPER + ", Figures 2, 3, 6 and 8", "mlp")
def card(case: Case, seeds: int, progress: Progress) -> Result:
    """What bounds promise and what is seen: the last layer error-first and by ratio, the other layers by ratio."""
    plain = Subject.of(onnx.load(case.model), case)
    rows: list[list[str]] = []
    found: dict[tuple[str, str], list[Card]] = {}
    for number, way in enumerate(WAYS):
        progress(way, number / (len(WAYS) + 2))
        for name in CASES:
            subject = plain if name == "as it is" else Subject.of(_easy(case, plain, way), case)
            epsilon = required_epsilon(subject.margins(way), SHARE)
            cards = [report_card(case, subject, way, subject.last, epsilon=epsilon, seed=s) for s in range(_repeats(way, seeds))]
            found[way, name] = cards
            required, observed, right, samples, sparsity = FIGURE_2[way, name]
            rows.append([way, name, *_cells(cards)])
            share = f"{100 * SHARE:g}"
            rows.append([way, f"{name}, paper", required, "", share, observed, "", f"{100 * float(right):g}", samples, sparsity])
    first, by_ratio = _by_ratio(case, plain, seeds, progress)
    for way, ratio, layer, cards in by_ratio:
        rows.append([way, f"{layer}, -{100 * ratio:.0f} %", *_cells(cards)])
    progress("labels against epsilon", 1 - 1 / (len(WAYS) + 2))
    header = ("method", "case", "ε needed", "implied", "guaranteed %", "observed", "agree %", "right %", "draws", "removed %")
    figures, remarks = [first, _shares_figure(case, plain)], _remarks(case, plain, seeds)
    return Result(header, rows, figures, remarks, *_verdict(found, first))


def _verdict(found: dict[tuple[str, str], list[Card]], by_ratio: Figure) -> tuple[str, str]:
    """The paper's sentence about Figures 2, 3 and 8, and the same of what was found."""

    def gone(name: str) -> str:
        return " / ".join(f"{100 * np.mean([c.sparsity for c in found[way, name]]):.1f}" for way in WAYS)

    claim = (
        "To keep half of the labels by the bound (random, deterministic, neurons), "
        f"{' / '.join(FIGURE_2[way, 'as it is'][4] for way in WAYS)} % of the last layer may go, "
        f"{' / '.join(FIGURE_2[way, 'easy'][4] for way in WAYS)} % if it was pruned before; "
        "bounds are loose: 90 % go before half of the labels are wrong."
    )
    lines = {line.label: line for line in by_ratio.lines}
    det, promised = lines["Wt Det"], lines["Wt Det, guaranteed"]
    verdict = (
        f"{gone('as it is')} % may go, {gone('easy')} % if it was pruned before; with {100 * det.x[-1]:.0f} % removed "
        f"deterministically {100 * det.y[-1]:.1f} % are right, where the bound guarantees {100 * promised.y[-1]:.0f} %."
    )
    return claim, verdict


def _repeats(way: str, seeds: int) -> int:
    return 1 if way == "Wt Det" else seeds


def _cells(cards: Sequence[Card]) -> list[str]:
    """Means over the seeds."""

    def mean(name: str, times: float = 1.0) -> str:
        values = [v for c in cards if (v := getattr(c, name)) is not None]
        return f"{times * np.mean(values):.3g}" if values else "-"

    error, spread = (_short(float(np.mean([c.observed[i] for c in cards]))) for i in (0, 1))
    draws = [c.draws for c in cards if c.draws is not None]
    shares = (f"{100 * np.mean([getattr(c, name) for c in cards]):.2f}" for name in ("agreement", "accuracy"))
    return [
        mean("required"), mean("implied"), mean("guaranteed", 100), f"{error}±{spread}", *shares,
        f"{int(np.mean(draws)):,}" if draws else "-", f"{100 * np.mean([c.sparsity for c in cards]):.2f}",
    ]  # fmt: skip


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _by_ratio(
    case: Case, subject: Subject, seeds: int, progress: Progress
) -> tuple[Figure, list[tuple[str, float, str, list[Card]]]]:
    """The last layer at every ratio, those before it at half; and Figures 3 and 8: accuracy, and what is guaranteed of it."""
    found, lines = [], []
    for number, way in enumerate(WAYS):
        progress(f"{way} by ratio", (len(WAYS) + number / len(WAYS)) / (len(WAYS) + 2))
        places = [(subject.last, ratio) for ratio in RATIOS]
        places += [
            (layer, 0.5)
            for layer in subject.layers
            if layer.name != subject.last.name and (way != "Neuron" or subject.before(layer))
        ]
        for layer, ratio in places:
            cards = [report_card(case, subject, way, layer, ratio=ratio, seed=s) for s in range(_repeats(way, seeds))]
            found.append((way, ratio, layer.name, cards))
        mine = [cards for w, _, layer_name, cards in found if w == way and layer_name == subject.last.name]
        x = [float(np.mean([c.sparsity for c in cards])) for cards in mine]
        lines.append(Line(way, x, [float(np.mean([c.accuracy for c in cards])) for cards in mine]))
        promised = [float(np.mean([c.guaranteed or 0.0 for c in cards])) for cards in mine]
        lines.append(Line(f"{way}, guaranteed", x, promised, like=way))
    before = float(subject.right.mean())
    lines.append(Line("unpruned", (0, max(RATIOS)), (before, before), level=True))
    title = "The last layer by ratio: labels that are right, and those that the bound guarantees"
    return Figure(title, "share of the layer removed", "share of the labels", lines, percent="xy"), found


def _shares_figure(case: Case, subject: Subject) -> Figure:
    """Figure 6: sparsity of the last layer against the share of right labels that is guaranteed."""
    lines = []
    for way in WAYS:
        margins = subject.margins(way)
        cards = [report_card(case, subject, way, subject.last, epsilon=required_epsilon(margins, share)) for share in SHARES]
        lines.append(Line(way, list(SHARES), [c.sparsity for c in cards]))
    lines += [Line(f"{way}, paper", (SHARE,), (float(FIGURE_2[way, "as it is"][4]) / 100,), paper=True, like=way) for way in WAYS]
    title, x = "How much of the last layer may go for a guarantee", "share of the right labels guaranteed"
    return Figure(title, x, "share of the layer removed", lines, percent="xy")


def _remarks(case: Case, subject: Subject, seeds: int) -> list[str]:
    sound = _run(case, subject, "Wt Det", subject.last, share=SHARE).report["bounds"]["required"]
    weights, neurons = (int(n) for n in _size(subject))
    return [
        f"The paper's model is its own LeNet-300-100 (98 %), its training and so its margins are others; this one is right in "
        f"{100 * subject.right.mean():.2f} %. Means over {seeds} seeds; K = 2, delta = 0.5, c = 1. The last layer has "
        f"{weights:,} weights and reads {neurons:,} neurons.",
        "'easy' was pruned before and its zeros put back, as in the paper (95 % of the last layer's weights, 90 % of the neurons "
        "before it), but refitted by least squares where the paper trains it again.",
        "The neuron coreset has no known constant c: with c = 1 the numbers of samples are comparable.",
        "Lemma 4.1 is about errors relative to a logit, the theorems about those relative to its positive and its negative part. "
        f"Taken against both parts, {100 * SHARE:.0f} % of the labels need {sound['epsilon']:.3g} where the lemma says "
        f"{sound['lemma_epsilon']:.3g} (calibration samples); --guarantee-labels takes the former.",
        "Observed errors are relative to the logit for weights: single logits near 0 make the deviation huge.",
        "A part of which every weight, or a layer of which every neuron, was drawn is left as it is: its error is 0, the paper's "
        "is the noise of reweighing.",
    ]


def _size(subject: Subject) -> tuple[int, int]:
    """Weights of the last layer, and its inputs."""
    shape = next(t.dims for t in subject.model.graph.initializer if t.name == subject.last.weight)
    return int(np.prod(shape)), int(np.prod(shape)) // subject.outputs.shape[1]


def _easy(case: Case, subject: Subject, way: str) -> onnx.ModelProto:
    """Pruned, refitted, and the zeros put back where the neurons were."""
    common: dict[str, Any] = {"data": case.calibration, "test_data": case.calibration[:8], "samples": len(case.calibration)}
    if way != "Neuron":
        return prune(subject.model, "magnitude", EASY[way], only=[subject.last.weight], latency=False, **common).model
    named = _neurons_before(case, subject, subject.last)
    small = prune(subject.model, "l2-channel", EASY[way], budget="uniform", latency=False, **named, **common)
    return _padded(subject.model, small)


def _padded(original: onnx.ModelProto, small: PruneResult) -> onnx.ModelProto:
    """The original with the small model's numbers, and zeros where channels went."""
    made = onnx.ModelProto()
    made.CopyFrom(original)
    numbers = {t.name: numpy_helper.to_array(t) for t in small.model.graph.initializer}
    for tensor in made.graph.initializer:
        if tensor.name not in numbers:
            continue
        whole = np.zeros(tuple(tensor.dims), numbers[tensor.name].dtype)
        gone = small.report["removed"].get(tensor.name, {})
        kept = [np.setdiff1d(np.arange(n), gone.get(str(a), [])) for a, n in enumerate(whole.shape)]
        whole[np.ix_(*kept)] = numbers[tensor.name]
        tensor.CopyFrom(numpy_helper.from_array(whole, tensor.name))
    return made


@experiment("bounds-temperature", PAPER + ", appendix C.2 and Figure 12", "mlp")
def temperature(case: Case, seeds: int, progress: Progress) -> Result:
    """The last hidden layer times alpha: the labels are the same, the draws that a neuron coreset asks for are not."""
    plain = Subject.of(onnx.load(case.model), case)
    rows, draws = [], []
    for number, alpha in enumerate(ALPHAS):
        progress(f"alpha = {alpha:g}", number / len(ALPHAS))
        subject = Subject.of(_scaled(plain, alpha), case)
        same = float((subject.outputs.argmax(1) == plain.outputs.argmax(1)).mean())
        neuron, weight = (
            report_card(case, subject, way, subject.last, epsilon=required_epsilon(subject.margins(way), SHARE))
            for way in ("Neuron", "Wt Det")
        )
        draws.append(float(neuron.draws or 0))
        size = float(np.abs(subject.outputs).mean())
        rows.append(
            [
                f"{alpha:g}", f"{same:.4f}", f"{neuron.implied:.3g}", f"{(neuron.implied or 0.0) / size:.3g}",
                f"{neuron.draws:,}", f"{neuron.kept} of {neuron.units}", f"{weight.required:.3g}",
                f"{weight.kept} of {weight.units}",
            ]
        )  # fmt: skip
    header = (
        "alpha", "labels agree", "neuron: ε needed", "ε / mean |logit|", "draws", "neurons kept", "weights: ε needed", "kept",
    )  # fmt: skip
    curve = Line("draws needed", list(ALPHAS), draws)
    # t / eps^2 is proportional to 1 / alpha; a logarithm of t comes on top.
    lemma = Line("proportional to 1 / alpha", list(ALPHAS), [draws[ALPHAS.index(1.0)] / a for a in ALPHAS], level=True)
    title = "The same network times alpha: draws of a neuron coreset for the same guarantee"
    figure = Figure(title, "alpha, factor on the last hidden layer", "draws", [curve, lemma], log_x=True, log_y=True)
    fall = draws[ALPHAS.index(1.0)] / draws[ALPHAS.index(2.0)]
    remarks = [
        f"Corollary C.2: a factor alpha > 1 makes fewer draws do for the same guarantee. Here alpha = 2 divides them by "
        f"{fall:.2f} (t grows by alpha, eps^2 by alpha^2, log t by a little).",
        "The network is the same function up to that factor, so the number of draws says nothing about it; eps relative to the "
        "logits stays as it was. The bounds of single weights are relative and do not see the factor at all.",
        f"{100 * SHARE:.0f} % of the right labels guaranteed by Lemma 4.1; both layers' biases are scaled with the weights.",
    ]
    claim = "A factor alpha > 1 on a layer makes fewer draws do for the same guarantee, though the network answers the same."
    same = min(float(row[1]) for row in rows)
    verdict = (
        f"{draws[0]:,.0f} draws at alpha = {ALPHAS[0]:g}, {draws[-1]:,.0f} at {ALPHAS[-1]:g}; doubling alpha divides them by "
        f"{fall:.2f}, and {100 * same:g} % of the labels stay the same."
    )
    return Result(header, rows, [figure], remarks, claim, verdict)


def _scaled(subject: Subject, alpha: float) -> onnx.ModelProto:
    """The last hidden layer and its bias times alpha, and the last bias too: all logits are alpha times what they were."""
    hidden = subject.before(subject.last)
    if hidden is None or hidden.activation[0] not in ("Relu", "LeakyRelu", "PRelu", "identity"):
        raise UsageError("no hidden layer with an activation that factors pass", "take a ReLU network of two layers or more")
    made = onnx.ModelProto()
    made.CopyFrom(subject.model)
    wanted = {hidden.weight, hidden.bias, subject.last.bias}
    for tensor in made.graph.initializer:
        if tensor.name in wanted:
            value = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((value * alpha).astype(value.dtype), tensor.name))
    return made
