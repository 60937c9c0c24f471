"""The README says what is true: generated tables are up to date, files it names exist, CI runs its test command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onnxprune.report.tables import rewrite

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def command(name: str) -> str:
    found = re.search(rf"<!-- command: {name} -->\n```sh\n(.+?)\n```", README, re.DOTALL)
    assert found, f"the README has no command for {name}"
    return found[1]


def test_generated_tables_are_what_the_code_says() -> None:
    assert rewrite(README) == README, "run: python -m onnxprune.report.tables README.md"


@pytest.mark.parametrize("name", ["main job", "tests"])
def test_each_set_up_command_is_one_line(name: str) -> None:
    assert "\n" not in command(name)


def test_the_main_command_names_files_that_are_there() -> None:
    for path in re.findall(r"samples/\S+", command("main job")):
        assert (ROOT / path).is_file(), path


def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for part in ("constraints.txt", "'.[test]'", ".venv/bin/python -m pytest"):
        assert part in command("tests")
        assert part in script


def test_every_relative_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_contributing_says_where_everything_is():
    """Every part of the library stands in the table, and what stands there exists."""
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("## Where things are")[1].split("A method never sees ONNX")[0]
    named = {name.removeprefix("onnxprune/").rstrip("/") for name in re.findall(r"`([^`]+)`", table)}
    there = {p.name for p in (ROOT / "onnxprune").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert named == there - {"__init__.py", "version.py"} | {"cli/onnxprune_cli"}
