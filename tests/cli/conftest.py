"""The command line over a fake library: what it passes on, what it makes of a report."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from onnxprune_cli.main import cli

import onnxprune

EXAMPLE = json.loads((Path(__file__).parents[1] / "report" / "example_report.json").read_text("utf-8"))


class FakeLibrary:
    """prune, compare and inspect with the signatures of the real ones; `calls` keeps what they were given."""

    def __init__(self):
        self.report = copy.deepcopy(EXAMPLE)
        self.report["gates"] = []
        self.calls = []
        self.raises = None
        self.prints = ""
        self.network = None
        self.explanation = None

    def prune(self, model, method="coreset-channel", ratio=None, *, target=None, data=None, test_data=None, labels=None,
              budget="auto", align="auto", repair="auto", sequential=None, reweigh=True, beta=None, options=None, only=(),
              skip=(), kinds=(), through_norms=False, keep_ends=False, pattern=None, sparse_storage=False,
              device="auto", threads=1, seed=0, samples=1024, held_out=0.2, batch=32, input_shapes=None, mean=None,
              std=None, layout="auto", latency=True,
              gates=(), output=None, progress=None):  # fmt: skip
        self._note(locals())
        return SimpleNamespace(report=self.report)

    def compare(self, a, b, *, data, labels=None, device="auto", threads=1, samples=1024, batch=32, mean=None, std=None,
                layout="auto", gates=()):  # fmt: skip
        self._note(locals())
        return self.report | {"method": None, "groups": [], "pinned": []}

    def inspect(self, model, *, input_shapes=None, kinds=(), through_norms=False):
        self._note(locals())
        return self.network

    def explain(self, model, tensor, *, input_shapes=None, kinds=(), through_norms=False):
        self._note(locals())
        return self.explanation

    def _note(self, arguments):
        self.calls.append({key: value for key, value in arguments.items() if key != "self"})
        if self.prints:
            print(self.prints)  # noqa: T201
        if self.raises:
            raise self.raises


@pytest.fixture
def library(monkeypatch):
    fake = FakeLibrary()
    for name in ("prune", "compare", "inspect", "explain"):
        monkeypatch.setattr(onnxprune, name, getattr(fake, name), raising=False)
    return fake


@pytest.fixture
def model(tmp_path, monkeypatch):
    """An empty file, for the fake library does not open it; it lies in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.delenv("ONNXPRUNE_DEBUG", raising=False)
    (tmp_path / "net.onnx").write_bytes(b"")
    return "net.onnx"


@pytest.fixture
def run():
    """run("net.onnx", "--ratio", "0.4") -> click's Result, with stdout and stderr apart."""
    return lambda *args: CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="onnxprune")
