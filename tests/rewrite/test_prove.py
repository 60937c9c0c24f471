"""The proof sees every kind of wrong rewrite, and then nothing is written."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune.errors import ProofError
from onnxprune.jobs import channels as jobs
from onnxprune.rewrite.cut import Cut, cut
from onnxprune.rewrite.mask import masked_twin
from onnxprune.rewrite.prove import check_valid, prove
from onnxprune.runtime import Device
from tests.graph.nets import arrays, check, conv_net, feeds, half, masked, net, node, pruned, run, values

CPU = Device("cpu", 0, "CPUExecutionProvider")
QUICK = {"ratio": 0.5, "samples": 32, "latency": False, "device": "cpu", "align": 1}


def model() -> onnx.ModelProto:
    return conv_net([node("Relu", "a", "r"), node("Conv", "r w", "b", name="mid")], {"w": values(6, 6, 3, 3)})


def set_array(proto: onnx.ModelProto, name: str, change) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor).copy())), name))


def shift(value):
    return np.roll(value, 1, axis=0)


WRONG = {
    "a bias of other channels": lambda m: set_array(m, "b1", shift),
    "a weight of other channels": lambda m: set_array(m, "w", lambda v: np.roll(v, 1, axis=1)),
    "one element": lambda m: set_array(m, "w2", lambda v: v + (np.arange(v.size).reshape(v.shape) == 3) * 0.01),
    "not a number": lambda m: set_array(m, "w2", lambda v: v * np.float32(np.nan)),
    "a shape that does not fit": lambda m: set_array(m, "w", lambda v: v[:, :-1]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_rewrite_is_seen(kind):
    graph, network, made = pruned(model())
    alive = network.alive(half(network, 0))
    batches = [feeds(model(), 2)]
    assert prove(graph, network, alive, made.model, batches, CPU) <= 1e-5
    WRONG[kind](made.model)
    with pytest.raises(ProofError, match="nothing was written"):
        prove(graph, network, alive, made.model, batches, CPU)


def test_the_twin_is_the_masked_original():
    graph, network, made = pruned(model())
    twin = masked_twin(graph, network, network.alive(half(network, 0)))
    given = feeds(model(), 3)
    np.testing.assert_allclose(run(twin, given)[0], run(masked(model(), made.removed), given)[0], rtol=1e-5, atol=1e-6)
    changed = {n for n, v in arrays(model()).items() if not np.array_equal(v, arrays(twin)[n])}
    assert changed == {"w", "w2"}


@pytest.mark.parametrize("where", ["cut", "channels"])
def test_nothing_leaves_when_the_cut_is_wrong(tmp_path, monkeypatch, where):
    def wrong(graph, network, alive) -> Cut:
        made = cut(graph, network, alive)
        if where == "cut":
            set_array(made.model, "b1", shift)
            return made
        return cut(graph, network, network.alive({g.name: np.arange(g.size // 2) + g.size - g.size // 2 for g in network.groups}))

    monkeypatch.setattr(jobs, "cut", wrong)
    source = tmp_path / "m.onnx"
    onnx.save(model(), source)
    with pytest.raises(ProofError) as caught:
        onnxprune.prune(source, "l2-channel", output=tmp_path / "out.onnx", **QUICK)
    assert caught.value.exit_code == 4
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_right_cut_leaves(tmp_path):
    source = tmp_path / "m.onnx"
    onnx.save(model(), source)
    before = source.read_bytes()
    result = onnxprune.prune(source, "l2-channel", repair="none", reweigh=False, output=tmp_path / "out.onnx", **QUICK)
    assert source.read_bytes() == before
    assert onnx.load(tmp_path / "out.onnx") == result.model
    check(model(), Cut(result.model, result.report["removed"], {}))


def test_a_result_that_fails_a_check_the_original_passes():
    good = model()
    bad = model()
    bad.graph.node[0].attribute[0].name = "padds"
    with pytest.raises(ProofError, match=r"fails onnx\.checker"):
        check_valid(bad, good)
    assert "the original fails" in check_valid(bad, bad)[0]
    assert check_valid(good, good) == []


def test_infinities_where_the_twin_has_none():
    made = net(
        [node("MatMul", "x w", "h", name="one"), node("Relu", "h", "r"), node("MatMul", "r v", "y")],
        {"w": values(5, 6), "v": values(6, 4)},
        {"x": ["N", 5]},
    )
    graph, network, small = pruned(made)
    set_array(small.model, "v", lambda v: v + np.float32(np.inf))
    with pytest.raises(ProofError, match="by inf"):
        prove(graph, network, network.alive(half(network, 0)), small.model, [feeds(made, 2)], CPU)
