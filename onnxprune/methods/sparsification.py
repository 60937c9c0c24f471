"""Matrix sparsification by sampling entries: the competitors of the coreset paper ("L1, L2 and their combination").

L1     Achlioptas, Karnin, Liberty: "Near-Optimal Entrywise Sampling for Data Matrices" (NIPS 2013)
L2     Drineas, Zouzias: "A Note on Element-wise Matrix Sparsification via a Matrix-valued Bernstein Inequality" (2011)
L1+L2  Kundu, Drineas: "A Note on Randomized Element-wise Matrix Sparsification" (2014)

Each draws entries of A with replacement and adds A_ij / (s p_ij) for every draw of (i, j); s is the number of draws, so that the
expected sum is A.

    A       the layer's matrix, rows of all groups below one another        view.matrix (groups * out, in)
    p_ij    probability of entry (i, j); the methods differ in it alone     adds up to 1 over each cell

Departures from the papers:
* they fix s; here draws go on until the wanted number m of distinct entries is reached, by exponential clocks (algorithms.md
  1.3). s is the (real) time at which entry m + 1 would be drawn, which is left out again: so the sum stays exactly unbiased,
  which it is not when s counts the draws up to entry m;
* a cell in which entries compete is the layer; with --budget row a row and with --pattern a block. A cell of which all non-zero
  entries may stay keeps them as they are.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from onnxprune.contract import LayerPlan, LayerView, Option, Quota, WeightMethod, method
from onnxprune.errors import UsageError
from onnxprune.methods.coreset import clocks

# Halvings of the interval that holds the Bernstein rule's zeta: to the last digit of a double.
HALVINGS = 100
# Expected hits above which a Poisson number is as good as its mean.
COUNTABLE = 1e12


def sample(probabilities: Tensor, keep: Tensor, rng: torch.Generator) -> Tensor:
    """(cells, entries) factors n / (s p), zero for what was not drawn, once keep[c] distinct entries of cell c were.

    Draws come at rate 1, those of an entry at rate p: it is first hit at an exponential time, further hits are Poisson.
    """
    times = clocks(probabilities.flatten(), rng).reshape(probabilities.shape)
    place = torch.argsort(torch.argsort(times, dim=1, stable=True), dim=1, stable=True)
    drawn = (place < keep[:, None]) & torch.isfinite(times)
    ends = torch.cat([times.sort(dim=1).values, torch.full_like(times[:, :1], torch.inf)], 1).gather(1, keep[:, None])
    whole = torch.isinf(ends)
    waiting = torch.where(drawn & ~whole, ends - times, 0.0)
    expected = (probabilities * waiting).cpu()
    # torch counts in 64 bits; of so many hits nobody notices the last digits.
    counted = torch.poisson(expected.clamp(max=COUNTABLE), generator=rng)
    hits = 1 + torch.where(expected > COUNTABLE, expected, counted).to(times.device)
    factors = torch.where(whole, 1.0, hits / (probabilities * ends).clamp(min=1e-300))
    return torch.where(drawn, factors, 0.0)


class _Sparsifier(WeightMethod):
    """Sampling and reweighing; subclasses say with which probabilities."""

    target = "weight"
    scope = "layer"

    @abstractmethod
    def probabilities(self, matrix: Tensor, draws: int) -> Tensor:
        """(rows, entries) >= 0 for a matrix in float64, up to a common factor; draws: about how many there will be."""

    def score(self, view: LayerView) -> Tensor:
        """What a budget compares between layers; the draws are left to `decide`."""
        return view.matrix.abs()

    def decide(self, view: LayerView, scores: Tensor, quota: Quota, rng: torch.Generator) -> LayerPlan:
        weights = view.matrix.double().flatten(0, 1)
        chances = self.probabilities(weights, max(quota.keep, 1)).reshape(view.matrix.shape)
        cells, keep = _cells(chances, quota, view.kernel)
        total = cells.sum(1, keepdim=True)
        factors = sample(cells / torch.where(total > 0, total, 1.0), keep, rng)
        whole = _whole(factors, view, quota)
        drawn = whole != 0
        unchanged = bool((whole[drawn] == 1).all())
        return LayerPlan(drawn, None if unchanged else (view.matrix.double() * whole).to(view.matrix))


def _cells(values: Tensor, quota: Quota, kernel: int) -> tuple[Tensor, Tensor]:
    """(cells, entries that compete in them), and how many stay in each."""
    if quota.pattern is not None:
        n, m = quota.pattern
        cells = values.reshape(*values.shape[:2], -1, m, kernel).transpose(3, 4).reshape(-1, m)
        return cells, torch.full((len(cells),), n, device=values.device)
    if quota.rows is not None:
        return values.flatten(0, 1), quota.rows.flatten().to(values.device)
    return values.reshape(1, -1), torch.tensor([quota.keep], device=values.device)


def _whole(cells: Tensor, view: LayerView, quota: Quota) -> Tensor:
    """(groups, out, in): the inverse of _cells."""
    groups, out, _ = view.matrix.shape
    if quota.pattern is None:
        return cells.reshape(view.matrix.shape)
    return cells.reshape(groups, out, -1, view.kernel, quota.pattern[1]).transpose(3, 4).reshape(view.matrix.shape)


@method
class SparsifyL1(_Sparsifier):
    """p_ij = rho_i |A_ij| / ||A_i||_1, rho by the Bernstein rule: plain L1 for few draws, rows by squared L1 norm for many.

    rho_i(z) = (a_i / 2z + sqrt((a_i / 2z)^2 + b_i / z))^2 with a_i = ||A_i||_1 sqrt(L / s), b_i = ||A_i||_1 L / 3s and
    L = log((rows + entries) / delta); z is such that they add up to 1 (Algorithm 1 of Achlioptas et al.). s is taken to be the
    number of entries that stay: it is not known before the draws are made.
    """

    name = "sparsify-l1"
    paper = "Achlioptas, Karnin, Liberty, Near-Optimal Entrywise Sampling for Data Matrices (NIPS 2013)"
    options: ClassVar[dict[str, Option]] = {"delta": Option(0.1, "probability with which its bound may fail (delta)")}

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if not 0 < self.values["delta"] < 1:
            raise UsageError(f"delta is {self.values['delta']}", "it is a probability: give a number between 0 and 1")

    def probabilities(self, matrix: Tensor, draws: int) -> Tensor:
        norms = matrix.abs().sum(1)
        shares = self.row_shares(norms, matrix.shape[1], draws)
        per_norm: Tensor = torch.where(norms > 0, shares / norms.clamp(min=1e-300), 0.0)
        return matrix.abs() * per_norm[:, None]

    def row_shares(self, norms: Tensor, inputs: int, draws: int) -> Tensor:
        """rho, up to rounding; zeta by bisection, of norms of which the largest is 1."""
        unit = norms / norms.max().clamp(min=1e-300)
        log = torch.log(torch.tensor((len(norms) + inputs) / self.values["delta"], dtype=torch.float64))
        alpha, beta = float(torch.sqrt(log / draws)), float(log / (3 * draws))
        low, high = -60.0, 60.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if float(_rho(unit, alpha, beta, middle).sum()) > 1 else (low, middle)
        return _rho(unit, alpha, beta, high)


def _rho(norms: Tensor, alpha: float, beta: float, log_zeta: float) -> Tensor:
    zeta = 10.0**log_zeta
    half = alpha * norms / (2 * zeta)
    return torch.square(half + torch.sqrt(half**2 + beta * norms / zeta))


@method
class SparsifyL2(_Sparsifier):
    """p_ij = A_ij^2 / ||A||_F^2, entries with |A_ij| < epsilon / (2 n) set to zero first, n = max(rows, entries).

    The paper ties epsilon to the draws, s = 28 n ln(sqrt(2) n) ||A||_F^2 / epsilon^2. At the shares that people keep this would
    rule out more entries than the draws can choose from, so epsilon is an option here, and nothing is ruled out by default.
    """

    name = "sparsify-l2"
    paper = "Drineas, Zouzias, A Note on Element-wise Matrix Sparsification (2011)"
    may_keep_fewer = True
    options: ClassVar[dict[str, Option]] = {
        "epsilon": Option(0.0, "error allowed, as a share of ||A||_F: entries below epsilon / (2 n) go first")
    }

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if not self.values["epsilon"] >= 0:
            raise UsageError(f"epsilon is {self.values['epsilon']}", "it is an error: give a number from 0")

    def probabilities(self, matrix: Tensor, draws: int) -> Tensor:
        bar = self.values["epsilon"] * torch.linalg.vector_norm(matrix) / (2 * max(matrix.shape))
        return torch.where(matrix.abs() < bar, 0.0, matrix**2)


@method
class SparsifyL1L2(_Sparsifier):
    """p_ij = alpha A_ij^2 / ||A||_F^2 + (1 - alpha) |A_ij| / ||A||_1."""

    name = "sparsify-l1l2"
    paper = "Kundu, Drineas, A Note on Randomized Element-wise Matrix Sparsification (2014)"
    options: ClassVar[dict[str, Option]] = {"alpha": Option(0.5, "share of the squares in the mixture (alpha), from 0 to 1")}

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if not 0 <= self.values["alpha"] <= 1:
            raise UsageError(f"alpha is {self.values['alpha']}", "it is a share: give a number from 0 to 1")

    def probabilities(self, matrix: Tensor, draws: int) -> Tensor:
        alpha, size = float(self.values["alpha"]), matrix.abs()
        squares = size**2 / (size**2).sum().clamp(min=1e-300)
        mixed: Tensor = alpha * squares + (1 - alpha) * size / size.sum().clamp(min=1e-300)
        return mixed
