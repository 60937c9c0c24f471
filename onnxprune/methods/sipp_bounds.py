"""What SiPP's layer-wise bounds say of a whole network (Theorem 13): sign complexity, condition numbers, and their sum.

    ||f^(x) - f(x)|| <= sum_l kappa_l Delta_l eps_l ||f(x)||

    eps_l     largest eps_det or eps_rand of the layer's rows
    Delta_l   = max_x (||Z++|| + ||Z+-|| + ||Z-+|| + ||Z--||) / ||Z||    Z^(st): sums over weights of sign s, inputs of sign t
    kappa_l   = max_x prod_{k > l} ||W_k||_op * ||Z_l(x)|| / ||f(x)||

Departures from the paper: operator norms instead of Frobenius norms of the filters, which do not bound those of a convolution
(a k x k kernel may exceed them by k); W^- in Z^(--), which it prints as W^+. A norm ||W||_op here is the spectral norm of the
matrix times sqrt(kernel positions), since no input is read more often: an upper bound for every stride and padding.

Supposed, and not checked: the layers form a chain in the order of the model, what lies between them makes no distance larger
(ReLU, max pooling), all layers with weights are among them, and norms over sampled output positions stand for all. Residual
branches break the first: there the sum runs over one path only.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, prod, sqrt
from typing import Any, Self

import torch
from torch import Tensor

from onnxprune.contract import LayerPlan, LayerView, Statistic
from onnxprune.methods.sensitivity import PATCHES

# Rows or columns up to which a spectral norm is computed; of larger matrices sqrt(||W||_1 ||W||_inf), which is no smaller.
LARGEST = 2048


class Signs(Statistic):
    """Per sample: `norms` ||Z|| of the layer's sums (no bias), root mean square over the positions seen, and `complexity`,
    the norms of its four quadrants as a multiple of it.
    """

    rows = "grouped"
    weighs = True
    by_sample = True

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        self.norms: list[float] = []
        self.complexity = 1.0

    def add(self, rows: Tensor) -> None:
        if not len(rows):
            return
        inputs = rows.float().transpose(0, 1)
        weights = self._matrix.float().transpose(1, 2)
        sides = [inputs] if bool((inputs >= 0).all()) else [inputs.clamp(min=0), (-inputs).clamp(min=0)]
        signed = [side @ weights for side in sides]
        whole = [side @ weights.abs() for side in sides]
        # |W| = W+ + W- and W = W+ - W-.
        quadrants = [(w + s * z).clamp(min=0) / 2 for z, w in zip(signed, whole, strict=True) for s in (1, -1)]
        norm = float(torch.linalg.vector_norm(signed[0] - signed[1] if len(signed) > 1 else signed[0]))
        self.norms.append(norm / sqrt(len(rows)))
        if norm > 0:
            self.complexity = max(self.complexity, sum(float(torch.linalg.vector_norm(q)) for q in quadrants) / norm)

    def merge(self, other: Self) -> None:
        self.norms += other.norms
        self.complexity = max(self.complexity, other.complexity)

    def wanted(self, inputs: int) -> int | None:
        return None

    def places(self) -> int | None:
        return PATCHES


def operator_norm(view: LayerView) -> float:
    """No less than the largest ||W * x|| / ||x|| of the layer, whatever its stride and padding."""
    largest = 0.0
    for matrix in view.matrix.double():
        if min(matrix.shape) <= LARGEST:
            square = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
            norm = sqrt(max(float(torch.linalg.eigvalsh(square)[-1]), 0.0))
        else:
            norm = sqrt(float(matrix.abs().sum(0).max() * matrix.abs().sum(1).max()))
        largest = max(largest, norm)
    return largest * sqrt(view.kernel)


def layer_facts(view: LayerView, plan: LayerPlan) -> dict[str, Any]:
    """What network_facts needs of one layer: small numbers, and one per sample."""
    signs = view.statistics.get(Signs)
    after = LayerView(view.name, plan.weights(view), view.bias, view.kernel)
    facts: dict[str, Any] = {
        "error": plan.error,
        "outputs": view.positions * view.matrix.shape[0] * view.matrix.shape[1],
        "row": view.matrix.shape[2],
        # Reweighed weights may have a larger norm than those they stand for.
        "operator_norm": max(operator_norm(view), operator_norm(after)),
    }
    if isinstance(signs, Signs):
        facts |= {"sign_complexity": signs.complexity, "norms": [n * sqrt(view.positions) for n in signs.norms]}
    return facts


def condition_number(later: list[float], norms: list[float], outputs: list[float]) -> float:
    """kappa_l: the largest over the samples; infinite where an output is zero."""
    amplified = prod(later)
    return max((amplified * n / o if o > 0 else float("inf") for n, o in zip(norms, outputs, strict=True)), default=0.0)


def compression_bound(layers: list[tuple[float, float, float]]) -> float:
    """Theorem 13: relative error of the network from (kappa, Delta, eps) of its layers."""
    return sum(kappa * complexity * eps for kappa, complexity, eps in layers)


def network_facts(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """For the report: layers with eps, Delta and kappa, the network's bound (None: cannot be told), and a sentence."""
    names = list(layers)
    last = layers[names[-1]].get("norms")
    rows: list[dict[str, Any]] = []
    parts: list[tuple[float, float, float]] = []
    for i, name in enumerate(names):
        facts = layers[name]
        row: dict[str, Any] = {"name": name} | {
            k: facts.get(k) for k in ("error", "sign_complexity", "operator_norm", "condition")
        }
        norms = facts.get("norms")
        if norms and last and len(norms) == len(last):
            row["condition"] = condition_number([layers[n]["operator_norm"] for n in names[i + 1 :]], norms, last)
        rows.append(row)
        part = row["condition"], row["sign_complexity"], row["error"]
        parts += [part] if all(value is not None and isfinite(value) for value in part) else []
    network = compression_bound(parts) if len(parts) == len(rows) else None
    errors = [row["error"] for row in rows if row["error"] is not None]
    worst = f"largest relative error of a layer {max(errors):.2g}" if errors else "no bound with a pattern"
    whole = f"of the network {network:.2g}, if its layers form a chain" if network is not None else "of the network not known"
    return {"summary": f"SiPP bounds, before any refit: {worst}, {whole}", "network": network, "layers": rows}
