"""SAY: the shape of the JSON report (schema 1), which other programs read. Later versions only add keys."""

from __future__ import annotations

from typing import Any, TypedDict

SCHEMA = 1


class ModelFigures(TypedDict):
    """One of the two models. `macs`: of one run at batch 1; `bytes`: of the file with its external data; `latency_ms`: median.

    `peak_memory_bytes`: most bytes of activations alive at once at batch 1, in node order.
    """

    path: str | None
    sha256: str | None
    bytes: int
    parameters: int
    macs: int
    peak_memory_bytes: int
    latency_ms: float | None


class GroupFigures(TypedDict):
    """One channel group; `layers` are the layers that make or read its channels."""

    name: str
    kind: str
    channels: int
    kept: int
    layers: list[str]


class WeightFigures(TypedDict):
    """One stored matrix; `layers` read it, `zeros` of its `weights` are zero now, `reason` is why it was left alone."""

    name: str
    layers: list[str]
    weights: int
    zeros_before: int
    zeros: int
    reason: str | None


class RankFigures(TypedDict):
    """One stored matrix, and the two that took its place: `rank` (None: it stays whole, `reason` says why).

    `lost`: share of its outputs' variance on the calibration inputs that rank leaves out (of its squared weights where the method
    looked at no inputs), before repair; None for layers that may not become two.
    """

    name: str
    layers: list[str]
    shape: list[int]
    rank: int | None
    parameters_before: int
    parameters: int
    lost: float | None
    reason: str | None


class Sparsity(TypedDict):
    """Zeros among all stored matrices, as shares, and what both files shrink to when compressed by deflate (bytes)."""

    summary: str
    weights: int
    share_asked: float | None
    share_before: float
    share: float
    compressed_bytes_before: int
    compressed_bytes: int


class PinFigures(TypedDict):
    tensor: str
    reason: str
    channels: int


class Deviation(TypedDict):
    """How one output of the pruned model differs from the original's on held-out inputs; None where it is not defined.

    `top1_agreement`: share of positions whose arg max over the last axis (axis 1 of 4-D and 5-D outputs) is the same.
    """

    max_abs: float
    mean_abs: float
    relative_l2: float
    cosine: float | None
    snr_db: float | None
    top1_agreement: float | None


class Accuracy(TypedDict):
    original: float
    pruned: float


class Gate(TypedDict):
    expression: str
    value: float | None
    passed: bool


class LatencyFigures(TypedDict):
    """Interleaved timing of both models. `speedup` = original / pruned, of the medians."""

    threads: int
    runs: int
    batch: int
    original_ms: float
    pruned_ms: float
    original_p90_ms: float
    pruned_p90_ms: float
    speedup: float


class Report(TypedDict):
    """What `--json` writes. `removed`: parameter of the original -> axis -> positions that went, in the original's numbering.

    `removed_by_block`: the same for axes along which the groups of a convolution lost different positions: one list per group.
    `reordered`: of axes whose channels changed places, which positions of the original stand there now, in this order (of an axis
    that the groups of a convolution share: one list per group). All other axes keep their order.
    `weights` and `sparsity`: of methods that set weights to zero. `ranks`: of those that make layers into two thin ones.
    `bounds`: what the method's paper guarantees, where it does.
    `storage`: which weights were written as sparse initializers, where that was asked for.
    """

    schema: int
    tool: dict[str, str]
    method: str
    options: dict[str, Any]
    ratio: float | None
    seed: int
    device: str
    original: ModelFigures
    pruned: ModelFigures
    groups: list[GroupFigures]
    weights: list[WeightFigures]
    ranks: list[RankFigures]
    removed: dict[str, dict[str, list[int]]]
    removed_by_block: dict[str, dict[str, list[list[int]]]]
    reordered: dict[str, dict[str, list[Any]]]
    pinned: list[PinFigures]
    repair: dict[str, Any]
    alignment: dict[str, Any]
    sparsity: Sparsity | None
    storage: dict[str, Any]
    bounds: dict[str, Any]
    latency: LatencyFigures | None
    deviation: dict[str, Deviation]
    accuracy: Accuracy | None
    proof: dict[str, Any]
    data: dict[str, Any]
    gates: list[Gate]
    timings: dict[str, float]
    warnings: list[str]
