"""The report card on the bundled MLP: what must hold whatever the model, and the paper's findings where they are sure to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.errors import UsageError
from onnxprune.experiments import EXPERIMENTS, Case, bounds
from onnxprune.experiments.scoring import answers
from onnxprune.validation.labels import multiplicative_margins, required_epsilon

SAMPLES = Path(__file__).parents[2] / "samples"


@pytest.fixture(scope="module")
def case():
    data = SAMPLES / "data"
    return Case(
        "digits", SAMPLES / "models/digits_lenet300.onnx", np.load(data / "digits_calibration.npz")["image"][:150],
        np.load(data / "digits_test.npz")["image"][:150], np.load(data / "digits_test_labels.npy")[:150],
    )  # fmt: skip


@pytest.fixture(scope="module")
def subject(case):
    return bounds.Subject.of(onnx.load(case.model), case)


def test_a_card_says_what_the_model_does(case, subject):
    epsilon = required_epsilon(subject.margins("Wt Det"), 0.5)
    card = bounds.report_card(case, subject, "Wt Det", subject.last, epsilon=epsilon)
    right = answers(case.model, case.test)[subject.right]
    assert card.required == epsilon == required_epsilon(multiplicative_margins(right), 0.5)
    assert card.implied <= epsilon
    assert card.guaranteed >= 0.5
    assert card.observed[0] < card.implied
    assert (card.units, card.draws) == (1000, None)
    assert 0 < card.sparsity < 0.5
    assert card.accuracy == pytest.approx(subject.right.mean(), abs=0.02)
    sparse = bounds.report_card(case, subject, "Wt Rnd", subject.last, ratio=0.7)
    assert sparse.sparsity == pytest.approx(0.7)
    assert sparse.implied > 1 > card.implied, "the paper: sparsity-first bounds of samplers are vacuous"
    assert sparse.guaranteed == 0.0


def test_neurons_that_are_zero_are_found_to_be(case, subject):
    easy = bounds.Subject.of(bounds._easy(case, subject, "Neuron"), case)
    card = bounds.report_card(case, easy, "Neuron", easy.last, epsilon=required_epsilon(easy.margins("Neuron"), 0.5))
    assert (card.units, card.kept) == (100, 10)
    hard = bounds.report_card(case, subject, "Neuron", subject.last, epsilon=required_epsilon(subject.margins("Neuron"), 0.5))
    assert hard.kept == 100, "the paper: nothing can go in the difficult case"


def test_the_experiment_has_the_papers_rows_beside_ours(case, monkeypatch):
    monkeypatch.setattr(bounds, "RATIOS", (0.5,))
    monkeypatch.setattr(bounds, "SHARES", (0.5, 0.9))
    told = []
    result = EXPERIMENTS["bounds-report-card"].run(case, 1, lambda stage, share: told.append(share))
    assert all(len(row) == len(result.header) for row in result.rows)
    expected = [[way, name] for way in bounds.WAYS for mode in bounds.CASES for name in (mode, f"{mode}, paper")]
    assert [row[:2] for row in result.rows[:12]] == expected
    assert [row[-1] for row in result.rows[1:12:2]] == [paper[4] for paper in bounds.FIGURE_2.values()]
    assert {row[1] for row in result.rows[12:]} == {f"/fc{i}/Gemm, -50 %" for i in (1, 2, 3)}
    ours = [f"{float(row[-1]):.1f}" for row in result.rows[:12:2]]
    assert result.verdict.startswith(f"{' / '.join(ours[1::2])} % may go, {' / '.join(ours[::2])} % if")
    assert all(0 <= share <= 1 for share in told)
    six = {line.label: line.y for line in result.figures[1].lines}
    assert six["Wt Det"][0] >= six["Wt Det"][1], "more labels, less to prune"


def test_a_factor_changes_the_draws_and_nothing_else(case, monkeypatch):
    monkeypatch.setattr(bounds, "ALPHAS", (1.0, 2.0, 8.0))
    result = EXPERIMENTS["bounds-temperature"].run(case, 1, lambda stage, share: None)
    assert {row[1] for row in result.rows} == {"1.0000"}
    needed = [float(row[2]) for row in result.rows]
    assert needed[1] / needed[0] == pytest.approx(2, rel=0.01)
    assert len({row[3] for row in result.rows}) == 1
    line, lemma = result.figures[0].lines
    assert line.y[0] == lemma.y[0]
    assert line.y[2] > lemma.y[2], "the logarithm makes it fall slower"
    assert line.y[0] > line.y[1] > line.y[2]
    assert len({(row[6], row[7]) for row in result.rows}) == 1, "relative bounds do not see the factor"


def test_probabilities_instead_of_logits_are_refused(case):
    model = onnx.load(case.model)
    model.graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["p"], axis=1))
    model.graph.output[0].name = "p"
    with pytest.raises(UsageError, match="no logits"):
        bounds.Subject.of(model, case)
