"""What `onnxprune inspect` shows of a network, as figures and as text."""

import dataclasses
import io
import json

from rich.console import Console

from onnxprune.report import inspection
from onnxprune.report.json import render


def shown(found, **options):
    stream = io.StringIO()
    inspection.show(found, Console(file=stream, width=110, highlight=False), **options)
    return stream.getvalue()


def test_figures(network):
    found = json.loads(render(inspection.describe(network, "m.onnx")))
    assert (found["macs"], found["parameters"], found["parameter_bytes"]) == (32256, 504, 2016)
    assert found["input_shapes"] == {"x": [1, 3, 8, 8]}
    assert [layer["name"] for layer in found["layers"]] == ["conv1", "conv2"]
    assert found["groups"] == [
        {
            "name": "conv1[out]",
            "kind": "channel",
            "channels": 8,
            "makers": ["conv1"],
            "readers": ["conv2"],
            "opt_in": False,
            "macs_per_channel": 576 * (3 + 4),
        }
    ]
    assert found["pinned"][0] == {"tensor": "x", "reason": "graph input", "channels": 3}


def test_text(network):
    output = shown(inspection.describe(network, "m.onnx"))
    assert "504 parameters (2.02 kB), 32.26 k MACs at x 1x3x8x8" in output
    assert "13.82 k" in output
    assert "42.9 %" in output
    assert "conv1[out]" in output
    assert "4.03 k" in output
    pins = [" ".join(row.split()) for row in output.splitlines()]
    assert "graph output 2 5" in pins


def test_verbose_names_the_pinned_tensors(network):
    pins = [" ".join(row.split()) for row in shown(inspection.describe(network), verbose=True).splitlines()]
    assert "z graph output 1" in pins


def test_an_empty_network_says_so(network):
    bare = dataclasses.replace(network, layers=(), groups=(), pins=(), mac_terms=(), parameter_terms=())
    output = shown(inspection.describe(bare))
    assert "No convolution or fully connected layer" in output
    assert "No channel of this model can be removed" in output


def test_kinds(network):
    wide = dataclasses.replace(network.groups[0], kind="embedding")
    widened = dataclasses.replace(network, groups=(wide,))
    assert inspection.describe(widened)["groups"][0]["opt_in"]
    assert "embedding (only with --kind)" in shown(inspection.describe(widened))
    assert inspection.describe(widened, kinds=("head", "neuron"))["groups"] == []
    assert len(inspection.describe(widened, kinds=("embedding",))["groups"]) == 1
