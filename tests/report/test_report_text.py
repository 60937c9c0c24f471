"""The text report: everything essential is there, at any width, whatever is missing, whoever named the tensors."""

import io

import pytest
from rich.console import Console

from onnxprune.figures import Deviation
from onnxprune.report import text

KEYS = tuple(Deviation.__annotations__)


def shown(report, width=100, **options):
    stream = io.StringIO()
    text.show(report, Console(file=stream, width=width, highlight=False), **options)
    return stream.getvalue()


def line(output, start):
    return " ".join(next(row for row in output.splitlines() if row.strip().startswith(start)).split())


def test_essentials(report):
    output = shown(report)
    assert line(output, "resnet56") == "resnet56_cifar10.onnx coreset-channel"
    assert "ratio 0.40 asked, 0.45 of the channels gone, 0.60 of the MACs left" in output
    assert line(output, "parameters") == "parameters 855.8 k 515.3 k -39.8 %"
    assert line(output, "MACs ") == "MACs 125.5 M 75.10 M -40.1 %"
    assert line(output, "file size") == "file size 3.45 MB 2.08 MB -39.7 %"
    assert line(output, "latency") == "latency (1 thread, batch 1) 4.21 ms 2.67 ms 1.58x faster"
    assert line(output, "accuracy ") == "accuracy 92.60 % 90.12 % -2.48 points"
    assert line(output, "logits") == "logits 7.93 0.873 0.213 0.9771 13.4 dB 92.2 %"
    assert line(output, "Slice mixes").endswith("2 48")
    for label in ("aligned", "repaired", "proven", "inputs", "warning", "passed", "FAILED"):
        assert line(output, label)
    assert output.rstrip().endswith("written to models/resnet56_cifar10.pruned.onnx")


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_keeps_to_the_width_and_loses_no_figure(report, width):
    output = shown(report, width)
    assert max(len(row.rstrip()) for row in output.splitlines()) <= width
    words = " ".join(output.split())
    for name in ("parameters", "MACs", "peak tensor memory", "accuracy", "logits"):
        assert name in words
    for figure in ("855.8 k", "75.10 M", "-2.48 points", "0.9771", "13.4 dB", "92.2 %"):
        assert figure in words


def test_rows_are_listed_where_the_columns_do_not_fit(report):
    output = "\n".join(row.rstrip() for row in shown(report, 40).splitlines())
    assert "  logits\n    max abs 7.93, mean abs 0.873," in output
    assert "  parameters\n    original 855.8 k, pruned 515.3 k," in output


def test_names_of_groups_give_way_before_figures(report):
    rows = [" ".join(row.split()) for row in shown(report, 76).splitlines()]
    assert sum(row.startswith("64 32 50 % channel /layer3/") and row.endswith("\u2026 2") for row in rows) == 9
    assert "/layer2/layer2.0/relu_1/Relu_output_0" in shown(report, 50)


def test_only_the_largest_groups_unless_verbose(report):
    output = shown(report)
    assert "the 20 largest; --verbose lists 10 more" in output
    assert "/layer1/layer1.0/conv1" not in output
    assert output.index("/layer2/layer2.0/conv1/") < output.index("/layer3/layer3.8/conv1/")
    verbose = shown(report, 160, verbose=True)
    assert "/layer1/layer1.0/conv1/Conv_output_0" in verbose
    assert "largest" not in verbose
    assert "observe 2.9 s" in verbose


def test_what_was_not_measured_is_left_out(report):
    report |= {"latency": None, "accuracy": None, "deviation": {}, "groups": [], "pinned": [], "gates": [], "warnings": []}
    report |= {"repair": {}, "alignment": {}, "proof": {}, "data": {}}
    report["original"]["latency_ms"] = report["pruned"]["latency_ms"] = None
    output = shown(report)
    for word in ("latency", "accuracy", "Deviation", "Groups", "Pinned", "aligned", "repaired", "None"):
        assert word not in output


def test_slower_says_slower(report):
    report["latency"] |= {"original_ms": 2.0, "pruned_ms": 4.0, "speedup": 0.5}
    assert line(shown(report), "latency").endswith("2.00x slower")


def test_target_is_told_instead_of_a_ratio(report):
    report |= {"ratio": 0.37, "options": {"target": "macs=0.6"}}
    assert "target macs=0.6 asked" in shown(report)


def test_an_error_is_told_instead_of_a_ratio(report):
    report |= {"ratio": None, "options": {"epsilon": 2.5}}
    assert "\nan error of at most 2.5 asked, 0.45 of the channels gone" in shown(report)
    report["options"] = {"guarantee_labels": 0.95}
    assert "\n0.95 of the labels to be guaranteed, 0.45" in shown(report)


def test_nearly_all_is_not_all(report):
    report["ratio"] = 0.999
    assert "ratio 0.999 asked" in shown(report)


def test_a_ratio_of_one_to_one_has_no_sign(report):
    report["deviation"]["logits"]["snr_db"] = -0.02
    assert line(shown(report), "logits").endswith(" 0.0 dB 92.2 %")


def test_noise_is_called_noise(report):
    report["data"]["real"] = False
    assert "on noise: this is not accuracy" in shown(report)


def test_undefined_deviations_are_dashes(report):
    nan = float("nan")
    report["deviation"] = {
        "y": dict.fromkeys(KEYS, nan) | dict.fromkeys(("cosine", "snr_db", "top1_agreement")),
        "z": dict.fromkeys(KEYS, 0.0) | {"cosine": 1.0, "snr_db": None, "top1_agreement": 1.0},
    }
    output = shown(report)
    assert line(output, "y ") == "y - - - - - -"
    assert line(output, "z ") == "z 0 0 0 1.0000 no noise 100.0 %"


def test_dry_run_says_that_nothing_was_written(report):
    report["pruned"]["path"] = None
    assert shown(report).rstrip().endswith("nothing was written")


def test_comparison(compared):
    output = shown(compared)
    assert line(output, "resnet56") == "resnet56_cifar10.onnx and resnet56_cifar10.pruned.onnx"
    assert line(output, "first") == "first second change"
    assert "written" not in output


def test_hostile_names_are_shown_as_they_are(report):
    report["deviation"] = {"[red]x[/red]\x1b[2J": report["deviation"]["logits"]}
    report["warnings"] = ["see [link=http://x]here[/link]"]
    report["groups"][10]["name"] = "[/bold]"
    output = shown(report, 160)
    assert "[red]x[/red]\\x1b[2J" in output
    assert "[link=http://x]here[/link]" in output
    assert "[/bold]" in output
    assert "\x1b" not in output
