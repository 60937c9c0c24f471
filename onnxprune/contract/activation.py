"""SEE: the elementwise functions between a layer and those that read it, and how large they can get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """phi, the function between a layer and those that read it; `bounds` are the limits of a Clip, the slope of a LeakyRelu ...

    A name that is not known counts as the identity, whose supremum is an upper bound for every 1-Lipschitz phi with phi(0) = 0.
    """

    name: str = "identity"
    bounds: tuple[float, ...] = ()

    HOMOGENEOUS: ClassVar[frozenset[str]] = frozenset({"identity", "Relu", "LeakyRelu", "PRelu", "Abs"})
    NEVER_NEGATIVE: ClassVar[frozenset[str]] = frozenset(
        {"Relu", "Abs", "Sigmoid", "HardSigmoid", "Softplus", "Binary", "SoftClip", "Gaussian"}
    )

    @property
    def homogeneous(self) -> bool:
        """Whether phi(c r) = c phi(r) for c > 0: then a common factor of all arguments cancels out of every ranking."""
        return self.name in self.HOMOGENEOUS

    @property
    def never_negative(self) -> bool:
        """Whether phi >= 0 everywhere, as the coreset papers suppose: then errors of both signs cannot add up."""
        return self.name in self.NEVER_NEGATIVE or (self.name == "Clip" and self.bounds[0] >= 0)

    def supremum(self, radius: Tensor) -> Tensor:
        """sup |phi(z)| over |z| <= radius, elementwise (coresets, Table I: phi(beta * ||p||) for a non-decreasing phi >= 0).

        Binary (z >= 0), SoftClip and Gaussian (exp(-z^2); the paper prints exp(-z)) are the table's, and no operators of ONNX.
        Silu, Gelu and HardSwish dip below zero first: max(phi(r), -phi(-r)), with -min phi once r has passed the dip.
        """
        r = radius
        match self.name:
            case "Clip":
                low, high = self.bounds
                return torch.maximum(r.clamp(max=high).abs(), (-r).clamp(min=low).abs())
            case "Sigmoid":
                return torch.sigmoid(r)
            case "HardSigmoid":
                alpha, beta = self.bounds
                return (alpha * r + beta).clamp(0, 1)
            case "Binary" | "Gaussian":
                return torch.ones_like(r)
            case "SoftClip":
                (alpha,) = self.bounds
                softplus = torch.nn.functional.softplus
                return (softplus(alpha * r) - softplus(alpha * (r - 1))) / alpha
            case "Tanh":
                return torch.tanh(r)
            case "Softplus":
                return torch.nn.functional.softplus(r)
            case "Elu":
                return torch.maximum(r, self.bounds[0] * (1 - torch.exp(-r)))
            case "LeakyRelu" | "PRelu":
                return r * max([1.0, *(abs(b) for b in self.bounds)])
            case "HardSwish":
                return _dipping(torch.nn.functional.hardswish, 1.5, r)
            case "Gelu":
                return _dipping(torch.nn.functional.gelu, 0.7517916, r)
            case "Silu":
                return _dipping(torch.nn.functional.silu, 1.2784645, r)
            case _:
                return r


def _dipping(phi: Callable[[Tensor], Tensor], lowest: float, r: Tensor) -> Tensor:
    """sup |phi| on [-r, r] of a function that rises to the right of its only minimum, at -lowest."""
    return torch.maximum(phi(r), -phi(-r.clamp(max=lowest)))
