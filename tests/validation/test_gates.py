"""Gates: what they read, what they refuse before any work, and that nothing undefined ever passes."""

import copy
import json
from pathlib import Path

import pytest

from onnxprune.errors import UnknownNameError, UsageError
from onnxprune.validation.gates import OWN_PARTS, check_measured, check_outputs, evaluate, look_up, parse

REPORT = json.loads((Path(__file__).parents[1] / "report" / "example_report.json").read_text("utf-8"))


def report(**changes):
    changed = copy.deepcopy(REPORT)
    changed.update(changes)
    return changed


def judge(expression, figures=REPORT):
    return evaluate([parse(expression)], figures)[0]


@pytest.mark.parametrize(
    ("expression", "value", "passed"),
    [
        ("top1_agreement<0.95", 0.9215, False),
        ("top1_agreement<0.9", 0.9215, True),
        ("max_abs>1e-2", 7.9312, False),
        ("logits.cosine<0.99", 0.97712, False),
        ("deviation.logits.cosine < .9", 0.97712, True),
        ("accuracy.drop>0.02", 0.0248, False),
        ("accuracy_drop>=0.03", 0.0248, True),
        ("accuracy.pruned<0.9", 0.9012, True),
        ("latency.speedup<1.1", 1.5774, True),
        ("speedup<1.6", 1.5774, False),
        ("latency_ratio>0.7", 2.6712 / 4.2137, True),
        ("pruned.macs>1e6", 75103488, False),
        ("macs_ratio>0.7", 75103488 / 125485706, True),
        ("bytes_ratio<=.5", 2079004 / 3448112, True),
        ("parameters_ratio!=1", 515302 / 855770, False),
        ("peak_memory_ratio>1", 163840 / 196608, True),
        ("original.parameters==855770", 855770, False),
        ("ratio<0.5", 0.4, False),
        ("repair.error>0.1", 0.087, True),
        ("timings.total>60", 11.0, True),
        ("groups./layer1/layer1.0/conv1/Conv_output_0.kept<4", 8, True),
        ("proof.max_relative>-1e+3", 2.4e-7, False),
    ],
)
def test_expressions(expression, value, passed):
    gate = judge(expression, report(repair={"error": 0.087}))
    assert gate["value"] == pytest.approx(value, rel=1e-9)
    assert gate["passed"] is passed
    assert gate["expression"] == expression


@pytest.mark.parametrize("expression", ["", "cosine", "cosine<", "<0.9", "cosine<a", "cosine=0.9", "cosine<nan", "cosine<1e999"])
def test_unreadable_expressions(expression):
    with pytest.raises(UsageError, match="gate"):
        parse(expression)


def test_nothing_is_evaluated_as_code():
    with pytest.raises(UsageError):
        parse("__import__('os').system('true')<1")


@pytest.mark.parametrize(
    ("expression", "near"),
    [("top1_agreemnt<1", "top1_agreement"), ("logits.cosin<1", "cosine"), ("macs<1", "macs"), ("latency.speedupp<1", "speedup")],
)
def test_unknown_figures_are_refused_before_any_work_with_near_names(expression, near):
    with pytest.raises(UnknownNameError, match=f"did you mean .*{near}"):
        parse(expression)


def test_figures_of_open_parts_are_checked_when_the_report_is_there():
    gate = parse("timings.totl>1")
    with pytest.raises(UnknownNameError):
        look_up(gate.figure, REPORT)


def test_layers_that_were_refitted_are_known_by_their_names():
    figures = report(repair={"layers": [{"layer": "fc.2", "error_after": 0.25}]})
    assert judge("repair.layers.fc.2.error_after>0.2", figures)["passed"] is False


@pytest.mark.parametrize("part", sorted(OWN_PARTS))
def test_parts_of_other_methods_are_refused_before_any_work(part):
    gate = parse(f"{part}.share<0.5")
    check_measured(gate, labels=False, latency=False, parts={part})
    with pytest.raises(UsageError, match=f"about '{part}', of which this method reports nothing"):
        check_measured(gate, labels=False, latency=False, parts=OWN_PARTS - {part})


def test_text_is_no_figure():
    with pytest.raises(UsageError, match="not a number"):
        look_up("repair.kind", REPORT)


def test_outputs_are_checked_once_the_model_is_read():
    check_outputs(parse("logits.cosine<1"), ["logits"])
    check_outputs(parse("a.b.cosine<1"), ["a.b"])
    check_outputs(parse("cosine<1"), ["logits"])
    check_outputs(parse("latency.speedup<1"), ["logits"])
    with pytest.raises(UnknownNameError, match="did you mean 'logits'"):
        check_outputs(parse("logit.cosine<1"), ["logits"])


@pytest.mark.parametrize(
    ("part", "expression"), [("accuracy", "accuracy.drop>1"), ("accuracy", "accuracy.pruned<0"), ("latency", "latency.speedup<0")]
)
def test_what_was_not_measured_fails(part, expression):
    assert judge(expression, report(**{part: None})) == {"expression": expression, "value": None, "passed": False}


def two_outputs(**second):
    first = dict(REPORT["deviation"]["logits"])
    return report(deviation={"logits": first, "other": first | second})


def test_the_worst_output_counts():
    figures = two_outputs(max_abs=9.0, cosine=0.5)
    assert judge("max_abs>1", figures)["value"] == 9.0
    assert judge("cosine<0.9", figures)["value"] == 0.5


def test_outputs_without_classes_have_no_say_in_the_agreement():
    assert judge("top1_agreement<0.9", two_outputs(top1_agreement=None))["value"] == 0.9215


@pytest.mark.parametrize("undefined", [None, float("nan")])
def test_an_undefined_output_is_never_good(undefined):
    for name, expression in (("cosine", "cosine<-2"), ("snr_db", "snr_db<-999"), ("relative_l2", "relative_l2>999")):
        assert judge(expression, two_outputs(**{name: undefined}))["passed"] is False


def test_equal_outputs_are_perfect():
    equal = {"max_abs": 0.0, "mean_abs": 0.0, "relative_l2": 0.0, "cosine": None, "snr_db": None, "top1_agreement": None}
    figures = report(deviation={"y": equal})
    assert judge("snr_db<100", figures) == {"expression": "snr_db<100", "value": None, "passed": True}
    assert judge("cosine<1", figures)["value"] == 1
    assert judge("top1_agreement<0.5", figures)["passed"] is False


def test_no_outputs_is_not_good():
    assert judge("max_abs>5", report(deviation={}))["passed"] is False
