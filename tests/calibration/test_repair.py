"""Repair on small nets of every kind: better on inputs it never saw, and nothing else touched."""

from __future__ import annotations

import tracemalloc
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import numpy_helper
from tiny_nets import NETS, Net, chain, inputs_for, matmuls, no_bias, shared_bias, shared_weight

from onnxprune.calibration import repair as module
from onnxprune.calibration.refittable import behind_channels
from onnxprune.calibration.repair import Levels, Repair
from onnxprune.calibration.samples import input_specs
from onnxprune.calibration.sources import open_source
from onnxprune.compensation.least_squares import least_squares, match_moments
from onnxprune.devices import choose_device
from onnxprune.errors import DataError
from onnxprune.graph import find, load, prepare
from onnxprune.rewrite.cut import cut
from onnxprune.runtime import Session

CPU = choose_device("cpu")


def run_on(model, feeds):
    return Session(model, CPU).run({"x": feeds})


def error(got, expected):
    """Relative squared error over all outputs, means taken out of the yardstick."""
    parts = [((got[n] - e) ** 2).sum() / ((e - e.mean(0)) ** 2).sum() for n, e in expected.items()]
    return float(sum(parts))


def silent(stage, share):
    pass


def prune_randomly(model, share=0.4, seed=0, only=None):
    """The model with a random share of every group cut away, ready for repair."""
    data = inputs_for(model)
    graph, _ = prepare(load(model).model, {"x": (1, *data.shape[1:])})
    network = find(graph)
    rng = np.random.default_rng(seed)
    kept = {
        g.name: np.sort(rng.permutation(g.size)[: max(1, round(g.size * (1 - share)))]).astype(np.int64)
        for g in network.groups
        if only is None or g.name in only
    }
    alive = network.alive(kept)
    source = open_source(data, input_specs(graph))
    return SimpleNamespace(graph=graph, network=network, alive=alive, source=source, made=cut(graph, network, alive), kept=kept)


def repair(case, solver=least_squares, sequential=True, batch=16):
    layers, left = behind_channels(case.graph, case.network, case.alive)
    worker = Repair(case.graph, case.network, case.made, case.alive, solver=solver, device=CPU, seed=0)
    return worker.run(layers, case.source, batch, silent, sequential=sequential), left


KINDS = {
    "none": (None, True),
    "mean": (match_moments, True),
    "parallel": (least_squares, False),
    "sequential": (least_squares, True),
}


@cache
def outcomes(name):
    """kind of repair -> (error on inputs that it never saw, what was done, the case)."""
    model = NETS[name]()
    unseen = inputs_for(model, 60, seed=7)
    expected = run_on(model, unseen)
    found = {}
    for kind, (solver, sequential) in KINDS.items():
        case = prune_randomly(model)
        done, left = repair(case, solver, sequential) if solver else ([], {})
        assert not set(left) & {d.layer for d in done}
        found[kind] = SimpleNamespace(error=error(run_on(case.made.model, unseen), expected), done=done, case=case)
    return found


@pytest.mark.parametrize("name", NETS)
def test_the_repaired_net_is_better_on_inputs_it_never_saw(name):
    found = outcomes(name)
    errors = {kind: outcome.error for kind, outcome in found.items()}
    assert errors["sequential"] < 0.7 * errors["none"], errors
    assert errors["parallel"] < errors["none"], errors
    assert errors["sequential"] < 1.1 * errors["parallel"], errors


@pytest.mark.parametrize("name", NETS)
def test_every_layer_says_what_it_gained(name):
    for kind in ("mean", "parallel", "sequential"):
        done = outcomes(name)[kind].done
        assert done
        for layer in done:
            assert np.isfinite([layer.before, layer.after]).all()
            assert layer.rows > 0
            assert kind == "mean" or layer.after <= layer.before


def test_sequential_is_better_than_parallel_over_all_nets():
    ratios = [outcomes(name)["sequential"].error / outcomes(name)["parallel"].error for name in NETS]
    assert float(np.exp(np.mean(np.log(ratios)))) < 0.95, ratios


@pytest.mark.parametrize("name", NETS)
def test_matching_moments_gives_the_outputs_their_means_back(name):
    """On the calibration inputs themselves, up to the batches that one layer saw fewer positions of."""
    model, data = NETS[name](), inputs_for(NETS[name]())
    for output, expected in run_on(model, data).items():
        if name == "shared_weight":
            continue  # its last but one layer is left out
        axes = tuple(i for i in range(expected.ndim) if i != (expected.ndim - 1 if name == "matmuls" else 1))
        means = [
            run_on(m, data)[output].mean(axes)
            for m in (outcomes(name)["mean"].case.made.model, outcomes(name)["none"].case.made.model)
        ]
        away = [float(np.abs(m - expected.mean(axes)).max()) for m in means]
        assert away[0] < 0.02 * expected.std() + 0.05 * away[1], away


def test_what_was_not_pruned_upstream_is_not_touched():
    """Only the layers behind removed channels change; the makers' weights are those of the cut, bit for bit."""
    model = chain()
    case = prune_randomly(model, only=["conv2"])
    before = {t.name: t.SerializeToString() for t in case.made.model.graph.initializer}
    done, _ = repair(case)
    changed = {t.name for t in case.made.model.graph.initializer if t.SerializeToString() != before[t.name]}
    layer = case.network.layer[done[0].layer]
    assert [d.layer for d in done] == [layer.name]
    assert changed == {layer.weight, layer.bias}
    assert layer.name not in {"conv0", "conv2"}


def test_nothing_pruned_is_nothing_to_repair():
    case = prune_randomly(chain(), share=0.0)
    assert behind_channels(case.graph, case.network, case.alive) == ([], {})


def test_a_duplicate_channel_is_made_up_for_without_loss():
    """Channel 0 of the first layer copied into channel 1: without the copy the net can be exactly what it was."""
    model = chain()
    for tensor in model.graph.initializer[:2]:
        value = numpy_helper.to_array(tensor).copy()
        value[1] = value[0]
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    case = prune_randomly(model, only=["conv0"])
    alive = case.network.alive({"conv0": np.delete(np.arange(16), 1)})
    case.alive, case.made = alive, cut(case.graph, case.network, alive)
    unseen = inputs_for(model, 60, seed=7)
    expected = run_on(model, unseen)
    before = error(run_on(case.made.model, unseen), expected)
    repair(case)
    assert error(run_on(case.made.model, unseen), expected) < 1e-4 < before


def test_layers_without_a_bias_get_one_where_the_operator_takes_it():
    for ir in (3, 8):
        case = prune_randomly(no_bias(ir=ir))
        assert all(len(n.input) < 3 for n in case.made.model.graph.node if n.op_type in ("Conv", "Gemm"))
        done, _ = repair(case)
        names = {d.layer for d in done}
        for node in case.made.model.graph.node:
            if node.name in names:
                assert len(node.input) == 3
                assert node.input[2].endswith(f"@{node.name}")
        if ir == 3:
            listed = {i.name for i in case.made.model.graph.input}
            assert {t.name for t in case.made.model.graph.initializer} <= listed


def test_a_shared_bias_is_not_changed_for_the_other_user():
    """Pruned inputs on one side only: the other layer must go on reading what it read."""
    model = shared_bias()
    case = prune_randomly(model, only=["conv0"])  # the readers of conv0 are refitted, and all behind
    repair(case)
    readers = [n for n in case.made.model.graph.node if n.op_type == "Conv" and n.name in ("conv2", "conv4")]
    stored = {t.name: numpy_helper.to_array(t) for t in case.made.model.graph.initializer}
    original = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert readers[0].input[2] != readers[1].input[2]
    np.testing.assert_array_equal(stored.get("both", original["both"]), original["both"])


def test_a_shared_weight_is_left_out_with_a_reason():
    case = prune_randomly(shared_weight())
    before = {t.name: t.SerializeToString() for t in case.made.model.graph.initializer if t.name.startswith("twice")}
    done, left = repair(case)
    assert set(left) == {"conv2", "conv4"}
    assert all("shared" in why for why in left.values())
    assert not set(left) & {d.layer for d in done}
    after = {t.name: t.SerializeToString() for t in case.made.model.graph.initializer if t.name.startswith("twice")}
    assert before == after


def test_half_precision_stays_half_precision():
    model = chain(kind=np.float16)
    unseen = inputs_for(model, 60, seed=7)
    expected = {n: v.astype(np.float32) for n, v in run_on(model, unseen).items()}
    case = prune_randomly(model)
    before = error({n: v.astype(np.float32) for n, v in run_on(case.made.model, unseen).items()}, expected)
    repair(case)
    assert {t.data_type for t in case.made.model.graph.initializer} == {10}
    after = error({n: v.astype(np.float32) for n, v in run_on(case.made.model, unseen).items()}, expected)
    assert after < 0.6 * before


def test_the_same_seed_repairs_to_the_same_bytes():
    found = []
    for _ in range(2):
        case = prune_randomly(NETS["residual"]())
        repair(case)
        found.append(case.made.model.SerializeToString(deterministic=True))
    assert found[0] == found[1]


def test_portions_of_the_parallel_repair_change_nothing(monkeypatch):
    found = []
    for budget in (1 << 30, 1):
        monkeypatch.setattr(module, "GRAM_BUDGET", budget)
        case = prune_randomly(chain())
        repair(case, sequential=False)
        found.append(case.made.model.SerializeToString(deterministic=True))
    assert found[0] == found[1]


def test_infinity_in_the_activations_names_the_tensor():
    net = Net()
    x = net.node("Exp", net.node("Mul", net.relu(net.conv("x", 3, 8)), net.constant([400.0], "large")))
    case = prune_randomly(net.model((3, 8, 8), net.conv(x, 8, 4)))
    with pytest.raises(DataError, match="NaN or infinity in 't3'"):
        repair(case)


def test_levels_count_the_layers_on_the_longest_path():
    case = prune_randomly(NETS["residual_without_norm"]())
    layers, _ = behind_channels(case.graph, case.network, case.alive)
    levels = Levels(case.graph, layers)
    assert levels.tensor["x"] == 0
    for number in sorted(levels.layers):
        for layer in levels.layers[number]:
            assert levels.tensor[layer.input] == number
            assert levels.tensor[case.graph.nodes[layer.node].output[0]] == number + 1
    assert sum(map(len, levels.layers.values())) == len(layers)


@pytest.mark.parametrize("sequential", [True, False])
def test_every_node_runs_once_per_sample(monkeypatch, sequential):
    """The work is that of one run of either model: count the nodes that the sessions were built from."""
    built = []
    real = module.Session
    monkeypatch.setattr(module, "Session", lambda model, device: built.append(model) or real(model, device))
    case = prune_randomly(NETS["residual"]())
    repair(case, sequential=sequential)
    names = [n.name for model in built for n in model.graph.node]
    compute = [n.name for n in case.graph.nodes if n.op_type != "Constant"]
    assert max(names.count(name) for name in compute) <= (2 if sequential else 1)


def peak_memory(case, sequential):
    tracemalloc.start()
    try:
        repair(case, sequential=sequential, batch=10)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("sequential", [True, False])
def test_memory_does_not_grow_with_the_samples(monkeypatch, sequential):
    """With a store that holds next to nothing in memory, eight times the samples take about the same."""
    real = module.Store
    monkeypatch.setattr(module, "Store", lambda budget: real(budget=1))
    model = matmuls()
    peaks = []
    for count in (300, 300, 2400):  # the first one warms up
        case = prune_randomly(model)
        case.source = open_source(inputs_for(model, count), input_specs(case.graph), samples=count)
        peaks.append(peak_memory(case, sequential))
    one_tensor = 2400 * 5 * 20 * 4
    assert peaks[2] - peaks[1] < one_tensor / 3, peaks
