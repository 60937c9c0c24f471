"""Latency on a clock that the test moves: order of the runs, budget, medians."""

import numpy as np
import pytest

from onnxprune.validation.latency import measure_latency

FEEDS = {"x": np.zeros((4, 3))}


class Bench:
    """Two models that take fixed times on a clock of their own."""

    def __init__(self, first=0.010, second=0.004):
        self.now = 0.0
        self.log = []
        self.models = [self.model("A", first), self.model("B", second)]

    def model(self, name, duration):
        bench = self

        class Model:
            def run(self, feeds, outputs=None):
                bench.log.append(name)
                bench.now += duration() if callable(duration) else duration
                return {}

        return Model()

    def measure(self, **options):
        return measure_latency(*self.models, FEEDS, clock=lambda: self.now, **options)


def test_medians_percentiles_and_speedup():
    times = iter([1.0] * 3 + [0.010] * 8 + [0.020] * 2)
    found = Bench(first=lambda: next(times)).measure(runs=10, threads=2)
    assert found["original_ms"] == pytest.approx(10)
    assert found["original_p90_ms"] == pytest.approx(20)
    assert found["pruned_ms"] == pytest.approx(4)
    assert found["speedup"] == pytest.approx(2.5)
    assert (found["threads"], found["runs"], found["batch"]) == (2, 10, 4)


def test_order_swaps_from_round_to_round_after_warm_up():
    bench = Bench()
    bench.measure(runs=5, warm_up=2)
    assert "".join(bench.log) == "ABAB" + "AB" + "BA" + "AB" + "BA" + "AB"


def test_budget_ends_the_rounds_but_not_before_five():
    assert Bench(first=1.0, second=1.0).measure(runs=100, seconds=0.5)["runs"] == 5
    assert Bench(first=1.0, second=1.0).measure(runs=100, seconds=15)["runs"] == 8
    assert Bench().measure(runs=1)["runs"] == 5


def test_a_clock_too_coarse_claims_no_speed():
    assert Bench(first=0.0, second=0.0).measure()["speedup"] == 1
