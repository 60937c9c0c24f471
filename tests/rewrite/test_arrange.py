"""Channels of grouped convolutions and shuffles change places: the function stays, and each block may lose other positions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import onnxprune
from onnxprune.devices import choose_device
from onnxprune.errors import ProofError
from onnxprune.graph.find import find
from onnxprune.graph.prepare import prepare
from onnxprune.graph.structure import trace
from onnxprune.rewrite.arrange import arrange, original_positions
from onnxprune.rewrite.cut import Cut, cut
from onnxprune.rewrite.prove import outputs, prove_arranged
from tests.graph import test_rules  # noqa: F401  (fills CASES)
from tests.graph.cases import CASES, ints
from tests.graph.nets import check, feeds, half, net, node, run, values
from tests.graph.random_nets import random_nets


def copied(model):
    found = onnx.ModelProto()
    found.CopyFrom(model)
    return found


def network_of(model):
    return find(prepare(copied(model))[0])


def arranged(model, seed=0):
    """(graph, network, orders) with the channels of every cell in a random order. `model` is left alone."""
    graph, _ = prepare(copied(model))
    network = find(graph)
    rng = np.random.default_rng(seed)
    orders = arrange(graph, network, {g.name: [rng.standard_normal(c.size) for c in g.cells] for g in network.groups})
    graph = trace(graph.model, graph.inputs)
    again = find(graph)
    assert [(g.name, g.size, g.ids.tolist()) for g in again.groups] == [(g.name, g.size, g.ids.tolist()) for g in network.groups]
    return graph, again, orders


def check_arranged(model, seed=0, share=0.5):
    """The arranged model is the original, and what is cut of it the masked original. Returns what was removed block by block."""
    graph, network, orders = arranged(model, seed)
    for batch in (1, 3):
        given_ = feeds(model, batch, seed=batch)
        for got, expected in zip(run(graph.model, given_), run(model, given_), strict=True):
            scale = max(float(np.abs(expected).max(initial=0)), 1e-6)
            assert float(np.abs(got - expected).max(initial=0)) <= 1e-5 * scale
    made = cut(graph, network, network.alive(half(network, seed, share=share)))
    found = original_positions(made.removed, orders)
    merged = {name: dict(axes) for name, axes in found.removed.items()}
    for name, axes in found.removed_by_block.items():
        merged.setdefault(name, {}).update(axes)
    check(model, Cut(made.model, merged, made.renamed), reordered=found.reordered)
    return found


def norm(x, y, channels, seed):
    names = [f"{y}_{part}" for part in ("scale", "shift", "mean", "variance")]
    weights = {n: values(channels, seed=seed + i, low=0.5 if i in (0, 3) else -1) for i, n in enumerate(names)}
    return node("BatchNormalization", f"{x} {' '.join(names)}", y), weights


def grouped(*groups, channels=12):
    """A plain convolution, one grouped convolution after the other with batch norm, bias and PRelu between, and a plain one."""
    batch_norm, weights = norm("a0", "b0", channels, 7)
    nodes = [node("Conv", "x w b", "a0", name="first"), batch_norm]
    weights |= {"w": values(channels, 3, 1, 1), "b": values(channels, seed=1), "last_w": values(4, channels, 1, 1)}
    for i, group in enumerate(groups):
        own = {f"g{i}": values(channels, channels // group, 3, 3, seed=i), f"c{i}": values(channels, seed=i)}
        weights |= own | {f"s{i}": values(channels, 1, 1, seed=i + 5)}
        nodes.append(node("Conv", f"b{i} g{i} c{i}", f"a{i + 1}", name=f"grouped{i}", group=group, pads=[1] * 4))
        nodes.append(node("PRelu", f"a{i + 1} s{i}", f"b{i + 1}"))
    nodes.append(node("Conv", f"b{len(groups)} last_w", "y", name="last"))
    return net(nodes, weights, {"x": ["N", 3, 5, 5]})


def shuffled(group=2, per_group=4, residual=False, middle=()):
    """Plain, grouped, shuffle, depthwise, grouped, plain. `middle`: what happens to 's' (the shuffle's inside) to make 't'."""
    c = group * per_group
    back = "z" if not residual else "r"
    nodes = [
        node("Conv", "x w", "a", name="first"),
        node("Conv", "a g1", "b", name="one", group=group),
        node("Relu", "b", "c"),
        node("Reshape", "c apart", "s"),
        *(middle or [node("Identity", "s", "t")]),
        node("Transpose", "t", "u", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "u together", "v"),
        node("Conv", "v d e", "k", name="deep", group=c, pads=[1] * 4),
        node("Conv", "k g2", "z", name="two", group=group),
        *([node("Add", "z a", "r")] if residual else []),
        node("Conv", f"{back} w2", "y", name="last"),
    ]
    weights = {
        "w": values(c, 3, 1, 1), "g1": values(c, per_group, 1, 1), "g2": values(c, per_group, 1, 1, seed=1), "e": values(c),
        "d": values(c, 1, 3, 3), "w2": values(4, c, 1, 1), "apart": ints(0, group, per_group, 5, 5), "together": ints(0, c, 5, 5),
        "by_place": values(per_group, 1, 1),
    }  # fmt: skip
    read = {i for n in nodes for i in n.input}
    return net(nodes, {n: v for n, v in weights.items() if n in read}, {"x": ["N", 3, 5, 5]})


def transposed():
    """Grouped ConvTranspose between plain convolutions."""
    nodes = [
        node("Conv", "x w", "a", name="first"),
        node("ConvTranspose", "a g b", "c", name="up", group=2, strides=[2, 2]),
        node("Conv", "c w2", "y", name="last"),
    ]
    weights = {"w": values(8, 3, 1, 1), "g": values(8, 5, 2, 2), "b": values(10), "w2": values(4, 10, 1, 1)}
    return net(nodes, weights, {"x": ["N", 3, 5, 5]})


def joined():
    """ShuffleNet's change of stage: what a grouped convolution made stands behind other channels, and is grouped anew."""
    nodes = [
        node("Conv", "x w", "a", name="first"),
        node("Conv", "a g1", "b", name="one", group=3),
        node("Conv", "x w3", "p", name="beside"),
        node("Concat", "p b", "c", axis=1),
        node("Conv", "c g2", "d", name="two", group=3),
        node("Conv", "d w2", "y", name="last"),
    ]
    weights = {
        "w": values(12, 3, 1, 1), "g1": values(12, 4, 1, 1), "w3": values(6, 3, 1, 1, seed=1), "g2": values(12, 6, 1, 1),
        "w2": values(4, 12, 1, 1),
    }  # fmt: skip
    return net(nodes, weights, {"x": ["N", 3, 5, 5]})


NETS = {
    "two_groups": (lambda: grouped(2), 4),
    "three_groups": (lambda: grouped(3, channels=24), 6),
    "groups_after_groups": (lambda: grouped(2, 2, 2), 8),
    "other_groups_after_groups": (lambda: grouped(2, 4, channels=48), 10),
    "shuffle": (lambda: shuffled(), 8),
    "shuffle_of_three": (lambda: shuffled(3, 9), 15),
    "residual": (lambda: shuffled(residual=True), 6),
    "transposed": (transposed, 4),
    "joined": (joined, 11),
}


@pytest.mark.parametrize("name", NETS)
def test_the_function_stays_and_each_block_loses_its_own_positions(name):
    build, cells = NETS[name]
    model = build()
    before = model.SerializeToString()
    assert sum(len(g.cells) for g in network_of(model).groups) == cells
    unequal = {n for seed in range(3) for n in check_arranged(model, seed).removed_by_block}
    assert unequal
    assert model.SerializeToString() == before


@pytest.mark.parametrize("name", CASES)
def test_every_operator_lets_only_channels_change_places_that_may(name):
    """Whatever the net of a rule test lets change places, its function stays."""
    model = CASES[name]().model
    for through_norms in (False, True):
        graph, _ = prepare(copied(model))
        network = find(graph, through_norms=through_norms)
        if not any(g.cells for g in network.groups):
            continue
        device = choose_device("cpu")
        batches = [feeds(model, 2)]
        expected = outputs(graph.model, batches, device)
        rng = np.random.default_rng(0)
        assert arrange(graph, network, {g.name: [rng.standard_normal(c.size) for c in g.cells] for g in network.groups})
        prove_arranged(trace(graph.model, graph.inputs), expected, batches, device)


def test_a_bias_that_two_layers_share_by_accident_is_cloned():
    model = shuffled()
    model.graph.node[1].input.append("e")
    graph, _, orders = arranged(model)
    assert set(orders) >= {"e@one", "e@deep"}
    assert "e" not in {i for n in graph.nodes for i in n.input}
    check_arranged(model)


def taken_apart(*middle):
    """A plain convolution, channels laid out as 2 x 4 and back, a plain one. `middle` makes 't' of 's'."""
    nodes = [
        node("Conv", "x w", "a", name="first"),
        node("Reshape", "a apart", "s"),
        *middle,
        node("Reshape", "t together", "z"),
        node("Conv", "z w2", "y", name="last"),
    ]
    weights = {"w": values(8, 3, 1, 1), "apart": ints(0, 2, 4, 5, 5), "together": ints(0, 8, 5, 5), "w2": values(4, 8, 1, 1)}
    more = {"by_place": values(4, 1, 1)} if any("by_place" in n.input for n in middle) else {}
    return net(nodes, weights | more, {"x": ["N", 3, 5, 5]})


def test_channels_that_something_else_holds_in_place_stay():
    """A factor by the place in the block, parts of the places in another order, a sum over blocks: not one may move alone."""
    free = taken_apart(node("Relu", "s", "t"))
    assert [len(g.cells) for g in network_of(free).groups] == [2]
    check_arranged(free)
    for middle in (
        [node("Mul", "s by_place", "t")],
        [node("Split", "s", "s1 s2", axis=2), node("Concat", "s2 s1", "t", axis=2)],
        [node("Split", "s", "s1 s2", axis=1), node("Concat", "s2 s1", "u", axis=1), node("Add", "u s", "t")],
        [node("Softmax", "s", "t", axis=1)],
        [node("Softmax", "s", "t", axis=2)],
    ):
        network = network_of(taken_apart(*middle))
        assert network.groups
        assert not any(g.cells for g in network.groups)


@pytest.mark.parametrize("through_norms", [False, True])
def test_groups_of_a_norm_are_looked_at_together(through_norms):
    """Channels of two groups that changed places would change both groups' statistics."""
    nodes = [
        node("Conv", "x w", "a", name="first"),
        node("GroupNormalization", "a scale shift", "b", num_groups=4),
        node("Conv", "b w2", "y", name="last"),
    ]
    weights = {"w": values(12, 3, 1, 1), "scale": values(12), "shift": values(12), "w2": values(4, 12, 1, 1)}
    graph, _ = prepare(net(nodes, weights, {"x": ["N", 3, 5, 5]}, opset=21, ir=10))
    network = find(graph, through_norms=through_norms)
    assert network.groups
    assert not any(g.cells for g in network.groups)


def test_what_is_held_in_one_joint_may_move_in_another():
    """The factor ties the blocks before the shuffle; those behind it still differ."""
    held = shuffled(middle=[node("Mul", "s by_place", "t")])
    assert [len(g.cells) for g in network_of(held).groups] == [2, 2, 2]
    check_arranged(held)


def test_whole_groups_and_depthwise_have_no_cells():
    assert not any(g.cells for g in network_of(grouped(6)).groups)
    assert not any(g.cells for g in network_of(grouped(12)).groups)


def test_a_wrong_order_is_no_result():
    model = grouped(2)
    graph, _, orders = arranged(model)
    device = choose_device("cpu")
    batches = [feeds(model, 2)]
    expected = outputs(model, batches, device)
    assert prove_arranged(graph, expected, batches, device) < 1e-5
    tensor = graph.parameters["g0"]
    tensor.CopyFrom(onnx.numpy_helper.from_array(graph.array("g0")[::-1].copy(), "g0"))
    with pytest.raises(ProofError, match="in another order"):
        prove_arranged(graph, expected, batches, device)
    assert orders["g0"][1].shape == (2, 6)


def test_pruning_takes_the_weakest_of_each_block():
    model = grouped(2)
    # 'first' makes two weak channels in each block, at different positions.
    for weights in model.graph.initializer:
        if weights.name in ("w", "b", "b0_shift", "b0_mean"):
            value = onnx.numpy_helper.to_array(weights).copy()
            value[[0, 2, 4, 9, 10, 11]] *= 1e-3
            weights.CopyFrom(onnx.numpy_helper.from_array(value, weights.name))
    before = model.SerializeToString()
    asked = {"budget": "uniform", "align": 1, "repair": "none", "latency": False, "only": ["first"]}
    result = onnxprune.prune(model, "l2-channel", ratio=0.5, **asked)
    assert model.SerializeToString() == before
    assert result.report["removed"]["w"] == {"0": [0, 2, 4, 9, 10, 11]}
    assert result.report["removed_by_block"] == {"g0": {"1": [[0, 2, 4], [3, 4, 5]]}}
    check(
        model,
        Cut(result.model, result.report["removed"] | {"g0": result.report["removed_by_block"]["g0"]}, {}),
        reordered=result.report["reordered"],
    )
    assert result.report["deviation"]["y"]["relative_l2"] < 0.01


def test_what_stays_is_as_it_was_where_that_is_promised():
    """Without repair and reweighing nothing changes places: `removed` says it all."""
    model = grouped(2)
    given_ = {"budget": "uniform", "align": 1, "repair": "none", "reweigh": False, "latency": False, "only": ["first"]}
    result = onnxprune.prune(model, "l2-channel", ratio=0.5, **given_)
    assert (result.report["reordered"], result.report["removed_by_block"]) == ({}, {})
    assert len(result.report["removed"]["g0"]["1"]) == 3
    after = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
    for weights in model.graph.initializer:
        expected = onnx.numpy_helper.to_array(weights)
        for axis, gone in result.report["removed"].get(weights.name, {}).items():
            expected = np.delete(expected, gone, axis=int(axis))
        np.testing.assert_array_equal(after[weights.name], expected)


def test_random_graphs():
    seen = {"cells": 0, "unequal": 0}
    quiet = settings(
        max_examples=150, derandomize=True, database=None, deadline=None, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    @quiet
    @given(random_nets(), st.integers(0, 99))
    def holds(drawn, seed):
        model, grown = drawn
        note(repr(grown))
        if any(g.cells for g in network_of(model).groups):
            seen["cells"] += 1
            seen["unequal"] += bool(check_arranged(model, seed).removed_by_block)

    holds()
    assert seen["cells"] >= 20
    assert seen["unequal"] >= 5
