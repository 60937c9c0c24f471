"""What channels add to a wide layer's outputs: sums by loops, losses against brute force, and a network decided by it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.compensation.least_squares import RefitLosses
from onnxprune.contract import Contributions, contributions
from onnxprune.decide import evidence

# Seven inputs of three channels, two of another number of positions than the third, not side by side.
OWNER = torch.tensor([0, 2, 1, 0, 2, 2, 1])


def seen(rows=40, out=5, seed=0):
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((rows, 7)) + 0.5, rng.standard_normal((out, 7))
    found = Contributions(torch.from_numpy(weights[None]).float(), OWNER)
    parts = np.stack([x[:, c == OWNER] @ weights[:, c == OWNER].T for c in range(3)])  # (channels, rows, out)
    return torch.from_numpy(x).float(), parts, found


def test_moments_are_those_of_the_parts():
    x, parts, found = seen()
    for low in (0, 3, 20):
        found.add(x[low : {0: 3, 3: 20, 20: 40}[low]])
    joint, apart = found.moments()
    wanted = np.einsum("cno,dno->cd", parts, parts) / 40
    centred = parts - parts.mean(1, keepdims=True)
    np.testing.assert_allclose(joint, wanted, rtol=1e-5)
    np.testing.assert_allclose(apart, np.einsum("cno,dno->cd", centred, centred) / 40, rtol=1e-4, atol=1e-5)


def test_merged_counts_are_counts_of_all():
    x, _, whole = seen()
    first, second = seen()[2], seen()[2]
    whole.add(x)
    first.add(x[:11])
    second.add(x[11:])
    first.merge(second)
    for a, b in zip(first.moments(), whole.moments(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gone", [[0], [2], [0, 1]])
def test_the_loss_is_that_of_the_best_scales(gone):
    x, parts, found = seen()
    found.add(x)
    centred = (parts - parts.mean(1, keepdims=True)).reshape(3, -1)
    kept = [c for c in range(3) if c not in gone]
    scales = np.linalg.lstsq(centred[kept].T, centred[gone].sum(0), rcond=None)[0]
    wanted = ((centred[gone].sum(0) - scales @ centred[kept]) ** 2).sum() / 40
    losses = RefitLosses(found.moments()[1], torch.ones(3, 1, dtype=torch.float64), damping=1e-12)
    order = torch.tensor([*kept, *gone])
    assert float(losses.in_order(order)[len(kept)]) == pytest.approx(wanted, rel=1e-4)


def flattened(channels=6, seed=0):
    """Conv -> Relu -> Flatten -> Gemm."""
    rng = np.random.default_rng(seed)
    arrays = {
        "w": rng.standard_normal((channels, 2, 3, 3)) / 3, "b": rng.standard_normal(channels),
        "v": rng.standard_normal((4, channels * 16)) / 4, "c": rng.standard_normal(4),
    }  # fmt: skip
    arrays["v"][:, 16:32] *= 1e-3  # channel 1 adds next to nothing
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "c"], ["y"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ["n", 2, 4, 4])], [helper.make_tensor_value_info("y", 1, ["n", 4])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("method", ["coreset-channel", "obs-channel", "thinet-channel", "l1-channel"])
def test_a_wide_layer_is_decided_by_them(monkeypatch, method):
    data = np.random.default_rng(1).standard_normal((64, 2, 4, 4)).astype(np.float32)
    asked = {"method": method, "ratio": 1 / 6, "data": data, "latency": False, "align": 1}
    counted = []
    add = Contributions.add
    monkeypatch.setattr(contributions.Contributions, "add", lambda self, rows: (counted.append(len(rows)), add(self, rows)))
    narrow = onnxprune.prune(flattened(), **asked).report
    assert not counted
    monkeypatch.setattr(evidence, "WIDEST", 8)
    wide = onnxprune.prune(flattened(), **asked).report
    assert sum(counted) > 0
    if method != "l1-channel":  # which looks at the maker alone
        assert wide["removed"]["w"] == narrow["removed"]["w"] == {"0": [1]}


def test_pairs_of_channels_that_cancel_are_seen():
    """Contributions are compared as vectors, not by their sizes."""
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1] = x[:, 0]
    weights = torch.tensor([[[1.0, -1.0, 0.5, 0.0], [2.0, -2.0, 0.0, 0.5]]])
    found = Contributions(weights, torch.tensor([0, 1, 2, 2]))
    found.add(x)
    joint, _ = found.moments()
    assert float(joint[:2, :2].sum()) == pytest.approx(0, abs=1e-5)
    assert all(float(joint[a, a]) > 0 for a in range(3))
    assert list(itertools.chain(joint.shape)) == [3, 3]
