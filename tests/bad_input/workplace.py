"""What the tests of bad input share: models built by hand, the state of a folder, the one line, the command as a process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[2]
QUICK = ("--no-latency", "--samples", "32")
FLOAT = TensorProto.FLOAT


def tensor(name, *shape):
    return numpy_helper.from_array(np.random.default_rng(len(name)).standard_normal(shape, np.float32), name)


def built(nodes, stored=(), inputs=(("x", ("n", 8)),), outputs=(("y", ("n", 4)),), opset=17, ir=8, kind=FLOAT):
    """A model, not checked."""
    values = [[helper.make_tensor_value_info(name, kind, shape) for name, shape in part] for part in (inputs, outputs)]
    graph = helper.make_graph(list(nodes), "net", *values, list(stored))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def good(opset=17, ir=8):
    """Three fully connected layers with ReLU."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"], "fc1"),
        helper.make_node("Relu", ["h1"], ["a1"], "relu1"),
        helper.make_node("Gemm", ["a1", "w2", "b2"], ["h2"], "fc2"),
        helper.make_node("Relu", ["h2"], ["a2"], "relu2"),
        helper.make_node("Gemm", ["a2", "w3"], ["y"], "fc3"),
    ]
    stored = [tensor("w1", 8, 16), tensor("b1", 16), tensor("w2", 16, 12), tensor("b2", 12), tensor("w3", 12, 4)]
    return built(nodes, stored, opset=opset, ir=ir)


def contents(folder):
    """What every path below holds: bytes, where a link points, or None for a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[str(path)] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None  # noqa: PTH115
    return found


def one_line(stderr, *says):
    """stderr is one line of ours, says all this, and is no traceback."""
    assert stderr.startswith("onnxprune: error: "), stderr
    assert stderr.count("\n") == 1, stderr
    assert "Traceback" not in stderr
    assert "this is a bug" not in stderr
    assert len(stderr) < 600, stderr
    for text in says:
        assert text in stderr


def process(*args, before="", **options):
    """The command in a process of its own; `before` is Python to run first."""
    # A shell that starts the tests in the background has its children ignore Ctrl-C, and theirs; nohup likewise hang-ups.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    heard += "hasattr(signal, 'SIGHUP') and signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    code = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'cli')]!r}; sys.argv[1:] = {[str(a) for a in args]!r}\n{before}\n"
    code = heard + code + "from onnxprune_cli.__main__ import start\nstart()"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def mounted(folder, *options):
    """Mount something on `folder`, or skip where that is not allowed."""
    if not shutil.which("mount") or subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
