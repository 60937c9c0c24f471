"""A channel method on synthetic views of a group, and through the pipeline on a tiny network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from onnxprune.contract import Activation, ChannelMethod, ChannelPlan, ChannelView, Maker, Reader, Statistic, check_scores
from onnxprune.errors import UsageError
from onnxprune.pipeline import PruneResult, prune
from onnxprune.testing.nets import as_bytes, check_finite, stored, tiny_network

Steps = list[tuple[str, ChannelView]]


def check_channel_method(cls: type[ChannelMethod], **options: Any) -> None:
    """See check_method."""
    method = cls(**options)
    for name, view in _views(cls.needs):
        _check_view(method, view, name)
    for name, view in _views(()):
        _check_view(method, view, f"{name}, no data seen")
    _check_nan(method)
    _check_pipeline(cls, options)


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
        widths = {m.layer: 2 if kind.rows == "channels" else 18 for m in made}
        widths |= {r.layer: inputs * (1 if kind.rows == "channels" else 9) for r in read}
        for layer, width in widths.items():
            counted[layer, kind] = kind()
            for _ in range(2):
                rows = torch.randn((40, width), generator=rng).relu()
                counted[layer, kind].add(rows[:, None] if kind.rows == "grouped" else rows)
    return ChannelView("group", channels, made, read, activation, counted)


def _check_view(method: ChannelMethod, view: ChannelView, name: str) -> None:
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


def _check_nan(method: ChannelMethod) -> None:
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


def _check_pipeline(cls: type[ChannelMethod], options: dict[str, Any]) -> None:
    name, model = cls.name, tiny_network()
    before = as_bytes(model)

    def run(ratio: float, repair: str) -> PruneResult:
        return prune(
            model, name, ratio, options=options, repair=repair, samples=24, batch=4, align=1, budget="uniform", device="cpu",
            latency=False, seed=3,
        )  # fmt: skip

    for repair in ("none", "least-squares"):
        same = stored(run(0.0, repair).model)
        assert same == stored(model), f"{name}: a ratio of 0 changes the weights (repair {repair})"
        first, second = run(0.5, repair), run(0.5, repair)
        assert as_bytes(first.model) == as_bytes(second.model), f"{name}: the same seed gives two models (repair {repair})"
        check_finite(name, first.model, repair)
        groups = [g for g in first.report["groups"] if cls.target == "channel" or g["kind"] == cls.target]
        assert groups
        for group in groups:
            assert group["kept"] == group["channels"] // 2, f"{name}: {group['kept']} of {group['channels']} kept at ratio 0.5"
    assert as_bytes(model) == before, f"{name}: the input model was changed"
