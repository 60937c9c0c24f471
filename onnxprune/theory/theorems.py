"""Theorems 1 to 3 of Qian and Klabjan, "A Probabilistic Approach to Neural Network Pruning" (ICML 2021), as numbers.

F(x) = W_l s(W_{l-1} s(... s(W_1 x))), no biases, the first and the last layer unpruned, ||x|| <= 1 (Theorem 3: x in [0, 1]).

    l, d_k, d    layers, their widths, the smallest hidden width          Chain.depth, .widths, .width
    D_k          weights of layer k; floor(D_k^(1 - alpha)) of them go    pruned(D_k, alpha)
    N_k, c_0     bounds on ||W_k||_2, the largest of them                 Chain.norms
    L            product of the activations' Lipschitz constants          Chain.lipschitz
    K, K1, K2    |w| <= K / sqrt(m), E w^2 <= K1 / m, E w^4 <= K2 / m^2, m = max(d_k, d_{k-1})
    C            the constant of Latala's inequality (Lemma 4)            LATALA

Departures:
* conditions (3) and (4) of Theorem 2 need + log log d, as Theorem 3 has it, for floor(D^(1 - alpha)) >= d log d;
* Lemma 5 is no valid Chernoff bound. The valid one, (e^2 / 27)^mu, gives Lemma 6 the failure probability n^-0.2958, not n^(-1/3);
* norms are measured, not assumed to hold with a probability, unless `doubts` says with which;
* Theorem 3 claims P(||W_l|| <= p^-beta1) >= 1 - C5 / p^(1 - beta1). That does not follow from the moments
  (a row's squares add up to C1, not C1 / p^2); the measured norm of the last layer takes its place, and the term with C5 is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, floor, inf, log, prod, sqrt

# For uniform weights and d -> infinity: ||A|| -> 2 against 1 + 1 + (9/5)^(1/4). The paper's Table 3 has 0.54 ... 0.627.
LATALA = 0.6333
# Lemma 6 with a valid Chernoff bound: n (e^2 / 27)^(log n).
LOADS = log(27) - 3


@dataclass(frozen=True)
class Chain:
    """A fully connected network as the theorems see it. widths: d_0 ... d_l; norms: N_1 ... N_l; doubts: delta_1 ... delta_l."""

    widths: Sequence[int]
    norms: Sequence[float]
    lipschitz: float = 1.0
    k: float = 0.0
    k1: float = 0.0
    k2: float = 0.0
    doubts: Sequence[float] = ()

    @property
    def depth(self) -> int:
        return len(self.widths) - 1

    @property
    def width(self) -> int:
        return min(self.widths[1:-1], default=0)


@dataclass(frozen=True)
class Promise:
    """What a theorem says at one alpha: the error over the unit ball, with which probability; `outside`: why it says nothing."""

    alpha: float
    error: float
    confidence: float
    outside: tuple[str, ...] = ()


def pruned(units: int, alpha: float) -> int:
    """floor(D^(1 - alpha)); a power that is a whole number stays one."""
    return floor(exp(log(units) * (1 - alpha)) + 1e-9)


def pruned_kernels(channels: int, alpha: float) -> int:
    """floor(d^(2 - alpha)) of the d^2 2-D filters."""
    return floor(exp(log(channels) * (2 - alpha)) + 1e-9)


def alpha_of(ratio: float, units: int) -> float:
    """The alpha at which a share `ratio` of D units goes."""
    return -log(ratio) / log(units)


def most_alpha(d_out: int, d_in: int) -> float:
    """Conditions (3) and (4): beyond it fewer than d log d draws are made, and rows may be hit unevenly (Lemma 6)."""
    return min(1 - (log(d + 1) + log(max(log(d), 1e-9))) / (log(d_out) + log(d_in)) for d in (d_out, d_in))


def _outside(chain: Chain) -> list[str]:
    found = []
    if chain.depth < 3:
        found.append(f"{chain.depth} layers, fewer than 3")
    elif chain.width < max(chain.widths[0], chain.widths[-1]):
        ends = max(chain.widths[0], chain.widths[-1])
        found.append(f"the smallest hidden width, {chain.width}, is less than that of the input or output, {ends}")
    return found


def magnitude(chain: Chain, alpha: float, latala: float = LATALA) -> Promise:
    """Theorem 1: the smallest floor(D_k^(1 - alpha)) weights of each inner layer go, weights i.i.d. uniform on +-K / sqrt(m).

    error (2^(l-2) - 1) d^-alpha L c0^(l-1) with probability (1 - t) (1 - (l-2) c2 d^-alpha - (l+1)(l-2) t / 2), where
    c2 = C K (2 sqrt 2 + 24^(1/4)) and t = 2 exp(-4 delta0 d) is the largest of `doubts`.
    """
    outside = _outside(chain)
    if outside:
        return Promise(alpha, inf, 0.0, tuple(outside))
    depth, small, c0 = chain.depth, chain.width**-alpha, max(chain.norms)
    doubt = max(chain.doubts, default=0.0)
    c2 = latala * chain.k * (2 * sqrt(2) + 24**0.25)
    confidence = (1 - doubt) * (1 - (depth - 2) * c2 * small - (depth + 1) * (depth - 2) * doubt / 2)
    if small > c0:
        outside.append(f"d^-alpha = {small:.3g} is more than c0 = {c0:.3g}")
    return _promise(alpha, (2 ** (depth - 2) - 1) * small * chain.lipschitz * c0 ** (depth - 1), confidence, outside)


def random(chain: Chain, alpha: float, latala: float = LATALA) -> Promise:
    """Theorem 2: floor(D_k^(1 - alpha)) draws with replacement set weights of each inner layer to zero.

    error (2^(l-2) - 1) d^(-alpha/4) L N_1 ... N_l (N_k >= 1) with probability
    (1 - d^-0.2958)^(2(l-2)) (1 - delta_l) (1 - (l-2) c2 d^(-alpha/4) - sum (l-i) delta_i), c2 = C (2 sqrt(3 K1) + K2^(1/4)).
    """
    outside = _outside(chain)
    if outside:
        return Promise(alpha, inf, 0.0, tuple(outside))
    depth, small = chain.depth, chain.width ** (-alpha / 4)
    norms = [max(1.0, n) for n in chain.norms]
    doubts = list(chain.doubts) or [0.0] * depth
    c2 = latala * (2 * sqrt(3 * chain.k1) + chain.k2**0.25)
    even = max(0.0, 1 - chain.width**-LOADS) ** (2 * (depth - 2))
    rest = 1 - (depth - 2) * c2 * small - sum((depth - i) * doubts[i - 1] for i in range(1, depth))
    limit = min(most_alpha(chain.widths[k], chain.widths[k - 1]) for k in range(2, depth))
    if alpha > limit:
        outside.append(f"alpha is more than {limit:.4f}: too few draws to fall evenly on rows and columns")
    error = (2 ** (depth - 2) - 1) * small * chain.lipschitz * prod(norms)
    return _promise(alpha, error, even * (1 - doubts[-1]) * max(rest, 0.0), outside)


@dataclass(frozen=True)
class Maps:
    """A convolutional network as Theorem 3 sees it: every hidden layer d channels on p x p positions, kernels q x q, stride 1.

    c1, c2      E w^2 <= C1 / (p^2 d), E w^4 <= C2 / (p^4 d^2)
    last        the measured norm of the last, fully connected layer
    """

    depth: int
    channels: int
    side: int
    kernel: int
    input_side: int
    c1: float
    c2: float
    last: float
    lipschitz: float = 1.0


def kernels(maps: Maps, alpha: float, beta1: float, beta2: float, latala: float = LATALA) -> Promise:
    """Theorem 3: floor(d^(2 - alpha)) draws of 2-D filters set them to zero; the input lies in the unit cube.

    error ||W_l|| L^(l-1) p0 sqrt(d) (p^-b1 (p^-b1 + d^-b2)^(l-2) - p^(-(l-1) b1)) with probability (1 - d^-0.2958)^(2(l-2))
    (1 - (l-2) C4 (q^2/p) d^(b2 - alpha/4) - (l^2-l-2)/2 C3 q^2 / p^(1-b1)), C3 = C (2 sqrt C1 + C2^(1/4)),
    C4 = C (2 sqrt(3 C1) + C2^(1/4)).
    """
    d, p, depth = maps.channels, float(maps.side), maps.depth
    c3, c4 = (latala * (2 * sqrt(n * maps.c1) + maps.c2**0.25) for n in (1, 3))
    step, near = p**-beta1, d**-beta2
    error = maps.last * maps.lipschitz * maps.input_side * sqrt(d) * (step * (step + near) ** (depth - 2) - step ** (depth - 1))
    even = max(0.0, 1 - d**-LOADS) ** (2 * (depth - 2))
    gone = (depth - 2) * c4 * maps.kernel**2 / p * d ** (beta2 - alpha / 4)
    whole = (depth**2 - depth - 2) / 2 * c3 * maps.kernel**2 / p ** (1 - beta1)
    outside = [f"{depth} layers, fewer than 3"] if depth < 3 else []
    limit = most_kernel_alpha(d)
    if alpha > limit:
        outside.append(f"alpha is more than {limit:.4f}: too few draws to fall evenly on rows and columns")
    return _promise(alpha, error, even * max(0.0, 1 - gone - whole), outside)


def most_kernel_alpha(channels: int) -> float:
    """2 - (log(d + 1) + log log d) / log d."""
    return 2 - (log(channels + 1) + log(max(log(channels), 1e-9))) / log(channels) if channels > 1 else -inf


def best_kernels(maps: Maps, alpha: float, delta: float, latala: float = LATALA) -> Promise:
    """Theorem 3 with those of a grid of beta1 and beta2 that give the smallest error with probability 1 - delta, else the most
    probable ones.
    """
    shares = [n / 40 for n in range(1, 40)]
    found = [kernels(maps, alpha, b1, b2 * alpha / 4, latala) for b1 in shares for b2 in shares]
    sure = [p for p in found if p.confidence >= 1 - delta and not p.outside]
    return min(sure, key=lambda p: p.error) if sure else max(found, key=lambda p: p.confidence)


def _promise(alpha: float, error: float, confidence: float, outside: list[str]) -> Promise:
    if confidence <= 0:
        outside.append("it holds with no positive probability")
    return Promise(alpha, error, max(confidence, 0.0), tuple(outside))


Theorem = Callable[[float], Promise]
ChainTheorem = Callable[[Chain, float], Promise]
WidthFormula = Callable[[Chain, float, float, float], float]


def least_alpha(theorem: Theorem, epsilon: float, delta: float, most: float = 1.0) -> float | None:
    """The smallest alpha, that is the most pruning, with error <= epsilon and probability >= 1 - delta; None if there is none.

    Both get better as alpha grows, up to `most`.
    """

    def holds(alpha: float) -> bool:
        found = theorem(alpha)
        return not found.outside and found.error <= epsilon and found.confidence >= 1 - delta

    if most <= 0 or not holds(most):
        return None
    low, high = 0.0, most
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def magnitude_width(chain: Chain, alpha: float, epsilon: float, delta: float, latala: float = LATALA) -> float:
    """The d that Theorem 1 asks for, (33) to (35) with measured norms; infinity beyond what a float holds."""
    depth, c0 = chain.depth, max(chain.norms)
    c2 = latala * chain.k * (2 * sqrt(2) + 24**0.25)
    needs = (1 / c0, (2 ** (depth - 2) - 1) * chain.lipschitz * c0 ** (depth - 1) / epsilon, (depth**2 - 2) * c2 / delta)
    return _power(max(needs), 1 / alpha)


def random_width(chain: Chain, alpha: float, epsilon: float, delta: float, latala: float = LATALA) -> float:
    """The d that Theorem 2 asks for, (25) to (27) with measured norms and the exponent of Lemma 6 as it is valid."""
    depth = chain.depth
    c2 = latala * (2 * sqrt(3 * chain.k1) + chain.k2**0.25)
    size = (2 ** (depth - 2) - 1) * chain.lipschitz * prod(max(1.0, n) for n in chain.norms)
    return max(_power(max(size / epsilon, 3 * c2 * (depth - 2) / delta), 4 / alpha), _power(3 * (depth - 2) / delta, 1 / LOADS))


def _power(base: float, exponent: float) -> float:
    power = log(base) * exponent if base > 0 else -inf
    return exp(power) if power < 700 else inf


@dataclass(frozen=True)
class Reach:
    """Of an activation, over all inputs in the ball: its norm in the original, and how far that of the pruned network may be."""

    size: float
    error: float


@dataclass(frozen=True)
class Norms:
    """Of a layer: ||W||, ||W^|| and ||W - W^|| or bounds on them, W^ the pruned weights."""

    full: float
    pruned: float
    gone: float


def through(reach: Reach, norms: Norms, bias: float = 0.0) -> Reach:
    """One layer of the recursion that always holds: e <- ||W^|| e + ||W - W^|| y, y <- ||W|| y (+ the norm of the bias)."""
    return Reach(norms.full * reach.size + bias, norms.pruned * reach.error + norms.gone * reach.size)
