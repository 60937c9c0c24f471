"""SEE and DECIDE for methods that make one layer into two thin ones. Tensors only; a method never sees ONNX.

RankView      a layer as a matrix, and whether its bias may change
Factors       the two matrices that take its place
RankMethod    energies -> (budget) -> factor
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxprune.contract.method import Method, check_tensor
from onnxprune.contract.weights import LayerView
from onnxprune.errors import OnnxpruneError, UsageError


@dataclass(frozen=True)
class RankView(LayerView):
    """As LayerView, of one group: matrix (1, out, in). free_bias: all layers that read it have a place for a bias."""

    free_bias: bool = True

    @property
    def full(self) -> int:
        """The largest rank there is."""
        return min(self.matrix.shape[1:])


@dataclass(frozen=True)
class Factors:
    """y = second @ (first @ x) + bias + shift.

    first    (rank, in)
    second   (out, rank)
    shift    (out,) what the bias gains; None: it stays as it is
    """

    first: Tensor
    second: Tensor
    shift: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """(1, out, in): what both do together."""
        return (self.second @ self.first)[None]

    def check(self, view: RankView, rank: int) -> None:
        """Raise where the factors are not what was asked for: our own methods and those of third parties are held to it alike."""
        _, out, inputs = view.matrix.shape
        if self.first.shape != (rank, inputs) or self.second.shape != (out, rank):
            got = f"{tuple(self.first.shape)} and {tuple(self.second.shape)}"
            raise OnnxpruneError(
                f"factors of {view.name!r} are {got} where ({rank}, {inputs}) and ({out}, {rank}) were asked for"
            )
        parts = [self.first, self.second] + ([] if self.shift is None else [self.shift])
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise OnnxpruneError(f"factors of {view.name!r} are not finite")
        if self.shift is not None and (self.shift.shape != (out,) or not view.free_bias):
            raise OnnxpruneError(f"factors of {view.name!r} shift a bias that is not there or not of its length")


class RankMethod(Method):
    """Makes one layer into two thin ones. Set the class variables, write `energies` and `factor`."""

    @abstractmethod
    def energies(self, view: RankView) -> Tensor:
        """(full,) >= 0, never rising: at rank r the squared error is what stands from position r on; compared between layers
        after division by their sum.
        """

    @abstractmethod
    def factor(self, view: RankView, rank: int) -> Factors:
        """The layer at this rank, 1 <= rank <= view.full; at full rank the function stays as it was."""


def check_energies(method: RankMethod, view: RankView, energies: Tensor) -> Tensor:
    """The energies, or an error there and then."""
    check_tensor(method, "energies", view.name, energies)
    if not bool(torch.isfinite(energies).all()):
        raise UsageError(
            f"{method.name} gives non-finite energies for {view.name!r}", "its weights or inputs hold NaN or infinity"
        )
    if energies.shape != (view.full,) or bool((energies < 0).any()) or bool((energies.diff() > 0).any()):
        raise OnnxpruneError(f"{method.name} gave energies for {view.name!r} that rise, are negative, or are not {view.full}")
    return energies
