"""What the weights of a layer are like, against what the theorems of Qian and Klabjan assume of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.special import ndtr
from torch import Tensor

BINS = 20
# A sample of n independent values is this far from its distribution, times sqrt(n), in one case of a hundred (Kolmogorov).
KOLMOGOROV = 1.628
# A mean is this many standard errors from zero in one case of a hundred.
NORMAL = 2.576


@dataclass(frozen=True)
class WeightMoments:
    """Moments of the weights of one layer; m = max(inputs, outputs).

    largest     max |w|
    k, k1, k2   the smallest with |w| <= k / sqrt(m), mean w^2 <= k1 / m, mean w^4 <= k2 / m^2
    kurtosis    mean (w - mean)^4 / variance^2: 1.8 if uniform, 3 if Gaussian
    uniform     largest distance between the weights' distribution function and that of U[-largest, largest]
    gaussian    the same with a Gaussian of their mean and variance
    histogram   how many weights in each of 20 equal parts of [-largest, largest]
    """

    weights: int
    largest: float
    mean: float
    variance: float
    k: float
    k1: float
    k2: float
    kurtosis: float
    uniform: float
    gaussian: float
    histogram: tuple[int, ...]

    @property
    def centred(self) -> bool:
        """Whether the mean is one that independent weights of mean zero can have."""
        return abs(self.mean) <= NORMAL * sqrt(self.variance / max(self.weights, 1))

    @property
    def looks_uniform(self) -> bool:
        return self.uniform <= KOLMOGOROV / sqrt(max(self.weights, 1))


def weight_moments(matrix: Tensor, inputs: int, outputs: int) -> WeightMoments:
    """Of all weights of a layer, (groups, out, in) or any other shape."""
    w = np.sort(matrix.double().cpu().numpy().ravel())
    most, widest = float(np.abs(w).max()), max(inputs, outputs)
    mean, variance = float(w.mean()), float(w.var())
    centred = w - mean
    edges = np.linspace(-most, most, BINS + 1) if most else np.linspace(-1, 1, BINS + 1)
    return WeightMoments(
        weights=w.size,
        largest=most,
        mean=mean,
        variance=variance,
        k=most * sqrt(widest),
        k1=float((w**2).mean()) * widest,
        k2=float((w**4).mean()) * widest**2,
        kurtosis=float((centred**4).mean()) / variance**2 if variance else 0.0,
        uniform=_distance((w + most) / (2 * most)) if most else 1.0,
        gaussian=_distance(ndtr(centred / sqrt(variance))) if variance else 1.0,
        histogram=tuple(np.histogram(w, edges)[0].tolist()),
    )


def _distance(expected: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """Kolmogorov and Smirnov: the largest gap between i / n and the distribution function at the i-th smallest value."""
    n = len(expected)
    return float(max((np.arange(1, n + 1) / n - expected).max(), (expected - np.arange(n) / n).max()))
