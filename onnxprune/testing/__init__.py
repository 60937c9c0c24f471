"""Contract tests that anybody may run over a method or an operator of their own.

    check_method(MyMethod)        one method: on synthetic views, and through the pipeline on a tiny network
    check_rule(model)             the rules of the operators in one model: removing channels equals setting them to zero

Both raise AssertionError (or the error of onnxprune.errors that was met) where a promise is broken, and are silent otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx

from onnxprune.calibration.samples import open_samples
from onnxprune.contract import METHODS, ChannelMethod, Method, RankMethod, WeightMethod
from onnxprune.devices import choose_device
from onnxprune.errors import NothingToPruneError
from onnxprune.graph import find, load
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.prove import check_valid, prove
from onnxprune.testing.channels import check_channel_method
from onnxprune.testing.nets import as_bytes, tiny_network
from onnxprune.testing.ranks import check_rank_method
from onnxprune.testing.weights import check_weight_method

__all__ = ["check_method", "check_rule", "tiny_network"]


def check_method(cls: type[Method], **options: Any) -> None:
    """Hold a method to the contract of onnxprune.contract; `options` are the method's own.

    On views: scores of the right shape, finite, and the same when asked again; every count is met exactly, ties and dead channels
    included; one seed gives one plan; NaN weights are refused (or make no difference); nothing of the view is written to. Through
    the pipeline: a ratio of 0 leaves every weight as it was, the same seed gives the same bytes, counts and weights are as asked
    and finite, and the input model is not touched.
    """
    assert cls.name == cls.name.lower().strip(), f"{cls.name!r}: write names in lower case"
    assert cls.name.endswith(f"-{cls.target}") or cls.target in ("weight", "rank"), f"{cls.name!r} should end in -{cls.target}"
    assert cls.paper, f"{cls.name}: say where it comes from (paper)"
    with _registered(cls):
        if issubclass(cls, ChannelMethod):
            check_channel_method(cls, **options)
        elif issubclass(cls, WeightMethod):
            check_weight_method(cls, **options)
        elif issubclass(cls, RankMethod):
            check_rank_method(cls, **options)
        else:
            raise AssertionError(f"{cls.name}: a method is a ChannelMethod, a WeightMethod or a RankMethod")


def check_rule(model: onnx.ModelProto, ratio: float = 0.5, seed: int = 0) -> float:
    """removed == zeroed on ONNX Runtime, for every group of channels alone and for all together; the model is not touched.

    Channels go at random, the share `ratio` of each group, at least one and never all. Returns the largest difference relative
    to the largest output value. Raises ProofError where the two differ or the result is no valid model, and
    NothingToPruneError where no channel of the model can be removed.
    """
    before = as_bytes(model)
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
    assert as_bytes(model) == before, "the input model was changed"
    return worst


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
