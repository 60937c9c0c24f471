"""What holds of a method of any kind once it is run: on a tiny network, through the whole pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnxprune.contract import Method
from onnxprune.pipeline import PruneResult, prune
from onnxprune.testing.nets import as_bytes, check_finite, stored, tiny_network


def check_pipeline(cls: type[Method], options: dict[str, Any], look: Callable[[PruneResult], None], **given: Any) -> None:
    """A ratio of 0 changes nothing, the same seed gives the same bytes, values are finite, the input stays as it was.

    look    what a result at ratio 0.5 has to show besides, an AssertionError where it does not
    given   further arguments of `prune`
    """
    name, model = cls.name, tiny_network()
    before = as_bytes(model)

    def run(ratio: float, repair: str) -> PruneResult:
        return prune(
            model, name, ratio, options=options, repair=repair, samples=24, batch=4, budget="uniform", device="cpu",
            latency=False, seed=3, **given,
        )  # fmt: skip

    for repair in ("none", "least-squares"):
        same = stored(run(0.0, repair).model)
        assert same == stored(model), f"{name}: a ratio of 0 changes the weights (repair {repair})"
        first, second = run(0.5, repair), run(0.5, repair)
        assert as_bytes(first.model) == as_bytes(second.model), f"{name}: the same seed gives two models (repair {repair})"
        check_finite(name, first.model, repair)
        look(first)
    assert as_bytes(model) == before, f"{name}: the input model was changed"
