"""inspect, compare, methods and doctor."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from onnxprune import contract, methods, runtime
from onnxprune.graph.why import AxisStory, Cause, Explanation, Step
from onnxprune.network import Group, Network, Pin

NETWORK = Network(
    layers=(),
    groups=(Group("hidden", "neuron", np.arange(3), (), ("fc1",), ("fc2",), False),),
    pins=(Pin("y", "graph output", 2),),
    slots=(),
    channel_count=3,
    tensor_channels={},
    shapes={},
    input_shapes={"x": (1, 4)},
    mac_terms=(),
    parameter_terms=(),
    element_bytes={},
)


def test_inspect_shows_and_writes(run, library, model):
    library.network = NETWORK
    result = run("inspect", model, "--input-shape", "x:1,4", "--json", "found.json")
    assert result.exit_code == 0, result.stderr
    assert library.calls == [{"model": model, "input_shapes": {"x": (1, 4)}, "kinds": (), "through_norms": False}]
    assert "hidden" in result.stdout
    assert "graph output" in result.stdout
    assert json.loads(Path("found.json").read_text("utf-8"))["groups"][0]["name"] == "hidden"


def test_inspect_of_one_kind(run, library, model):
    library.network = NETWORK
    run("inspect", model, "--kind", "head", "--json", "found.json")
    assert library.calls[0]["kinds"] == ("head",)
    assert json.loads(Path("found.json").read_text("utf-8"))["groups"] == []
    assert run("inspect", model, "--kind", "neuron").stdout.count("hidden") == 1


def test_why(run, library, model):
    steps = (Step("c", "Conv", "z", "Conv c makes 8 channels"),)
    story = AxisStory(0, 16, 8, (("hidden", "neuron", 5),), (Cause("z", "graph output 'z'", 3, steps),))
    library.explanation = Explanation("w", "weight", (story,))
    result = run("inspect", model, "--why", "w", "--kind", "head", "--json", "found.json")
    assert library.calls == [{"model": model, "tensor": "w", "input_shapes": None, "kinds": ("head",), "through_norms": False}]
    assert "axis 0: 8 channels on 16 positions" in result.stdout
    assert "5 can go: group hidden (kind neuron)" in result.stdout
    assert "3 may not: weight 'w' -> Conv c makes 8 channels -> graph output 'z'" in result.stdout
    found = json.loads(Path("found.json").read_text("utf-8"))["why"]
    assert found["axes"][0]["pinned"][0]["chain"] == [
        {"node": "c", "op": "Conv", "tensor": "z", "text": "Conv c makes 8 channels"}
    ]


def test_why_of_what_carries_no_channels(run, library, model):
    library.explanation = Explanation("x", "input", ())
    assert "carries no channels: it is an input of the model" in run("inspect", model, "--why", "x").stdout


def test_why_names_the_nearest_reasons_first(run, library, model):
    causes = tuple(Cause(f"t{i}", f"reason {i}", 3, ()) for i in range(5))
    library.explanation = Explanation("w", "weight", (AxisStory(0, 8, 8, (), causes),))
    output = run("inspect", model, "--why", "w").stdout
    assert "reason 2" in output
    assert "reason 3" not in output
    assert "2 more reasons, farther away (--verbose)" in output
    assert "reason 4" in run("inspect", model, "--why", "w", "--verbose").stdout


def test_inspect_json_alone(run, library, model):
    library.network, library.prints = NETWORK, "noise"
    result = run("inspect", model, "--json", "-")
    assert json.loads(result.stdout)["pinned"] == [{"tensor": "y", "reason": "graph output", "channels": 2}]


def test_compare(run, library, model):
    library.report["gates"] = [{"expression": "cosine<0.99", "value": 0.9, "passed": False}]
    result = run("compare", "a.onnx", "b.onnx", "--data", "d.npz", "--fail-if", "cosine<0.99", "--mean", "0.5")
    assert result.exit_code == 1
    passed_on = {"a": "a.onnx", "b": "b.onnx", "data": "d.npz", "mean": (0.5,), "gates": ("cosine<0.99",)}
    assert library.calls[0].items() >= passed_on.items()
    assert "resnet56_cifar10.onnx and resnet56_cifar10.pruned.onnx" in result.stdout
    assert "FAILED" in result.stdout


@pytest.fixture
def one_method(monkeypatch):
    option = contract.Option(0.5, "the share of luck [paper: lambda]")
    luck = SimpleNamespace(paper="Fortuna, On luck, 2020", target="channel", options={"share": option})
    monkeypatch.setattr(methods, "known", lambda: {"luck-channel": luck})


def test_methods(run, one_method):
    output = run("methods").stdout
    for text in ("luck-channel", "channels", "Fortuna, On luck, 2020", "--option share=0.5", "[paper: lambda]"):
        assert text in output


def test_methods_as_json(run, one_method):
    (found,) = json.loads(run("methods", "--json", "-").stdout)["methods"]
    assert found["name"] == "luck-channel"
    assert found["removes"] == "channel"
    assert found["options"]["share"] == {"default": 0.5, "help": "the share of luck [paper: lambda]"}


@pytest.fixture
def machine(monkeypatch):
    """A healthy machine without a GPU; tests break it."""
    state = SimpleNamespace(
        installed={"onnxruntime-gpu": "1.31.1"},
        providers=[("CUDAExecutionProvider", False, "no GPU here"), ("CPUExecutionProvider", True, "a trial ran")],
    )
    monkeypatch.setattr(runtime, "installed_runtimes", lambda: state.installed)
    monkeypatch.setattr(runtime, "providers_report", lambda: state.providers)
    return state


def test_doctor_on_a_healthy_machine(run, machine):
    result = run("doctor")
    assert result.exit_code == 0, result.stdout
    rows = [" ".join(row.split()) for row in result.stdout.splitlines()]
    assert "CUDAExecutionProvider does not work, no GPU here" in rows
    assert "CPUExecutionProvider works, a trial ran" in rows
    assert any(row.startswith("telemetry off") for row in rows)
    assert any(row.startswith(f"Python {sys.version_info[0]}.") for row in rows)
    assert "Everything that is needed works." in rows


def test_doctor_finds_two_runtimes_and_says_the_cure(run, machine):
    machine.installed["onnxruntime"] = "1.31.1"
    result = run("doctor", "--json", "-")
    assert result.exit_code == 1
    (problem,) = json.loads(result.stdout)["problems"]
    assert "onnxruntime-gpu and onnxruntime are both installed" in problem
    assert problem.endswith("pip uninstall -y onnxruntime-gpu onnxruntime && pip install onnxruntime-gpu")


def test_doctor_survives_a_broken_runtime(run, machine, monkeypatch):
    def broken():
        raise ImportError("libonnxruntime.so: cannot open shared object file")

    monkeypatch.setattr(runtime, "providers_report", broken)
    result = run("doctor")
    assert result.exit_code == 1
    assert "ONNX Runtime does not work: libonnxruntime.so" in result.stdout


def test_doctor_names_what_is_missing(run, machine, monkeypatch):
    metadata = importlib.import_module("importlib.metadata")
    original = metadata.version

    def without_scipy(name):
        if name == "scipy":
            raise metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(metadata, "version", without_scipy)
    result = run("doctor")
    assert result.exit_code == 1
    assert "not installed: scipy; pip install scipy" in " ".join(result.stdout.split())


def test_doctor_tells_when_telemetry_is_on(run, machine, monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert "left to ONNX Runtime (ORT_DISABLE_TELEMETRY=0)" in run("doctor").stdout
