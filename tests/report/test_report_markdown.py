"""Markdown: the essentials, in tables that no name can break."""

import re

from onnxprune.report.markdown import escaped, render, table


def cells(row):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def tables(text):
    """Every table as a list of rows of cells."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    return [[cells(row) for row in block] for block in blocks if block[0].startswith("|")]


def test_essentials(report):
    text = render(report)
    assert text.startswith("### onnxprune: resnet56\\_cifar10.onnx (coreset-channel)\n")
    assert "| MACs | 125.5 M | 75.10 M | -40.1 % |" in text
    assert "| **FAILED** | accuracy.drop\\>0.02 | 0.0248 |" in text
    assert "| logits | 7.93 | 0.873 | 0.213 | 0.9771 | 13.4 dB | 92.2 % |" in text
    assert "<details><summary>30 groups of channels</summary>\n\n|" in text
    assert "and 10 smaller groups" in text
    assert "- proven: equals its masked twin" in text
    assert "- written to models/resnet56\\_cifar10.pruned.onnx" in text


def test_no_name_breaks_a_table(report):
    nasty = "a|b\\|`c`\n|d| [x](http://y) <img> @team"
    report["deviation"] = {nasty: report["deviation"]["logits"]}
    report["groups"][0] |= {"name": nasty, "channels": 999}
    report["pinned"][0]["reason"] = nasty
    report["gates"][0]["expression"] = nasty
    found = tables(render(report))
    assert len(found) == 5
    assert all(len({len(row) for row in rows}) == 1 for rows in found)
    assert "<img>" not in render(report)
    assert "](http://" not in render(report)
    assert "@team" not in render(report)


def test_escaped_reads_as_before():
    assert re.sub(r"\\([^a-z0-9])", r"\1", escaped("a_b|c*[d]")) == "a_b|c*[d]"


def test_table_aligns_figures_right():
    assert table(("a", "b"), [("x", "1")]) == "| a | b |\n| :-- | --: |\n| x | 1 |"


def test_what_is_missing_is_left_out(report):
    report |= {"latency": None, "accuracy": None, "deviation": {}, "groups": [], "pinned": [], "gates": [], "warnings": []}
    text = render(report)
    for word in ("latency", "accuracy", "Deviation", "<details>", "gate", "None"):
        assert word not in text


def test_comparison(compared):
    text = render(compared)
    assert "|  | first | second | change |" in text
    assert "written" not in text
