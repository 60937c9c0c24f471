"""`onnxprune papers`: the list, a run on a bundled sample with pictures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxprune.experiments import EXPERIMENTS, Figure, Line, Result, experiment

SAMPLES = Path(__file__).parents[2] / "samples"
DATA = {"--data": "digits_calibration.npz", "--test-data": "digits_test.npz", "--labels": "digits_test_labels.npy"}
CASE = ["--model", str(SAMPLES / "models" / "digits_lenet300.onnx")]
CASE += [part for option, name in DATA.items() for part in (option, str(SAMPLES / "data" / name))]


@pytest.fixture
def accuracy(monkeypatch):
    """An experiment that tells what it was given."""

    def run(case, seeds, progress):
        progress("measuring", 0.5)
        line = Line("ours", [1, 2, 3], [0.1, 0.2, 0.3], spread=[0.01, 0.02, 0.01])
        paper = Line("paper's", [1, 3], [0.1, 0.2], paper=True, like="ours")
        figures = [
            Figure("A title", "share", "error", [line, paper], percent="xy"),
            Figure("B", "x", "y", [line], log_x=True, log_y=True),
        ]
        rows = [(case.name, f"{len(case.calibration)}", f"{len(case.test)}", f"{len(case.labels)}", str(seeds))]
        return Result(
            ("model", "calibration", "test", "labels", "seeds"), rows, figures, ["ours is 0.1 larger"], "0.1 at 1", "0.2 at 2"
        )

    experiment("mine-fig1", "Mine, Figure 1", "mlp")(run)
    experiment("mine-table2", "Mine, Table 2", "none")(run)
    yield
    del EXPERIMENTS["mine-fig1"], EXPERIMENTS["mine-table2"]


def test_the_list_names_them_all(run, accuracy):
    result = run("papers")
    assert result.exit_code == 0
    assert "mine-fig1" in result.stdout
    assert "a fully connected net" in result.stdout
    listed = json.loads(run("papers", "--json", "-").stdout)["experiments"]
    assert {entry["name"] for entry in listed} == set(EXPERIMENTS)


def test_a_run_shows_the_table_and_draws_every_figure(run, accuracy, tmp_path):
    result = run("papers", "mine-fig1", *CASE, "--samples", "20", "--seeds", "2", "--picture", str(tmp_path / "p.png"))
    assert result.exit_code == 0, result.stderr
    assert "digits_lenet300" in result.stdout
    assert "ours is 0.1 larger" in result.stdout
    assert "paper  0.1 at 1\nhere   0.2 at 2\n" in result.stdout
    for name in ("p.png", "p-2.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_same_figure_gives_the_same_picture(run, accuracy, tmp_path):
    for name in ("a.svg", "b.svg"):
        assert run("papers", "mine-table2", "--picture", str(tmp_path / name)).exit_code == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"A title" in (tmp_path / "a.svg").read_bytes() or b"<svg" in (tmp_path / "a.svg").read_bytes()


def test_json_holds_rows_and_curves(run, accuracy):
    found = json.loads(run("papers", "mine-fig1", *CASE, "--samples", "20", "--json", "-").stdout)
    assert found["rows"][0][1] == "20"
    assert int(found["rows"][0][2]) == int(found["rows"][0][3]) > 100
    ours, paper = found["figures"][0]["lines"]
    assert ours["spread"] == [0.01, 0.02, 0.01]
    assert (ours["paper"], paper["paper"], paper["like"]) == (False, True, "ours")
    assert (found["figures"][1]["log_x"], found["figures"][0]["percent"]) == (True, "xy")
    assert (found["claim"], found["verdict"]) == ("0.1 at 1", "0.2 at 2")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["mine-fig2"], "did you mean 'mine-fig1'"),
        (["mine-fig1"], "--model, --data, --test-data, --labels missing"),
        (["mine-table2", "--picture", "p.pdf"], ".png or .svg"),
        (["mine-fig1", *CASE[:1], "nothing.onnx", *CASE[2:]], "nothing.onnx"),
        (["mine-table2", "--picture", "no/such/folder/p.png"], "folder"),
        (["mine-fig1", *CASE, "--seeds", "0"], "seeds"),
        (CASE[:2], "--model is for an experiment"),
        (["--picture", "p.png"], "--picture is for an experiment"),
        (["mine-table2", *CASE[:2]], "leave out --model"),
    ],
)
def test_mistakes_are_one_line_with_a_remedy(run, accuracy, args, words):
    result = run("papers", *args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_without_matplotlib_it_says_what_to_install(run, accuracy, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    result = run("papers", "mine-table2", "--picture", str(tmp_path / "p.png"))
    assert result.exit_code == 2
    assert "onnxprune[papers]" in result.stderr
