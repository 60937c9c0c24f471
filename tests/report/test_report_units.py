"""Figures and names as a person reads them."""

import pytest

from onnxprune.report import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (999, "999"), (1000, "1.00 k"), (12_345, "12.35 k"), (855_770, "855.8 k"), (99_999, "100.0 k"),
        (999_960, "1.00 M"), (125_485_706, "125.5 M"), (4.1e9, "4.10 G"), (2e12, "2.00 T"), (2.5e15, "2500.0 T"),
    ],
)  # fmt: skip
def test_count(value, text):
    assert units.count(value) == text


@pytest.mark.parametrize(("value", "text"), [(12, "12 B"), (1500, "1.50 kB"), (3_448_112, "3.45 MB"), (2.1e9, "2.10 GB")])
def test_size(value, text):
    assert units.size(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0123, "12 us"), (4.2137, "4.21 ms"), (1500, "1.50 s")])
def test_milliseconds(value, text):
    assert units.milliseconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.04, "0.0 s"), (11.04, "11.0 s"), (125, "2 min 5 s")])
def test_seconds(value, text):
    assert units.seconds(value) == text


@pytest.mark.parametrize(("pair", "text"), [((100, 60), "-40.0 %"), ((100, 101), "+1.0 %"), ((5, 5), "same"), ((0, 5), "-")])
def test_change(pair, text):
    assert units.change(*pair) == text


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (float("nan"), "-"), (0.0, "0"), (7.9312, "7.93"), (2.4e-7, "2.4e-07")])
def test_number(value, text):
    assert units.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00"),
        (1, "1.00"),
        (0.4, "0.40"),
        (0.994, "0.99"),
        (0.999, "0.999"),
        (0.99996, "0.99996"),
        (0.004, "0.004"),
        (1e-9, "0.00"),
    ],
)
def test_share(value, text):
    assert units.share(value) == text


def test_names_of_strangers_move_no_cursor():
    assert units.printable("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\x0ac"
    assert units.printable("Größe/重み") == "Größe/重み"


def test_names_that_python_could_not_read():
    assert units.printable("caf\udcc3\udca9") == "café"
    assert units.printable("caf\udce9") == "caf\\xe9"


def test_shortened():
    assert units.shortened(["a", "b", "c"], 2) == "a, b +1"
    assert units.shortened(["a", "b"], 2) == "a, b"


def test_sentence_takes_the_summary_else_the_plain_facts():
    assert units.sentence({"summary": "as told", "block": 16}) == "as told"
    facts = {"kind": "mean", "block": 1600, "error_after": 0.25, "sequential": True, "cut": False, "list": [1], "none": None}
    assert units.sentence(facts) == "kind mean, block 1,600, error after 0.25, sequential, not cut"
    assert units.sentence({}) == ""
