"""The house rules: style, types, layers, sizes, names; and nothing of this machine in the files."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = [*ROOT.glob("onnxprune/**/*.py"), *ROOT.glob("cli/onnxprune_cli/**/*.py")]
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60


def tracked():
    """Files that git knows, or would take up; where there is no git (an unpacked archive), all files."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=False
    )
    names = [n for n in listed.stdout.decode().split("\0") if n] if listed.returncode == 0 else []
    found = [ROOT / n for n in names] or [p for p in ROOT.rglob("*") if not set(p.parts) & {"__pycache__", ".git"}]
    return [p for p in found if p.is_file()]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def run(*command):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}", "NO_COLOR": "1", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"


def test_ruff():
    run("-m", "ruff", "check", "--no-cache", ".")


def test_mypy(tmp_path):
    run("-m", "mypy", "--cache-dir", str(tmp_path))


def test_who_imports_whom():
    run("-c", "import sys; from importlinter.cli import lint_imports_command as c; sys.exit(c(['--no-cache']))")


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_a_file_opens_with_what_it_is_for_and_is_not_long(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= MOST_LINES, f"{name_of(path)} has {source.count(chr(10))} lines: split it"
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring, f"{name_of(path)} has no docstring"
    first = docstring.splitlines()[0]
    assert first[0].isupper() or first.startswith(("onnxprune", "`", "python")), f"{name_of(path)} opens with {first!r}"


def body_lines(function):
    """Lines of a function without its signature and docstring."""
    statements = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return statements[-1].end_lineno - statements[0].lineno + 1 if statements else 0


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_functions_are_not_long(path):
    functions = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)]
    long = {f.name: body_lines(f) for f in functions if body_lines(f) > MOST_LINES_OF_A_FUNCTION}
    assert not long, f"{name_of(path)}: {long}"


def test_no_module_is_named_after_nothing():
    nothing = {"utils", "util", "helpers", "helper", "common", "core", "misc", "manager"}
    names = {name_of(p) for p in OURS for part in p.with_suffix("").parts[-3:] if part.strip("_") in nothing}
    assert not names


def test_the_library_prints_nothing():
    for path in ROOT.glob("onnxprune/**/*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        printed = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id in ("print", "eval", "exec")]
        assert not printed, f"{name_of(path)}: lines {printed}"


def test_nothing_of_this_machine_is_in_the_files():
    """No absolute path of the place where it was written and no package index: both are the business of who installs it."""
    # Put together here, so that this file is not found by itself.
    patterns = ["/" + "work/", "/" + "root/", "pypi" + r"\.org/simple", "--(extra-)?index" + "-url", "find-" + "links"]
    found = []
    for path in tracked():
        content = path.read_bytes()
        if b"\0" in content[:4096]:
            continue
        text = content.decode("utf-8", "replace")
        found += [f"{name_of(path)}: {m[0]}" for p in patterns if (m := re.search(r"(?<![\w.-])" + p, text))]
    assert not found


def test_every_skip_has_a_reason():
    missing = []
    for path in ROOT.glob("tests/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("skip", "skipif", "xfail", "importorskip"):
                missing.append((path, node))
    for path, node in missing:
        words = " ".join(path.read_text(encoding="utf-8").splitlines()[node.lineno - 1 : node.lineno + 4])
        assert "reason=" in words or re.search(r"""skip\(\s*f?["']""", words), f"{name_of(path)}:{node.lineno} gives no reason"


def test_the_public_names_are_all_there():
    import onnxprune

    for name in onnxprune.__all__:
        assert getattr(onnxprune, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onnxprune.nothing


def test_importing_the_package_costs_nothing():
    heavy = "{'torch', 'onnx', 'onnxruntime', 'scipy', 'numpy'}"
    code = f"import onnxprune, sys; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    run("-c", code)


def test_the_dependencies_can_be_read_and_never_meet():
    """Exactly one ONNX Runtime on every platform: two of them overwrite each other's files."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(line) for line in project["dependencies"]]
    runtimes = [r for r in wanted if r.name.startswith("onnxruntime")]
    platforms = ["linux x86_64", "linux aarch64", "win32 AMD64", "win32 ARM64", "darwin arm64", "darwin x86_64"]
    for system, machine in map(str.split, platforms):
        here = {"sys_platform": system, "platform_machine": machine}
        assert sum(r.marker is None or r.marker.evaluate(here) for r in runtimes) == 1, here


def test_a_newcomer_finds_a_test_for_every_folder():
    folders = {p.name for p in (ROOT / "onnxprune").iterdir() if (p / "__init__.py").is_file()}
    missing = {f for f in folders if not (ROOT / "tests" / f).is_dir()}
    assert not missing
