"""A channel method on synthetic views of a group, and through the pipeline on a tiny network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from onnxprune.contract import Activation, ChannelMethod, ChannelPlan, ChannelView, Maker, Reader, Statistic, check_scores
from onnxprune.errors import UsageError
from onnxprune.pipeline import PruneResult
from onnxprune.testing.runs import check_pipeline

Steps = list[tuple[str, ChannelView]]


def check_channel_method(cls: type[ChannelMethod], **options: Any) -> None:
    """See check_method."""
    method = cls(**options)
    for name, view in _views(method, cls.needs):
        _check_view(method, view, name)
    for name, view in _views(method, ()):
        _check_view(method, view, f"{name}, no data seen")
    _check_nan(method)
    check_pipeline(cls, options, lambda result: _check_counts(result, cls.target), align=1)


def _views(method: ChannelMethod, needs: tuple[type[Statistic], ...]) -> Steps:
    """(what is special about it, view): everything that a method may meet."""
    return [
        ("one maker, one reader, Relu", _view(method, 8, Activation("Relu"), needs)),
        ("a residual group of three makers and two readers", _view(method, 12, Activation(), needs, makers=3, readers=2)),
        ("a bounded activation", _view(method, 8, Activation("Clip", (0.0, 6.0)), needs)),
        ("channels at two positions of a wider input", _view(method, 6, Activation("Sigmoid"), needs, spread=2)),
        ("all channels alike", _view(method, 8, Activation("Relu"), needs, value=0.5)),
        ("a dead layer", _view(method, 8, Activation("Relu"), needs, value=0.0)),
        ("two channels", _view(method, 2, Activation("Tanh"), needs)),
    ]


def _view(
    method: ChannelMethod, channels: int, activation: Activation, needs: tuple[type[Statistic], ...], *, makers: int = 1,
    readers: int = 1, spread: int = 1, value: float | None = None,
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
        patches = kind.rows != "channels"
        widths = {m.layer: 18 if patches else 2 for m in made} | {r.layer: inputs * (9 if patches else 1) for r in read}
        matrices = {m.layer: m.weight[None] for m in made}
        matrices |= {r.layer: r.columns.reshape(inputs, 5, 9).transpose(0, 1).reshape(1, 5, -1) for r in read}
        for layer, width in widths.items():
            counted[layer, kind] = method.counter(kind, matrices[layer] if kind.weighs else None)
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
    view = _view(method, 8, Activation("Relu"), method.needs)
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


def _check_counts(result: PruneResult, target: str) -> None:
    """Half of the channels of every group that may lose some are gone."""
    name, groups = result.report["method"], [g for g in result.report["groups"] if target == "channel" or g["kind"] == target]
    assert groups
    for group in groups:
        assert group["kept"] == group["channels"] // 2, f"{name}: {group['kept']} of {group['channels']} kept at ratio 0.5"
