"""Pictures of figures: what a viewer must be able to tell apart, read from the SVG, and the axes."""

from __future__ import annotations

import re

import pytest

from onnxprune.errors import SaveError
from onnxprune.experiments import Figure, Line
from onnxprune.report import picture

OURS = Line("ours", (0.1, 0.5, 0.9), (0.9, 0.8, 0.1), (0.01, 0.02, 0.03))
THEIRS = Line("ours, paper", (0.1, 0.9), (0.95, 0.2), paper=True, like="ours")
BOUND = Line("at most", (0.1, 0.9), (1.0, 0.9), like="ours")
LEVEL = Line("unpruned", (0.1, 0.9), (0.97, 0.97), level=True)
OTHER = Line("another", (0.1, 0.9), (0.5, 0.4))


def drawn(tmp_path, figure, note=""):
    picture.draw(figure, tmp_path / "p.svg", note)
    return (tmp_path / "p.svg").read_text(encoding="utf-8")


def words(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_lines_that_belong_together_share_a_colour_and_a_level_takes_none():
    looks = [look for look, _ in picture._looks([OURS, THEIRS, LEVEL, BOUND, OTHER])]
    assert looks == [picture.COLOURS[0], picture.COLOURS[0], picture.GREY, picture.COLOURS[0], picture.COLOURS[1]]


def test_more_lines_than_colours_are_drawn_all_the_same(tmp_path):
    lines = [Line(f"method {i}", (0, 1), (i, i)) for i in range(len(picture.COLOURS) + 2)]
    assert f"method {len(lines) - 1}" in words(drawn(tmp_path, Figure("t", "x", "y", lines)))


def test_the_papers_values_are_dotted_and_named_once(tmp_path):
    lines = [OURS, THEIRS, OTHER, Line("another, paper", (0.1,), (0.5,), paper=True, like="another"), LEVEL]
    found = words(drawn(tmp_path, Figure("A title", "share", "accuracy", lines), "whose it is"))
    assert {"A title", "whose it is", "share", "accuracy", "ours", "another", "unpruned"} <= set(found)
    assert found.count("the paper's") == 1
    assert "ours, paper" not in found
    alone = Line("the authors' weights", (0.1, 0.9), (0.5, 0.4), paper=True)
    assert "the authors' weights" in words(drawn(tmp_path, Figure("t", "x", "y", [OURS, alone])))


def test_what_is_not_measured_is_dotted_or_dashed(tmp_path):
    """Each broken line once in the axes, and its colour once in the legend but for what belongs to a named line."""

    def broken(*lines):
        return drawn(tmp_path, Figure("t", "x", "y", lines)).count("stroke-dasharray")

    assert broken(OURS, OTHER) == 0
    for line in (THEIRS, BOUND, LEVEL):
        assert broken(OURS, OTHER, line) == 2


def test_shares_are_in_percent_where_the_figure_says_so(tmp_path):
    def percents(percent):
        return sum(word.endswith(" %") for word in words(drawn(tmp_path, Figure("t", "x", "y", [OURS], percent=percent))))

    assert percents("") == 0
    assert 0 < percents("x") < percents("xy")


def test_a_log_axis_of_few_values_shows_these(tmp_path):
    line = Line("ours", (32, 64, 128, 256), (1, 10, 1000, 100000))
    found = words(drawn(tmp_path, Figure("t", "x", "y", [line], log_x=True, log_y=True)))
    assert {"32", "64", "128", "256"} <= set(found)
    assert "1000" not in found, "five decades keep their powers of ten"


def test_the_legend_lies_beside_the_axes(tmp_path):
    """Its first letter begins right of every point that is drawn."""
    svg = drawn(tmp_path, Figure("t", "x", "y", [OURS, LEVEL]))
    legend = svg[svg.index('id="legend_1"') :]
    spots = [float(x) for x in re.findall(r'<use xlink:href="#[^"]+" x="([0-9.]+)"', svg[: svg.index('id="legend_1"')])]
    left = min(float(x) for x in re.findall(r"translate\(([0-9.]+) ", legend) + re.findall(r'<text[^>]* x="([0-9.]+)"', legend))
    assert left > max(spots)


def test_where_it_cannot_be_written_it_says_so(tmp_path):
    with pytest.raises(SaveError, match="choose another folder"):
        picture.draw(Figure("t", "x", "y", [OURS]), tmp_path / "no" / "p.png")
