"""Contract tests that anybody may run over a method or an operator of their own.

    check_method(MyMethod)        one method: on synthetic views of a group, and through the pipeline on a tiny network
    check_rule(model)             the rules of the operators in one model: removing channels equals setting them to zero

Both raise AssertionError (or the error of onnxprune.errors that was met) where a promise is broken, and are silent otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from onnxprune.calibration.samples import open_samples
from onnxprune.contract import (
    METHODS,
    Activation,
    ChannelPlan,
    ChannelView,
    Maker,
    Method,
    Reader,
    Statistic,
    Target,
    check_scores,
)
from onnxprune.devices import choose_device
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.graph import find, load
from onnxprune.pipeline import PruneResult, prune
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.prove import check_valid, prove

Steps = list[tuple[str, ChannelView]]


def check_method(cls: type[Method], **options: Any) -> None:
    """Hold a method to the contract of onnxprune.contract; `options` are the method's own.

    On views: scores of the right shape, finite, and the same when asked again; the ranking is a permutation; every count is
    met exactly, ties and dead channels included; one seed gives one plan; NaN weights are refused (or make no difference);
    nothing of the view is written to. Through the pipeline: a ratio of 0 leaves every weight as it was, the same seed gives the
    same bytes, counts and weights are as asked and finite, and the input model is not touched.
    """
    assert cls.name == cls.name.lower().strip(), f"{cls.name!r}: write names in lower case"
    assert cls.name.endswith(f"-{cls.target}") or cls.target == "weight", f"{cls.name!r} should end in -{cls.target}, what goes"
    assert cls.paper, f"{cls.name}: say where it comes from (paper)"
    method = cls(**options)
    for name, view in _views(cls.needs):
        _check_view(method, view, name)
    for name, view in _views(()):
        _check_view(method, view, f"{name}, no data seen")
    _check_nan(method)
    with _registered(cls):
        _check_pipeline(cls.name, cls.target, options)


def check_rule(model: onnx.ModelProto, ratio: float = 0.5, seed: int = 0) -> float:
    """removed == zeroed on ONNX Runtime, for every group of channels alone and for all together; the model is not touched.

    Channels go at random, the share `ratio` of each group, at least one and never all. Returns the largest difference relative
    to the largest output value. Raises ProofError where the two differ or the result is no valid model, and
    NothingToPruneError where no channel of the model can be removed.
    """
    before = model.SerializeToString(deterministic=True)
    graph, samples = open_samples(
        load(model), None, None, samples=4, held_out=0.5, seed=seed, input_shapes=None, mean=None, std=None, layout="auto"
    )
    network = find(graph)
    device, rng = choose_device("cpu"), np.random.default_rng(seed)
    kept = {}
    for group in network.groups:
        count = min(group.size - 1, max(1, round(group.size * (1 - ratio))))
        if count:
            kept[group.name] = np.sort(rng.permutation(group.size)[:count]).astype(np.int64)
    if not kept:
        pins = "; ".join(f"{pin.tensor!r}: {pin.reason}" for pin in network.pins[:3])
        raise NothingToPruneError(f"no channel of this model can be removed ({pins or 'no layer with constant weights'})")
    worst = 0.0
    for part in [kept, *({name: keep} for name, keep in kept.items())]:
        alive = network.alive(part)
        made = cut(graph, network, alive)
        worst = max(worst, prove(graph, network, alive, made.model, samples.few(2), device))
        check_valid(made.model, graph.model)
    assert model.SerializeToString(deterministic=True) == before, "the input model was changed"
    return worst


# --- synthetic views


def _views(needs: tuple[type[Statistic], ...]) -> Steps:
    """(what is special about it, view): everything that a method may meet."""
    return [
        ("one maker, one reader, Relu", _view(8, Activation("Relu"), needs)),
        ("a residual group of three makers and two readers", _view(12, Activation(), needs, makers=3, readers=2)),
        ("a bounded activation", _view(8, Activation("Clip", (0.0, 6.0)), needs)),
        ("channels at two positions of a wider input", _view(6, Activation("Sigmoid"), needs, spread=2)),
        ("all channels alike", _view(8, Activation("Relu"), needs, value=0.5)),
        ("a dead layer", _view(8, Activation("Relu"), needs, value=0.0)),
        ("two channels", _view(2, Activation("Tanh"), needs)),
    ]


def _view(
    channels: int, activation: Activation, needs: tuple[type[Statistic], ...], *, makers: int = 1, readers: int = 1,
    spread: int = 1, value: float | None = None,
) -> ChannelView:  # fmt: skip
    """Seeded random weights, or all the same `value`; each maker has batch norm behind it."""
    rng = torch.Generator().manual_seed(channels)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng) if value is None else torch.full(shape, value)

    inputs = channels * spread + 3 * (spread - 1)
    where = torch.arange(channels)[:, None] + channels * torch.arange(spread)[None]
    made = tuple(Maker(f"maker{i}", draw(channels, 18), draw(channels), draw(channels).abs()) for i in range(makers))
    read = tuple(Reader(f"reader{i}", draw(inputs, 5 * 9), where) for i in range(readers))
    counted: dict[tuple[str, type[Statistic]], Statistic] = {}
    for kind in needs:
        widths = {m.layer: 18 if kind.rows == "patches" else 2 for m in made}
        widths |= {r.layer: inputs * (9 if kind.rows == "patches" else 1) for r in read}
        for layer, width in widths.items():
            counted[layer, kind] = kind()
            for _ in range(2):
                counted[layer, kind].add(torch.randn((40, width), generator=rng).relu())
    return ChannelView("group", channels, made, read, activation, counted)


def _check_view(method: Method, view: ChannelView, name: str) -> None:
    where = f"{method.name} on {name}"
    before = _numbers(view)
    scores = check_scores(method, view, method.score(view))
    assert torch.equal(scores, method.score(view)), f"{where}: the scores change when asked again; draw in rank, not in score"
    order = method.rank(view, scores, _seeded())
    assert torch.equal(order.sort().values, torch.arange(view.channels)), f"{where}: the ranking is no permutation"
    for keep in range(1, view.channels + 1):
        plan = method.decide(view, scores, method.rank(view, scores, _seeded()), keep, _seeded())
        plan.check(view.channels, keep)
        again = method.decide(view, scores, method.rank(view, scores, _seeded()), keep, _seeded())
        assert _same(plan, again), f"{where}: the same seed gives two plans for {keep} channels"
        if keep == view.channels and plan.scale is not None:
            assert bool((plan.scale == 1).all()), f"{where}: nothing goes, yet weights are scaled"
    assert all(torch.equal(a, b) for a, b in zip(before, _numbers(view), strict=True)), f"{where}: the view was written to"


def _check_nan(method: Method) -> None:
    """NaN in the weights is an error, or the method does not look at the weights at all."""
    view = _view(8, Activation("Relu"), method.needs)
    makers = tuple(replace(m, weight=m.weight * torch.nan, batch_norm_scale=m.bias * torch.nan) for m in view.makers)
    readers = tuple(replace(r, columns=r.columns * torch.nan) for r in view.readers)
    spoilt = replace(view, makers=makers, readers=readers)
    try:
        scores = check_scores(method, spoilt, method.score(spoilt))
    except UsageError:
        return
    assert torch.equal(scores, method.score(view)), f"{method.name}: NaN weights give finite scores"


def _numbers(view: ChannelView) -> list[torch.Tensor]:
    found = [t for m in view.makers for t in (m.weight, m.bias, m.batch_norm_scale) if t is not None]
    return [t.clone() for t in [*found, *(t for r in view.readers for t in (r.columns, r.positions))]]


def _same(a: ChannelPlan, b: ChannelPlan) -> bool:
    if not torch.equal(a.keep, b.keep) or (a.scale is None) != (b.scale is None):
        return False
    return a.scale is None or b.scale is None or torch.equal(a.scale, b.scale)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


# --- through the pipeline


@contextmanager
def _registered(cls: type[Method]) -> Iterator[None]:
    """The class under its name while this lasts, whether it is registered or not."""
    before = METHODS.get(cls.name)
    METHODS[cls.name] = cls
    try:
        yield
    finally:
        if before is None:
            del METHODS[cls.name]
        else:
            METHODS[cls.name] = before


def _check_pipeline(name: str, target: Target, options: dict[str, Any]) -> None:
    if target not in ("channel", "neuron"):
        return
    model = tiny_network()
    before = model.SerializeToString(deterministic=True)

    def run(ratio: float, repair: str) -> PruneResult:
        return prune(
            model, name, ratio, options=options, repair=repair, samples=24, batch=4, align=1, budget="uniform", device="cpu",
            latency=False, seed=3,
        )  # fmt: skip

    for repair in ("none", "least-squares"):
        same = _weights(run(0.0, repair).model)
        assert same == _weights(model), f"{name}: a ratio of 0 changes the weights (repair {repair})"
        first, second = run(0.5, repair), run(0.5, repair)
        assert _bytes(first.model) == _bytes(second.model), f"{name}: the same seed gives two models (repair {repair})"
        for tensor in first.model.graph.initializer:
            finite = np.isfinite(numpy_helper.to_array(tensor)).all()
            assert finite, f"{name}: {tensor.name} is not finite (repair {repair})"
        groups = [g for g in first.report["groups"] if target == "channel" or g["kind"] == target]
        assert groups
        for group in groups:
            assert group["kept"] == group["channels"] // 2, f"{name}: {group['kept']} of {group['channels']} kept at ratio 0.5"
    assert _bytes(model) == before, f"{name}: the input model was changed"


def _bytes(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def _weights(model: onnx.ModelProto) -> dict[str, bytes]:
    return {t.name: numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}


def tiny_network(seed: int = 0) -> onnx.ModelProto:
    """Two convolutions and two fully connected layers, batch norm behind all but the last: (1, 3, 8, 8) -> (1, 5)."""
    rng = np.random.default_rng(seed)
    stored: list[TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(name: str, *shape: int) -> str:
        value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        stored.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def normalise(x: str, number: int, channels: int) -> str:
        values = (rng.uniform(0.5, 1.5, channels), rng.normal(0, 0.1, channels), rng.normal(0, 0.1, channels), np.ones(channels))
        names = [f"bn{number}.{part}" for part in ("weight", "bias", "mean", "var")]
        stored.extend(numpy_helper.from_array(v.astype(np.float32), n) for v, n in zip(values, names, strict=True))
        nodes.append(helper.make_node("BatchNormalization", [x, *names], [f"{x}n"], name=f"bn{number}"))
        nodes.append(helper.make_node("Relu", [f"{x}n"], [f"{x}r"], name=f"relu{number}"))
        return f"{x}r"

    def layer(op: str, x: str, number: int, out: int, *shape: int, **attributes: Any) -> str:
        inputs = [x, weight(f"w{number}", out, *shape)]
        nodes.append(helper.make_node(op, inputs, [f"y{number}"], name=f"layer{number}", **attributes))
        return f"y{number}"

    x = normalise(layer("Conv", "x", 1, 8, 3, 3, 3, pads=[1, 1, 1, 1]), 1, 8)
    x = normalise(layer("Conv", x, 2, 12, 8, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2]), 2, 12)
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
    x = normalise(layer("Gemm", "flat", 3, 16, 12, transB=1), 3, 16)
    layer("Gemm", x, 4, 5, 16, transB=1)
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])
    scores = helper.make_tensor_value_info("y4", TensorProto.FLOAT, ["batch", 5])
    graph = helper.make_graph(nodes, "tiny", [image], [scores], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
