"""Latency of two models, taken in turns so that a machine that slows down or speeds up meanwhile does so for both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import onnx

from onnxprune.devices import Device
from onnxprune.figures import LatencyFigures
from onnxprune.runtime import Session
from onnxprune.validation.deviation import Array, Runnable

LEAST_ROUNDS = 5


def measure_latency(
    original: Runnable,
    pruned: Runnable,
    feeds: Mapping[str, Array],
    *,
    threads: int = 1,
    runs: int = 50,
    seconds: float = 10.0,
    warm_up: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyFigures:
    """Median and 90th percentile of both, in ms, over `runs` rounds or what fits into `seconds`, but at least 5 rounds.

    A round runs each model once; the order swaps from round to round, because the first of a pair finds colder caches.
    `threads` is what the sessions were made with; it is stated, not set.
    """
    models = (original, pruned)
    for _ in range(warm_up):
        for model in models:
            model.run(feeds)
    times: tuple[list[float], list[float]] = ([], [])
    begin = clock()
    for round_number in range(max(runs, LEAST_ROUNDS)):
        if round_number >= LEAST_ROUNDS and clock() - begin > seconds:
            break
        for which in (0, 1) if round_number % 2 == 0 else (1, 0):
            start = clock()
            models[which].run(feeds)
            times[which].append(1000 * (clock() - start))
    first, second = (float(np.median(t)) for t in times)
    return LatencyFigures(
        threads=threads,
        runs=len(times[0]),
        batch=_batch(feeds),
        original_ms=first,
        pruned_ms=second,
        original_p90_ms=float(np.percentile(times[0], 90)),
        pruned_p90_ms=float(np.percentile(times[1], 90)),
        # A clock too coarse to see the pruned model run says nothing about its speed.
        speedup=first / second if second > 0 else 1.0,
    )


def time_models(
    original: onnx.ModelProto,
    pruned: onnx.ModelProto,
    feeds: Mapping[str, Array],
    *,
    device: Device,
    threads: int = 1,
    seconds: float = 6.0,
) -> LatencyFigures:
    """`measure_latency` of two models, each in a session of its own with `threads` threads."""
    sessions = [Session(model, device, threads=threads, spinning=True) for model in (original, pruned)]
    try:
        return measure_latency(sessions[0], sessions[1], feeds, threads=threads, seconds=seconds)
    finally:
        for session in sessions:
            session.free()


def _batch(feeds: Mapping[str, Array]) -> int:
    first = next(iter(feeds.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1
