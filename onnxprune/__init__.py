"""onnxprune: from an ONNX file to a smaller, faster, repaired, proven one.

    import onnxprune
    result = onnxprune.prune("model.onnx", method="coreset-channel", ratio=0.4, data="calib.npz")
    result.save("model.pruned.onnx")

Public names: prune, inspect, explain, compare, load, PruneResult, method, rule, check_method, check_rule, errors. Everything is
imported on first use, so that `import onnxprune` costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxprune.version import __version__

# Two thread pools take turns, torch's and ONNX Runtime's. Threads that spin while they wait keep the other pool from its cores:
# on a busy machine with two of them a run took ten times as long. OpenMP reads these when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

if TYPE_CHECKING:
    from onnxprune.comparison import compare
    from onnxprune.contract import ChannelMethod, Method, WeightMethod, method
    from onnxprune.errors import OnnxpruneError
    from onnxprune.examine import explain, inspect
    from onnxprune.graph.labels import rule
    from onnxprune.graph.load import load
    from onnxprune.pipeline import PruneResult, prune
    from onnxprune.testing import check_method, check_rule

_HOMES = {
    "prune": "onnxprune.pipeline",
    "inspect": "onnxprune.examine",
    "explain": "onnxprune.examine",
    "compare": "onnxprune.comparison",
    "PruneResult": "onnxprune.pipeline",
    "load": "onnxprune.graph.load",
    "Method": "onnxprune.contract",
    "ChannelMethod": "onnxprune.contract",
    "WeightMethod": "onnxprune.contract",
    "method": "onnxprune.contract",
    "rule": "onnxprune.graph.labels",
    "OnnxpruneError": "onnxprune.errors",
    "check_method": "onnxprune.testing",
    "check_rule": "onnxprune.testing",
}

__all__ = [
    "ChannelMethod", "Method", "OnnxpruneError", "PruneResult", "WeightMethod", "__version__", "check_method", "check_rule",
    "compare", "explain", "inspect", "load", "method", "prune", "rule",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
