"""The report of runs that set weights to zero or make layers into two: headline, table, what it is worth, in both forms."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import onnxprune
from onnxprune.report import markdown, text, units
from onnxprune.testing import tiny_network

QUIET = {"latency": False, "samples": 48, "batch": 8, "device": "cpu", "repair": "none"}


def shown(report, width=110):
    stream = io.StringIO()
    text.show(report, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


def line(output, word):
    """The first line that has this word, spaces as one."""
    return next(" ".join(row.split()) for row in output.splitlines() if word in row)


def whole(output):
    return " ".join(output.split())


@pytest.fixture(scope="module")
def zeros():
    return onnxprune.prune(tiny_network(), "magnitude", 0.75, sparse_storage=True, **QUIET).report


@pytest.fixture(scope="module")
def ranks():
    return onnxprune.prune(tiny_network(), "svd", 0.5, budget="uniform", **QUIET).report


def test_zeros_say_what_they_bring(zeros):
    output = shown(zeros)
    assert "0.75 of the weights asked, 0.75 of all weights are zero" in output
    assert line(output, "w2") == "864 648 75.0 % w2"
    assert "4 matrices of layers" in output
    assert "zeros make ONNX Runtime no faster. Compressed (deflate) the weights take 0." in whole(output)
    assert "ONNX Runtime makes them dense on loading: no memory and no time is saved" in whole(output)
    assert line(output, "weights that are not zero").split()[-2:] == ["-75.0", "%"]


def test_without_sparse_storage_it_is_offered_where_it_helps():
    told = {}
    for ratio in (0.5, 0.8):
        report = onnxprune.prune(tiny_network(), "magnitude", ratio, **QUIET).report
        told[ratio] = report["sparsity"]["summary"]
        assert "zeros make the file no smaller and ONNX Runtime no faster" in told[ratio]
    assert "--sparse-storage makes the file smaller" in told[0.8]
    assert "--sparse-storage" not in told[0.5]


def test_where_matrices_stay_whole_both_shares_are_told():
    report = onnxprune.prune(tiny_network(), "magnitude", 0.5, only=["w2"], **QUIET).report
    output = shown(report)
    assert "0.50 of the weights asked, 0.50 of the weights in 1 pruned matrix are zero, 0.32 of all weights are zero" in output
    assert line(output, "w1") == "216 0 0.0 % w1 left alone: not chosen"


@pytest.mark.parametrize(("pattern", "words"), [("2:4", "TensorRT has)"), ("1:4", "TensorRT has them for 2:4 alone)")])
def test_a_pattern_says_who_has_kernels_for_it(pattern, words):
    report = onnxprune.prune(tiny_network(), "magnitude", pattern=pattern, **QUIET).report
    output = shown(report)
    assert f"pattern {pattern} asked, " in output
    assert f"(it has no kernels for {pattern}; {words}" in report["sparsity"]["summary"]


def test_ranks_are_told_layer_by_layer(ranks):
    output = shown(ranks)
    assert "ratio 0.50 asked, 2 of 4 matrices became two, 0." in output
    assert "of the eligible weights gone, 0." in whole(output)
    row = next(r for r in ranks["ranks"] if r["name"] == "w2")
    rank = int(0.5 * 12 * 72 / 84)
    assert (row["shape"], row["rank"], row["parameters"]) == ([12, 8, 3, 3], rank, rank * 84)
    assert line(output, "w2") == f"864 {rank} {rank * 84} {100 * row['lost']:.2f} % w2"
    assert line(output, "w4").startswith("80 - 80 - w4 stays whole: it has 5 outputs: too few")
    assert "before repair 2 matrices as two give what their products give" in whole(output)
    assert "Groups" not in output


def test_markdown_tells_the_same(zeros, ranks):
    assert "| w2 | 864 | 648 |  |" in markdown.render(zeros)
    made = markdown.render(ranks)
    assert "| matrix | weights | rank | weights now | variance lost | stays whole |" in made
    assert "| w4 | 80 | - | 80 | - | it has 5 outputs: too few to share a lower rank |" in made


def test_a_matrix_in_the_plural():
    assert [units.plural(n, "pruned matrix") for n in (1, 2)] == ["1 pruned matrix", "2 pruned matrices"]
