"""Which command is meant, how errors look, which exit code they have, and that help costs nothing."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxprune.errors import DataError, NothingToPruneError, ProofError, UsageError
from onnxprune.version import __version__


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("argument", ["--help", "--version", "prune --help"])
def test_help_imports_nothing_heavy(argument):
    heavy = ["torch", "onnx", "onnxruntime", "onnx_graphsurgeon", "scipy", "numpy", "rich"]
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from onnxprune_cli.main import cli
try:
    cli.main({argument.split()!r}, prog_name="onnxprune")
except SystemExit as exc:
    assert exc.code == 0, exc.code
found = [name for name in {heavy!r} if name in sys.modules]
assert not found, found
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert "onnxprune" in result.stdout


def test_help_answers_in_half_a_second():
    code = f"import sys; sys.path[:0] = {sys.path!r}; sys.argv[1:] = ['--help']\nfrom onnxprune_cli.main import main; main()"
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert python(code).returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_version(run):
    assert run("--version").stdout == f"onnxprune {__version__}\n"


def test_no_arguments_show_help(run):
    result = run()
    assert result.exit_code == 0
    assert "Commands:" in result.stdout


@pytest.mark.parametrize(
    "args", [("net.onnx", "--ratio", "0.4"), ("prune", "net.onnx", "--ratio", "0.4"), ("--ratio=0.4", "net.onnx")]
)
def test_prune_is_the_default_command(run, library, model, args):
    assert run(*args).exit_code == 0
    assert library.calls[0]["model"] == "net.onnx"
    assert library.calls[0]["ratio"] == 0.4


def test_a_file_without_a_dot_is_a_model(run, library, model, tmp_path):
    (tmp_path / "inspct").write_bytes(b"")
    assert run("inspct", "--ratio", "0.4").exit_code == 0
    assert library.calls[0]["model"] == "inspct"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("inspct", "net.onnx"), "did you mean 'inspect'?"),
        (("xyzzy",), "commands are prune, inspect, compare, bounds, methods, papers, doctor"),
        (("missing.onnx", "--ratio", "0.4"), "there is no model file 'missing.onnx'"),
        (("x" * 5000,), "no command and no file"),
        (("x" * 5000 + ".onnx", "--ratio", "0.4", "-o", "y.onnx"), "there is no model file"),
        (("net.onnx", "--ratio", "0.4", "-o", "x" * 5000 + ".onnx"), "cannot write"),
        (("--versoin",), "--version"),
        (("--rato", "0.4", "net.onnx"), "--ratio"),
        (("net.onnx", "--rtio", "0.4"), "--ratio"),
        (("net.onnx", "--ratio", "0.4", "a.onnx", "b.onnx"), "unexpected extra argument (b.onnx)"),
        (("inspect",), "Missing argument 'MODEL'"),
        (("compare", "a.onnx", "b.onnx"), "Missing option '--data'"),
    ],
)
def test_wrong_usage_is_one_line_and_2(run, library, model, args, message):
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("onnxprune: error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not library.calls


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("no such thing", "try another"), 2, "no such thing; try another"),
        (DataError("two\nlines"), 2, "two lines"),
        (NothingToPruneError("all is pinned"), 3, "all is pinned"),
        (ProofError("twin differs"), 4, "twin differs"),
        (MemoryError(), 2, "out of memory"),
    ],
)
def test_errors_raised_on_purpose(run, library, model, error, code, message):
    library.raises = error
    result = run(model, "--ratio", "0.4")
    assert result.exit_code == code
    assert result.stderr.splitlines()[0].startswith(f"onnxprune: error: {message}")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("debug", [(), ("--verbose",), ("-v",)])
def test_our_bugs_are_4_and_show_tracebacks_when_asked(run, library, model, debug):
    library.raises = RuntimeError("oh no")
    result = run(model, "--ratio", "0.4", *debug)
    assert result.exit_code == 4
    assert "unexpected RuntimeError: oh no; this is a bug" in result.stderr
    assert ("Traceback" in result.stderr) is bool(debug)


def test_debug_variable_shows_tracebacks(run, library, model, monkeypatch):
    monkeypatch.setenv("ONNXPRUNE_DEBUG", "1")
    library.raises = RuntimeError("oh no")
    assert "Traceback" in run(model, "--ratio", "0.4").stderr


def test_interrupt_is_130_and_one_line(run, library, model):
    library.raises = KeyboardInterrupt()
    result = run(model, "--ratio", "0.4")
    assert result.exit_code == 130
    assert result.stderr == "interrupted, nothing was written\n"


def test_interrupt_after_saving_says_where_the_model_is(run, library, model, monkeypatch):
    def interrupted(*args, **options):
        Path("net.pruned.onnx").write_bytes(b"a model")
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxprune_cli.prune_command.deliver", interrupted)
    result = run(model, "--ratio", "0.4")
    assert result.exit_code == 130
    assert result.stderr == "interrupted; the model is in net.pruned.onnx\n"


def test_a_reader_that_leaves_early_is_no_error():
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from onnxprune_cli.output import show
sys.stdin.readline()
show(lambda console: console.print("x" * 100_000), to_stderr=False)
sys.exit(1)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    process.stdin.write("go\n")
    process.stdin.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1
    assert errors == ""


def test_the_fake_library_takes_what_the_real_one_takes(library):
    from inspect import signature

    from onnxprune.comparison import compare
    from onnxprune.pipeline import prune

    for fake, real in ((library.prune, prune), (library.compare, compare)):
        known = {name: p.default for name, p in signature(real).parameters.items()}
        taken = {name: p.default for name, p in signature(fake).parameters.items()}
        assert taken.keys() <= known.keys()
        assert real is compare or taken == known
