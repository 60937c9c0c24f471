"""Low rank by singular values: a layer becomes two thin ones; the baseline "SVD" of the coreset paper.

Denton, Zaremba, Bruna, LeCun, Fergus: "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation"
(NIPS 2014); on data: Zhang, Zou, He, Sun: "Accelerating Very Deep Convolutional Networks" (TPAMI 2016), the linear case.

    W          view.matrix (out, in), rank r: W ~ U_r (U_r^T W), r (out + in) numbers instead of out in
    C          covariance of the layer's inputs (in, in); without data, or data=false, the identity
    U          eigenvectors of W C W^T (out, out), the largest eigenvalue first
    energies   its eigenvalues: squared singular values of W C^(1/2), hence of W itself without data

U_r U_r^T W is the best rank r in mean ||(W - W') x||^2, and no C^(-1/2) is needed: it is the best for W C^(1/2) as well, from the
left. Where the layer has a bias this takes up the mean of what is lost, so that C is centred; else second moments stand for C.

Departures: (1 - s) C + (0.01 + s) mean(diag C) I is used, so that inputs which no sample showed count too (algorithms.md 1.8);
the share s is large where samples are scarce. Convolutions are taken as matrices of (out, in * kernel positions): r filters of
the old size, then one of size 1.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from onnxprune.contract import Factors, Option, RankMethod, RankView, Statistic, method

# Share of the mean variance of the inputs that is added to all of them.
DAMPING = 0.01


class LayerMoments(Statistic):
    """Means and second moments of a layer's inputs, or of what it makes of them where that is narrower; in float64.

    of_outputs     whether `mean` (d) and `second` (d, d) are those of W x
    input_energy   mean over the inputs of their mean square, and of their variance
    """

    rows = "grouped"
    weighs = True

    def __init__(self, matrix: Tensor) -> None:
        _, out, inputs = matrix.shape
        self.of_outputs = out < inputs
        self._matrix = matrix[0] if self.of_outputs else None
        self.count = 0
        self._sum = torch.zeros(min(out, inputs), dtype=torch.float64, device=matrix.device)
        self._products = torch.zeros((len(self._sum), len(self._sum)), dtype=torch.float64, device=matrix.device)
        self._inputs = torch.zeros((2, inputs), dtype=torch.float64, device=matrix.device)

    def add(self, rows: Tensor) -> None:
        x = rows[:, 0].float()
        seen = x if self._matrix is None else x @ self._matrix.T
        self.count += len(x)
        self._sum += seen.sum(0, dtype=torch.float64)
        self._products += seen.T @ seen
        self._inputs += torch.stack([x.sum(0, dtype=torch.float64), (x**2).sum(0, dtype=torch.float64)])

    def merge(self, other: Self) -> None:
        self.count += other.count
        self._sum += other._sum
        self._products += other._products
        self._inputs += other._inputs

    def bytes(self, groups: int, out: int, inputs: int) -> int:
        return 8 * (min(out, inputs) ** 2 + 3 * inputs)

    @property
    def mean(self) -> Tensor:
        return self._sum / max(self.count, 1)

    def second(self, *, centred: bool) -> Tensor:
        found = self._products / max(self.count, 1)
        return found - torch.outer(self.mean, self.mean) if centred else found

    @property
    def scarcity(self) -> float:
        """The oracle-approximating share (Chen, Wiesel, Eldar, Hero 2010): how little few samples are to be believed.

        From as many samples as ranks stay, the others would seem to cost nothing at all.
        """
        plain = self.second(centred=True)
        rank = float(plain.trace() ** 2 / (plain**2).sum().clamp(min=1e-300))
        return min((1 + rank) / ((self.count + 1) * max(1 - rank / len(plain), 1e-3)), 1.0)

    def input_energy(self, *, centred: bool) -> float:
        mean, square = self._inputs / max(self.count, 1)
        return float((square - mean**2 if centred else square).mean().clamp(min=0))


@method
class Svd(RankMethod):
    """The best rank r on calibration inputs; with data=false the paper's, of the weights alone."""

    name = "svd"
    target = "rank"
    paper = "SVD in Mussay et al.; Denton et al. (NIPS 2014), on data Zhang et al. (TPAMI 2016)"
    needs = (LayerMoments,)
    options: ClassVar[dict[str, Option]] = {
        "data": Option(True, "best for the layer's outputs on sample inputs; false: for its weights (the paper's baseline)")
    }

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if not self.values["data"]:
            self.needs = ()  # type: ignore[assignment,misc]  # then no pass over samples is made
        # What was decomposed last under each name: the budget asks for energies of all layers before the first is factored.
        self._known: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def energies(self, view: RankView) -> Tensor:
        return self._decomposed(view)[1]

    def factor(self, view: RankView, rank: int) -> Factors:
        basis = self._decomposed(view)[0][:, :rank]
        weight = view.matrix[0].double()
        shift = None
        if view.free_bias and (seen := self._moments(view)) is not None:
            made = seen.mean if seen.of_outputs else weight @ seen.mean
            shift = made - basis @ (basis.T @ made)
        return Factors(basis.T @ weight, basis, shift)

    def _moments(self, view: RankView) -> LayerMoments | None:
        found = view.statistic(LayerMoments) if self.needs else None
        return found if found is not None and found.count else None

    def _decomposed(self, view: RankView) -> tuple[Tensor, Tensor]:
        """U (out, full) and the energies (full,), in float64."""
        known = self._known.get(view.name)
        if known is None or known[0] is not view.matrix:
            self._known[view.name] = known = (view.matrix, *self._decompose(view))
        return known[1], known[2]

    def _decompose(self, view: RankView) -> tuple[Tensor, Tensor]:
        weight = view.matrix[0].double()
        seen = self._moments(view)
        damping, known = 1.0, None
        if seen is not None:
            share = seen.scarcity
            damping = (DAMPING + share) * seen.input_energy(centred=view.free_bias) or 1.0
            known = (1 - share) * seen.second(centred=view.free_bias)
        if weight.shape[0] < weight.shape[1]:
            values, basis = _eigen(damping * (weight @ weight.T) + (0 if known is None else known))
            return basis, values
        unit = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        root = _root(damping * unit + (0 if known is None else known))
        turned = weight @ root
        values, vectors = _eigen(turned.T @ turned)
        # Orthonormal to the last digit also where energies vanish; each column spans with those before it what it did.
        return torch.linalg.qr(turned @ vectors).Q, values


def _eigen(square: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the largest first, none below zero, and eigenvectors."""
    if not bool(torch.isfinite(square).all()):
        return torch.full_like(square[0], torch.nan), square
    values, vectors = torch.linalg.eigh((square + square.T) / 2)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def _root(square: Tensor) -> Tensor:
    """A square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = _eigen(square)
    return vectors * values.sqrt()
