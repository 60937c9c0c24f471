"""What Qian and Klabjan print: Tables 1, 2 and 3 of "A Probabilistic Approach to Neural Network Pruning"."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

# Layer, mean and variance of its weights: 54-1024-1024-1024-1024-1024-7, trained on Covertype.
TABLE1 = (
    (1, -0.0309, 0.0155), (2, -0.0215, 0.0035), (3, -0.0078, 0.0022), (4, -0.0119, 0.0019), (5, -0.0092, 0.0016),
    (6, -0.0275, 0.0057),
)  # fmt: skip
# q at which c0 is given, and draws behind the tables.
QUANTILES = (0.95, 0.99, 0.999, 0.9999)
DRAWS2, DRAWS3 = 1000, 500

# n1 n2 K (s: sqrt 3), mean and standard deviation of ||B||_2, c0 at each q.
_TABLE2 = """
32 32 1 1.087 0.038 1.15 1.183 1.206 1.218
32 32 s 1.882 0.066 1.996 2.044 2.069 2.131
32 64 1 0.941 0.027 0.988 1.015 1.039 1.042
32 64 s 1.631 0.046 1.707 1.743 1.786 1.797
32 128 1 0.836 0.018 0.867 0.878 0.895 0.902
32 128 s 1.449 0.032 1.503 1.528 1.577 1.579
32 256 1 0.762 0.013 0.784 0.794 0.806 0.811
32 256 s 1.319 0.022 1.357 1.371 1.39 1.393
32 512 1 0.708 0.009 0.723 0.731 0.74 0.747
32 512 s 1.226 0.016 1.253 1.267 1.278 1.283
64 64 1 1.114 0.026 1.158 1.183 1.205 1.209
64 64 s 1.932 0.045 2.009 2.045 2.07 2.086
64 128 1 0.959 0.018 0.992 1.005 1.04 1.054
64 128 s 1.66 0.031 1.711 1.743 1.782 1.785
64 256 1 0.848 0.012 0.868 0.88 0.887 0.888
64 256 s 1.47 0.021 1.508 1.523 1.53 1.554
64 512 1 0.77 0.008 0.785 0.792 0.796 0.801
64 512 s 1.333 0.015 1.359 1.371 1.388 1.392
128 128 1 1.131 0.017 1.159 1.173 1.199 1.205
128 128 s 1.956 0.029 2.008 2.024 2.044 2.045
128 256 1 0.969 0.012 0.99 0.999 1.012 1.013
128 256 s 1.679 0.019 1.712 1.728 1.743 1.746
128 512 1 0.856 0.008 0.87 0.875 0.881 0.885
128 512 s 1.482 0.014 1.507 1.52 1.527 1.528
256 256 1 1.14 0.011 1.16 1.17 1.18 1.181
256 256 s 1.976 0.021 2.01 2.027 2.036 2.036
256 512 1 0.976 0.008 0.989 0.995 1.002 1.014
256 512 s 1.691 0.013 1.714 1.727 1.735 1.735
512 512 1 1.146 0.007 1.159 1.163 1.172 1.174
512 512 s 1.985 0.012 2.006 2.015 2.033 2.04
"""
# d, distribution (u: uniform of variance 1/d, 1 and 3: Gaussian of variance 1/d and 3/d), alpha (-: nothing is set to zero), the
# three terms of Lemma 4, E ||A||_2 and the smallest C.
_TABLE3 = """
32 u - 1.006 1.006 1.159 1.888 0.596
64 u - 1.006 1.005 1.159 1.934 0.61
128 u - 1.005 1.005 1.159 1.958 0.618
256 u - 1.004 1.003 1.158 1.976 0.624
512 u - 1.003 1.002 1.158 1.985 0.627
32 1 - 1.011 1.014 1.314 1.905 0.571
64 1 - 1.008 1.008 1.315 1.947 0.585
128 1 - 1.005 1.007 1.316 1.965 0.59
256 1 - 1.005 1.006 1.316 1.979 0.595
512 1 - 1.004 1.004 1.316 1.988 0.598
32 3 - 1.751 1.745 2.279 3.295 0.571
64 3 - 1.755 1.744 2.28 3.361 0.582
128 3 - 1.742 1.743 2.28 3.405 0.591
256 3 - 1.743 1.742 2.28 3.428 0.595
512 3 - 1.74 1.739 2.279 3.441 0.598
32 1 0.01 0.626 0.63 1.033 1.237 0.54
64 1 0.01 0.632 0.629 1.035 1.239 0.54
128 1 0.01 0.63 0.63 1.037 1.242 0.541
256 1 0.01 0.63 0.63 1.039 1.246 0.542
32 1 0.1 0.714 0.713 1.103 1.379 0.545
64 1 0.1 0.729 0.729 1.117 1.426 0.554
128 1 0.1 0.744 0.744 1.129 1.459 0.558
256 1 0.1 0.758 0.756 1.14 1.491 0.562
32 1 0.5 0.928 0.925 1.258 1.759 0.565
64 1 0.5 0.95 0.948 1.275 1.831 0.577
128 1 0.5 0.964 0.964 1.288 1.883 0.586
256 1 0.5 0.975 0.974 1.296 1.92 0.592
"""


@dataclass(frozen=True)
class Norm:
    """A row of Table 2: of n1 x n2 matrices with entries uniform on +-K / sqrt(max(n1, n2))."""

    n1: int
    n2: int
    k: float
    mean: float
    deviation: float
    c0: tuple[float, ...]


@dataclass(frozen=True)
class Constant:
    """A row of Table 3: of d x d matrices. terms: of rows, of columns, of fourth moments; alpha None: nothing is set to zero."""

    d: int
    drawn: str
    alpha: float | None
    terms: tuple[float, ...]
    norm: float
    c: float


def _norm(line: str) -> Norm:
    n1, n2, k, mean, deviation, *c0 = line.split()
    return Norm(int(n1), int(n2), sqrt(3) if k == "s" else 1.0, float(mean), float(deviation), tuple(map(float, c0)))


def _constant(line: str) -> Constant:
    d, drawn, alpha, rows, columns, fourth, norm, c = line.split()
    terms = (float(rows), float(columns), float(fourth))
    return Constant(int(d), drawn, None if alpha == "-" else float(alpha), terms, float(norm), float(c))


TABLE2 = tuple(map(_norm, _TABLE2.strip().splitlines()))
TABLE3 = tuple(map(_constant, _TABLE3.strip().splitlines()))
