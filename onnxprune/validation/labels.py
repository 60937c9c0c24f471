"""Which labels must stay when every logit may move by so much, and how much they may move for a wanted share of labels.

Lemma 4.1 of "When Are Neural Pruning Approximation Bounds Useful?" (ICLR 2021 submission): with j the largest logit and j' the
second, arg max f^ = arg max f if eps is below the margin,

    additive         |f^_i - f_i| <= eps                (f_j - f_j') / 2
    multiplicative   |f^_i - f_i| <= eps |f_i|          (f_j - f_j') / (|f_j| + |f_j'|)
    scaled           |f^_i - f_i| <= eps d_i            min over i of (f_j - f_i) / (d_j + d_i)

The third is the first two in one (d = 1 and d = |f|) and serves bounds that are relative to something else than the logit: those
of Baykal et al. hold for the positive and the negative part of a sum apart, d_i = sum_k |w_ik| |x_k|, which exceeds |f_i| as soon
as the parts cancel. Departure: the lemma says <=, where a tie may still flip the label; here it is <.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError

Floats = NDArray[np.float64]


def additive_margins(logits: NDArray[np.floating]) -> Floats:
    """(n, classes) -> (n,): half the distance between the two largest logits."""
    return scaled_margins(logits, np.ones_like(logits))


def multiplicative_margins(logits: NDArray[np.floating]) -> Floats:
    """(n, classes) -> (n,): the distance between the two largest logits, relative to the sum of their sizes."""
    return scaled_margins(logits, np.abs(logits))


def scaled_margins(logits: NDArray[np.floating], scale: NDArray[np.floating]) -> Floats:
    """(n, classes), d of the same shape >= 0 -> (n,): the eps from which on a label may flip.

    Infinite where no logit can move: that label always stays. A tie of the two largest logits has the margin 0.
    """
    f, d = np.asarray(logits, np.float64), np.asarray(scale, np.float64)
    rows, top = np.arange(len(f)), f.argmax(1)
    gaps = f[rows, top][:, None] - f
    reach = d[rows, top][:, None] + d
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(gaps > 0, np.where(reach > 0, gaps / reach, np.inf), 0.0)
    ratios[rows, top] = np.inf
    return np.asarray(ratios.min(1))


def guaranteed_share(margins: Floats, epsilon: float) -> float:
    """The share of labels that no change within the bound can flip."""
    return float((epsilon < margins).mean()) if len(margins) else 0.0


def required_epsilon(margins: Floats, share: float) -> float:
    """The largest eps with which the wanted share of labels is guaranteed to stay.

    Raises UsageError where even the smallest change may flip more: their two best classes are tied.
    """
    if not 0 < share <= 1:
        raise UsageError(f"a share of {share:g} labels", "give more than 0 and at most 1, such as 0.95")
    if not len(margins):
        raise UsageError("no sample tells how far the classes are apart", "give --data")
    count = max(1, int(np.ceil(share * len(margins) - 1e-9)))
    smallest = float(np.sort(margins)[::-1][count - 1])
    if smallest <= 0:
        stay = float((margins > 0).mean())
        raise UsageError(
            f"{share:g} of the labels cannot be guaranteed: the two best classes are tied in too many samples",
            f"ask for at most {stay:.4g}",
        )
    return float(np.nextafter(smallest, 0.0))
