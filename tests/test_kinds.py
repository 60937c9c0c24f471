"""Kinds of channel: which are asked for, which go unless told otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import onnxprune
from onnxprune.decide import channels as decide
from onnxprune.errors import NothingToPruneError, UnknownNameError
from onnxprune.methods import create
from onnxprune.request import as_kinds
from tests.graph.cases import ints
from tests.graph.nets import net, node, values


def transformer():
    """Self-attention of 8 heads of 4 and an MLP of 64, around a stream of 16 that is input and output."""
    nodes = [
        *(node("MatMul", f"x w{n}", n, name=f"{n}_") for n in "qkv"),
        *(node("Reshape", f"{n} split", f"{n}s") for n in "qkv"),
        *(node("Transpose", f"{n}s", f"{n}h", perm=[0, 2, 1, 3]) for n in "qv"),
        node("Transpose", "ks", "kh", perm=[0, 2, 3, 1]),
        node("MatMul", "qh kh", "scores"),
        node("Softmax", "scores", "p", axis=-1),
        node("MatMul", "p vh", "c"),
        node("Transpose", "c", "ct", perm=[0, 2, 1, 3]),
        node("Reshape", "ct join", "o"),
        node("MatMul", "o wo", "a", name="out"),
        node("Add", "a x", "s"),
        node("MatMul", "s up", "u", name="up_"),
        node("Relu", "u", "r"),
        node("MatMul", "r down", "d", name="down_"),
        node("Add", "d s", "y"),
    ]
    weights = {f"w{n}": values(16, 32, seed=i) for i, n in enumerate("qkv")}
    weights |= {"wo": values(32, 16), "up": values(16, 64), "down": values(64, 16)}
    return net(nodes, weights | {"split": ints(0, 0, 8, 4), "join": ints(0, 0, 32)}, {"x": ["N", 5, 16]})


def kept(**more) -> dict[str, tuple[int, int]]:
    data = np.random.default_rng(0).standard_normal((40, 5, 16)).astype(np.float32)
    fields = {"ratio": 0.5, "data": data, "latency": False, "budget": "uniform", "align": 1, "method": "l2-channel"} | more
    groups = onnxprune.prune(transformer(), **fields).report["groups"]
    return {g["kind"]: (g["channels"], g["kept"]) for g in groups}


def test_all_usual_kinds_go():
    assert kept() == {"head": (8, 4), "neuron": (64, 32)}


@pytest.mark.parametrize("kinds", ["neuron", ["neuron"], ("neuron",)])
def test_only_neurons(kinds):
    assert kept(kinds=kinds) == {"head": (8, 8), "neuron": (64, 32)}


def test_only_heads():
    assert kept(kinds="head") == {"head": (8, 4), "neuron": (64, 64)}


def test_width_in_place_of_heads():
    found = kept(kinds="head-width,neuron")
    assert found == {"head-width": (4, 2), "neuron": (64, 32)}
    assert "head" not in {g.kind for g in onnxprune.inspect(transformer(), kinds="head-width").groups}
    assert "head" in {g.kind for g in onnxprune.inspect(transformer(), kinds=["head", "head-width"]).groups}


def test_the_report_tells_what_was_asked_for():
    data = np.random.default_rng(0).standard_normal((40, 5, 16)).astype(np.float32)
    result = onnxprune.prune(transformer(), ratio=0.5, data=data, latency=False, kinds="head, neuron")
    assert result.report["options"]["kinds"] == ["neuron", "head"]


def test_names_are_checked():
    assert as_kinds("head, neuron ,head") == ("neuron", "head")
    assert as_kinds(()) == ()
    with pytest.raises(UnknownNameError, match="did you mean 'embedding'"):
        as_kinds(["head,embeding"])


def test_a_kind_that_is_not_there():
    with pytest.raises(NothingToPruneError, match="no channels of kind recurrent, only of kind head and neuron; ask for --kind"):
        kept(kinds="recurrent")


def test_embeddings_go_only_if_asked_for():
    network, method = onnxprune.inspect(transformer()), create("l2-channel")
    first, *rest = network.groups
    wide = replace(network, groups=(replace(first, kind="embedding"), *rest))
    assert decide.select(wide, method, (), ()) == rest
    assert decide.select(wide, method, (), (), ("embedding",)) == [wide.groups[0]]
    assert len(decide.select(wide, method, (), (), ("embedding", "neuron"))) == len(network.groups)
    with pytest.raises(NothingToPruneError, match=r"only channels of kind embedding could go.*ask for --kind embedding"):
        decide.select(wide, method, [first.name], ())


def test_a_method_for_neurons_stays_one():
    network, method = onnxprune.inspect(transformer()), create("random-neuron")
    assert {g.kind for g in decide.select(network, method, (), ())} == {"neuron"}
    with pytest.raises(NothingToPruneError):
        decide.select(network, method, (), (), ("head",))


def test_every_method_ranks_channels_that_no_weights_read():
    """The width of queries and keys is read by one another: methods that look at readers find none."""
    for name in ("coreset-channel", "percentile-channel", "l1-channel", "random-channel"):
        pruned = onnxprune.prune(transformer(), name, ratio=0.5, kinds="head-width", latency=False, samples=8)
        assert {g["kept"] for g in pruned.report["groups"] if g["kind"] == "head-width"} == {2}
