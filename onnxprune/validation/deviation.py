"""How far the pruned model's outputs are from the original's, counted over a stream of batches in constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import ProofError
from onnxprune.figures import Deviation

Array = NDArray[Any]


class Runnable(Protocol):
    """What measuring needs of a runtime.Session."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]: ...


class Listener(Protocol):
    """What else wants to see both models' outputs on the way: accuracy.AccuracyMeter."""

    def add(self, original: Mapping[str, Array], pruned: Mapping[str, Array]) -> None: ...


def class_axis(shape: tuple[int, ...]) -> int | None:
    """The axis that holds one score per class: axis 1 of (N, C) and of (N, C, H, W ...), the last of (N, positions, C)."""
    if len(shape) < 2:
        return None
    return 2 if len(shape) == 3 else 1


class DeviationMeter:
    """Counts one output; `result` may be asked for at any time. All sums are float64.

    What is not finite never looks good:
      the pruned output is not finite where the original's is    ProofError, the pruned model is broken; of two models that are
                                                                  only compared it is `broken` positions, and figures undefined
      the original is not finite, or the two shapes differ        every figure but `top1_agreement` is undefined: NaN here (null
      (data-dependent sizes), or nothing was measured             in the JSON) or None, and a gate on it fails
      the same infinity in both                                   no difference: infinite masks are legitimate outputs
    A class vector with a NaN in either output counts as disagreement.

    `relative_l2` is ||pruned - original|| / ||original||; 1 where the original is all zero and the pruned is not.
    `cosine` is None where either is all zero, `snr_db` where the noise or the signal is zero (JSON knows no infinity; with
    `max_abs` 0 the gates read them as perfect), `top1_agreement` for integers and where there are not at least two classes.
    """

    def __init__(self, name: str = "output", *, strict: bool = True) -> None:
        self.name, self.strict = name, strict
        self.broken = 0
        self.count = 0
        self.undefined = False
        self.max_abs = self.sum_abs = self.sum_noise = 0.0
        self.sum_original = self.sum_pruned = self.sum_product = 0.0
        self.votes = self.agreed = 0

    def add(self, original: Array, pruned: Array) -> None:
        if original.shape != pruned.shape:
            self.undefined = True
            return
        a, b = original.astype(np.float64), pruned.astype(np.float64)
        self._look_for_new_infinities(a, b)
        if not np.issubdtype(original.dtype, np.integer) and original.dtype != np.bool_:
            self._vote(a, b)
        if not np.isfinite(a).all():
            shared = np.isinf(a) & (a == b)
            self.undefined |= not bool((np.isfinite(a) | shared).all())
            a[shared] = b[shared] = 0.0
        self._sum(a.ravel(), b.ravel())

    def _look_for_new_infinities(self, a: Array, b: Array) -> None:
        broken = int((np.isfinite(a) & ~np.isfinite(b)).sum())
        self.broken += broken
        self.undefined |= broken > 0
        if broken and self.strict:
            raise ProofError(
                f"output {self.name!r} of the pruned model is not finite at {broken} positions where the original's is",
                "the pruned model is not usable; try another --repair, or report this with the model",
            )

    def _vote(self, a: Array, b: Array) -> None:
        axis = class_axis(a.shape)
        if axis is None or a.shape[axis] < 2:
            return
        defined = ~(np.isnan(a).any(axis) | np.isnan(b).any(axis))
        self.votes += defined.size
        self.agreed += int(((a.argmax(axis) == b.argmax(axis)) & defined).sum())

    def _sum(self, a: Array, b: Array) -> None:
        if not a.size or self.undefined:
            return
        noise = b - a
        self.count += a.size
        self.max_abs = max(self.max_abs, float(np.abs(noise).max()))
        self.sum_abs += float(np.abs(noise).sum())
        self.sum_noise += float(noise @ noise)
        self.sum_original += float(a @ a)
        self.sum_pruned += float(b @ b)
        self.sum_product += float(a @ b)

    def result(self) -> Deviation:
        agreement = self.agreed / self.votes if self.votes else None
        if self.undefined or not self.count:
            nan = math.nan
            return Deviation(max_abs=nan, mean_abs=nan, relative_l2=nan, cosine=None, snr_db=None, top1_agreement=agreement)
        signal, noise = self.sum_original, self.sum_noise
        norms = math.sqrt(signal) * math.sqrt(self.sum_pruned)
        return Deviation(
            max_abs=self.max_abs,
            mean_abs=self.sum_abs / self.count,
            relative_l2=math.sqrt(noise / signal) if signal else float(noise > 0),
            # Rounding may carry the cosine of equal vectors past 1.
            cosine=max(-1.0, min(1.0, self.sum_product / norms)) if norms else None,
            snr_db=10 * math.log10(signal / noise) if signal and noise else None,
            top1_agreement=agreement,
        )


def measure(
    original: Runnable, pruned: Runnable, batches: Iterable[Mapping[str, Array]], accuracy: Listener | None = None, *,
    told: list[str] | None = None,
) -> dict[str, Deviation]:  # fmt: skip
    """Run both models over the batches: output name -> deviation. `accuracy` is fed on the way, from the first output that fits.

    told   where warnings go of outputs that are no numbers where the original's are; None: that is a ProofError

    Outputs that are no arrays of numbers (strings, sequences, maps) are left out.
    """
    meters: dict[str, DeviationMeter] = {}
    for feeds in batches:
        expected, got = original.run(feeds), pruned.run(feeds)
        for name, value in expected.items():
            if _numeric(value):
                meters.setdefault(name, DeviationMeter(name, strict=told is None)).add(value, got[name])
        if accuracy is not None:
            accuracy.add(expected, got)
    if told is not None:
        what = "the second model gives NaN or infinity where the first does not, at"
        told += [f"{what} {m.broken:,} positions of output {name!r}" for name, m in meters.items() if m.broken]
    return {name: meter.result() for name, meter in meters.items()}


def _numeric(value: object) -> bool:
    # bfloat16 and float8 arrive as ml_dtypes arrays, which numpy files under kind V.
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiubV"
