"""A good model, good data, and one check for whatever is wrong with either: nothing changes, and one line says what."""

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnxprune_cli.main import cli
from workplace import QUICK, contents, good, one_line


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with net.onnx, data.npz and labels.npy."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_STEP_SUMMARY", "ONNXPRUNE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    onnx.save(good(), "net.onnx")
    rng = np.random.default_rng(0)
    np.savez("data.npz", x=rng.standard_normal((64, 8), np.float32))
    np.save("labels.npy", rng.integers(0, 4, 64))
    return tmp_path


@pytest.fixture
def run():
    return lambda *args: CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="onnxprune")


@pytest.fixture
def refused(place, run):
    """refused("net.onnx", "--ratio", "2", says=["less than 1"]): exit code, one line, and everything as it was."""

    def check(*args, code=2, says=()):
        before = contents(place)
        result = run(*args)
        assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
        assert result.stdout == ""
        one_line(result.stderr, *says)
        assert contents(place) == before
        return result.stderr

    return check


@pytest.fixture
def prune(refused):
    """The usual command, with whatever is wrong added."""
    return lambda *args, model="net.onnx", **expected: refused(model, "--ratio", "0.4", *QUICK, *args, **expected)
