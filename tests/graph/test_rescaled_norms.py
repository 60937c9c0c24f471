"""--through-norms: channels under the statistics of a norm go, its parameters go on counting them (yardstick: numpy)."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune.graph.find import find
from onnxprune.graph.prepare import prepare
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.mask import masked_twin
from tests.graph.cases import ints
from tests.graph.cases_normalization import DIVIDE, INVERT, RECIPROCAL, TENSORFLOW, centred, mean, norm, spelled
from tests.graph.nets import arrays, feeds, net, node, run, values

EPS, WIDTH = 0.1, 8
CONSTANTS = {"two": np.float32(2), "eps": np.float32(EPS), "one": np.float32(1)}
KEEP = np.array([0, 2, 3, 5, 7])


def halved(model, keep, name="first"):
    """(network, cut, masked twin) after all but `keep` of a group went."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, _ = prepare(copy)
    network = find(graph, through_norms=True)
    alive = network.alive({name: np.asarray(keep)})
    return network, cut(graph, network, alive), masked_twin(graph, network, alive)


def check(model, made, twin, expected=None) -> None:
    """The cut model is valid and gives what its twin and the formula give."""
    onnx.checker.check_model(made.model, full_check=True)
    for batch in (1, 3):
        given = feeds(model, batch, seed=batch)
        (got,), (other,) = run(made.model, given), run(twin, given)
        np.testing.assert_allclose(got, other, atol=2e-5)
        if expected is not None:
            np.testing.assert_allclose(got, expected(given["x"]), atol=2e-5)


def sandwich(nodes, weights, *, opset=17, groups=None) -> onnx.ModelProto:
    """x (N, 5, 4) -> MatMul -> t (N, 5, 8) -> nodes -> n -> MatMul -> y."""
    own = {"w1": values(4, WIDTH), "w2": values(WIDTH, 3, seed=1)}
    every = [node("MatMul", "x w1", "t", name="first"), *nodes, node("MatMul", "n w2", "y", name="last")]
    return net(every, own | weights, {"x": ["N", 5, 4]}, opset=opset)


def by_hand(weights, *, centre: bool, shift: bool, eps: float = EPS):
    """Mean over the kept, mean square of the rest of it over all that there were."""
    w1, w2 = values(4, WIDTH)[:, KEEP], values(WIDTH, 3, seed=1)[KEEP]

    def function(x):
        t = x @ w1
        d = t - t.mean(-1, keepdims=True) if centre else t
        z = d / np.sqrt((d**2).sum(-1, keepdims=True) / WIDTH + eps)
        return (z * weights["g"][KEEP] + (weights["be"][KEEP] if shift else 0)) @ w2

    return function


AFFINE = {"g": values(WIDTH, low=0.5, high=2), "be": values(WIDTH)}
FUSED = norm("LayerNormalization", "t g be", epsilon=EPS)
FORMS = {
    "layer_norm": ([FUSED], True, True, 17),
    "layer_norm_without_bias": ([norm("LayerNormalization", "t g", epsilon=EPS)], True, False, 17),
    "rms_norm": ([norm("RMSNormalization", "t g", epsilon=EPS)], False, False, 23),
    "spelled": ([*centred(17), *spelled(17, "d", DIVIDE)], True, True, 17),
    "spelled_18": ([*centred(18), *spelled(18, "d", DIVIDE)], True, True, 18),
    "spelled_tensorflow": ([*centred(17), *spelled(17, "d", TENSORFLOW, node("Mul", "d d", "sq"))], True, True, 17),
    "rms_division": (spelled(17, "t", INVERT), False, False, 17),
    "rms_reciprocal": (spelled(17, "t", RECIPROCAL), False, False, 17),
}


@pytest.mark.parametrize("name", FORMS)
def test_over_the_last_axis(name):
    nodes, centre, shift, opset = FORMS[name]
    weights = AFFINE | CONSTANTS | {"minus": ints(-1)}
    model = sandwich(nodes, weights, opset=opset)
    network, made, twin = halved(model, KEEP)
    assert {g.name: g.size for g in network.groups} == {"first": WIDTH}
    check(model, made, twin, by_hand(AFFINE, centre=centre, shift=shift))
    assert len(made.model.graph.node) == len(model.graph.node)


def test_rms_norm_equals_the_model_with_zeroed_channels():
    model = sandwich([norm("RMSNormalization", "t g", epsilon=EPS)], AFFINE, opset=23)
    _, made, _ = halved(model, KEEP)
    zeroed = onnx.ModelProto()
    zeroed.CopyFrom(model)
    first = next(t for t in zeroed.graph.initializer if t.name == "w1")
    w1 = arrays(model)["w1"].copy()
    w1[:, np.setdiff1d(np.arange(WIDTH), KEEP)] = 0
    first.CopyFrom(onnx.numpy_helper.from_array(w1, "w1"))
    given = feeds(model, 3)
    np.testing.assert_allclose(run(made.model, given)[0], run(zeroed, given)[0], atol=1e-5)


def test_lengths_need_no_mending():
    squares = [node("Mul", "t t", "q"), norm("ReduceSum", "q last", "s"), node("Sqrt", "s", "l"), node("Div", "t l", "n")]
    for nodes in (
        [norm("LpNormalization", "t", axis=-1)],
        [norm("ReduceL2", "t", "l", axes=[-1]), node("Div", "t l", "n")],
        squares,
    ):
        model = sandwich(nodes, {"last": np.array([-1])} if nodes is squares else {})
        _, made, twin = halved(model, KEEP)
        w1, w2 = values(4, WIDTH)[:, KEEP], values(WIDTH, 3, seed=1)[KEEP]
        check(model, made, twin, lambda x, w1=w1, w2=w2: (x @ w1) / np.linalg.norm(x @ w1, axis=-1, keepdims=True) @ w2)


def test_a_mean_that_divides_counts_the_others_alone():
    """The response normalisation of ConvNeXt V2: each channel's length over the mean of all lengths."""
    model = sandwich([node("Abs", "t", "a"), norm("ReduceMean", "a", "l", axes=[-1]), node("Div", "t l", "n")], {})
    _, made, twin = halved(model, KEEP)
    w1, w2 = values(4, WIDTH)[:, KEEP], values(WIDTH, 3, seed=1)[KEEP]
    check(model, made, twin, lambda x: (x @ w1) / np.abs(x @ w1).mean(-1, keepdims=True) @ w2)


def test_what_is_not_mended_stays_pinned():
    bare = [*centred(17), *spelled(17, "d", [node("Sqrt", "s", "std"), node("Div", "d std", "n")])]
    for nodes in (bare, [mean(17, "t", "m"), node("Sub", "t m", "n")], [norm("MeanVarianceNormalization", "t", axes=[2])]):
        copy = sandwich(nodes, CONSTANTS, opset=12 if len(nodes) == 1 else 17)
        assert find(prepare(copy)[0], through_norms=True).groups == ()


def test_a_mean_that_is_none_of_a_norm_stays_pinned():
    added = [mean(17, "t", "m"), node("Add", "t m", "d"), *spelled(17, "d", DIVIDE)]
    elsewhere = [mean(17, "t", "m"), node("Sub", "t m", "d"), *spelled(17, "d", DIVIDE)]
    elsewhere[3] = node("ReduceMean", "sq", "v", name="norm", axes=[1, 2])
    for nodes in (added, elsewhere):
        network = find(prepare(sandwich(nodes, AFFINE | CONSTANTS))[0], through_norms=True)
        assert network.groups == ()
        assert any("reduces these channels to one" in p.reason for p in network.pins if p.tensor == "t")


def test_a_scale_computed_at_run_time_cannot_be_mended():
    gate = [node("ReduceMean", "x", "g", axes=[0, 1], keepdims=0), node("MatMul", "g wg", "gg", name="gate")]
    nodes = [*gate, norm("LayerNormalization", "t gg")]
    network = find(prepare(sandwich(nodes, {"wg": values(4, WIDTH)}))[0], through_norms=True)
    assert network.groups == ()
    assert any("no stored scale to mend" in p.reason for p in network.pins)


def two_norms(second: str) -> onnx.ModelProto:
    """Two streams of 8 with norms that share gamma, and (spelled out) epsilon."""
    nodes = [
        node("MatMul", "x w1", "t", name="first"),
        *spelled(17, "t", RECIPROCAL),
        node("MatMul", "x w3", "t2", name="other"),
        node("Pow", "t2 two", "sq2"),
        node("ReduceMean", "sq2", "v2", axes=[-1]),
        node("Add", "v2 eps", "s2"),
        node("Sqrt", "s2", "std2"),
        node("Div", f"{second} std2", "i2"),
        node("Mul", "t2 i2", "z2"),
        node("Mul", "z2 g", "n2"),
        node("MatMul", "n w2", "y1", name="last"),
        node("MatMul", "n2 w4", "y2", name="last2"),
        node("Add", "y1 y2", "y"),
    ]
    weights = {"w1": values(4, WIDTH), "w3": values(4, WIDTH, seed=3), "w2": values(WIDTH, 3), "w4": values(WIDTH, 3, seed=4)}
    return net(nodes, weights | AFFINE | CONSTANTS, {"x": ["N", 5, 4]})


@pytest.mark.parametrize("share", ["one", "eps"])
def test_shared_parameters_part(share):
    model = two_norms(share)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, _ = prepare(copy)
    network = find(graph, through_norms=True)
    for kept in ({"first": KEEP}, {"first": KEEP, "other": KEEP}, {"first": KEEP, "other": KEEP[:3]}):
        alive = network.alive(kept)
        made = cut(graph, network, alive)
        check(model, made, masked_twin(graph, network, alive))
    assert arrays(graph.model)["eps"] == np.float32(EPS)


def grouped(nodes, weights, *, opset=21) -> onnx.ModelProto:
    """x (N, 4, 6) -> Conv -> a (N, 8, 6) -> nodes -> b -> Conv -> y."""
    own = {"w1": values(WIDTH, 4, 1), "w2": values(3, WIDTH, 1, seed=1)}
    every = [node("Conv", "x w1", "a", name="first"), *nodes, node("Conv", "b w2", "y", name="last")]
    return net(every, own | weights, {"x": ["N", 4, 6]}, opset=opset)


def group_norm(keep, weights, groups: int):
    w1, w2 = values(WIDTH, 4, 1)[keep, :, 0], values(3, WIDTH, 1, seed=1)[:, keep, 0]

    def function(x):
        a = np.einsum("oc,ncl->nol", w1, x)
        parts = []
        for part in np.split(a, groups, axis=1):
            d = part - part.mean((1, 2), keepdims=True)
            size = WIDTH // groups * a.shape[2]
            parts.append(d / np.sqrt((d**2).sum((1, 2), keepdims=True) / size + EPS))
        z = np.concatenate(parts, 1) * weights["g"][keep].reshape(1, -1, 1) + weights["be"][keep].reshape(1, -1, 1)
        return np.einsum("oc,ncl->nol", w2, z)

    return function


def test_group_norm_of_one_group():
    model = grouped([norm("GroupNormalization", "a g be", "b", num_groups=1, epsilon=EPS)], AFFINE)
    network, made, twin = halved(model, KEEP)
    assert {g.name: g.size for g in network.groups} == {"first": WIDTH}
    check(model, made, twin, group_norm(KEEP, AFFINE, 1))


def test_group_norm_within_two_groups():
    model = grouped([norm("GroupNormalization", "a g be", "b", num_groups=2, epsilon=EPS)], AFFINE)
    network, made, twin = halved(model, [0, 1, 3])
    assert {g.name: g.size for g in network.groups} == {"first": 4}  # four channels in each are the finer choice
    check(model, made, twin, group_norm(np.array([0, 1, 3, 4, 5, 7]), AFFINE, 2))


@pytest.mark.parametrize("groups", [1, 2])
def test_group_norm_spelled(groups):
    nodes = [
        node("Reshape", "a to", "r"),
        norm("InstanceNormalization", "r ones zeros", "i", epsilon=EPS),
        node("Shape", "a", "s"),
        node("Reshape", "i s", "u"),
        node("Mul", "u g", "q"),
        node("Add", "q be", "b"),
    ]
    affine = {"g": AFFINE["g"].reshape(-1, 1), "be": AFFINE["be"].reshape(-1, 1)}
    ends = {"to": ints(0, groups, -1), "ones": np.ones(groups, np.float32), "zeros": np.zeros(groups, np.float32)}
    model = grouped(nodes, affine | ends, opset=17)
    keep = [0, 1, 3] if groups == 2 else KEEP
    _, made, twin = halved(model, keep)
    positions = np.array([0, 1, 3, 4, 5, 7]) if groups == 2 else KEEP
    check(model, made, twin, group_norm(positions, AFFINE, groups))


def test_nothing_changes_where_nothing_goes():
    model = sandwich([FUSED], AFFINE)
    _, made, twin = halved(model, np.arange(WIDTH))
    for same in (made.model, twin):
        assert same.SerializeToString() == model.SerializeToString()


def test_half_precision():
    model = sandwich([FUSED], AFFINE)
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    for port in [*half.graph.input, *half.graph.output]:
        port.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    _, made, twin = halved(half, KEEP)
    given = feeds(half, 2)
    np.testing.assert_allclose(run(made.model, given)[0], run(twin, given)[0], atol=2e-2)


def test_scale_behind_an_unsqueeze():
    nodes = [node("Unsqueeze", "g front", "gw"), *spelled(17, "t", [*RECIPROCAL[:3], node("Mul", "z gw", "n")])]
    model = sandwich(nodes, AFFINE | CONSTANTS | {"front": ints(0)})
    _, made, twin = halved(model, KEEP)
    check(model, made, twin, by_hand(AFFINE, centre=False, shift=False))


def test_old_models_list_their_copies():
    model = two_norms("one")
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    _, made, _ = halved(model, KEEP)
    assert {t.name for t in made.model.graph.initializer} <= {i.name for i in made.model.graph.input}
