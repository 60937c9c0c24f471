"""Slow and obvious references of second-order pruning, for tiny layers: exhaustive search, exact brain surgery."""

from __future__ import annotations

from itertools import combinations

import torch

from onnxprune.contract import Gram, LayerView

SHARE = 0.01


def layer(out=3, inputs=8, rows=200, seed=0, groups=1, kernel=1, widest=8192):
    """A view with correlated inputs, seen by a Gram."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn((inputs, inputs), generator=rng)
    gram = Gram(widest=widest)
    gram.add((torch.randn((rows, groups, inputs), generator=rng) @ mixing).relu())
    matrix = torch.randn((groups, out, inputs), generator=rng)
    return LayerView("layer", matrix, torch.zeros(groups, out), kernel, statistics={Gram: gram})


def damped(view):
    """H (groups, in, in) with its ridge, in float64."""
    gram = view.statistic(Gram)
    h = gram.products / gram.count
    mean = h.diagonal(dim1=1, dim2=2).mean(1)
    return h + SHARE * mean[:, None, None] * torch.eye(h.shape[1])


def fitted(h, row, support):
    """(loss, weights) of a row refitted on a support, by plain linear algebra."""
    where = list(support)
    best = torch.zeros_like(row)
    if where:
        best[where] = torch.linalg.solve(h[where][:, where], (h @ row)[where])
    return float((best - row) @ h @ (best - row)), best


def best_of_all(h, weights, keep):
    """The least loss of any `keep` weights of a layer (out, in): every support of every row, then every split over the rows."""
    tables = []
    for row in weights.double():
        table = [min(fitted(h, row, s)[0] for s in combinations(range(len(row)), k)) for k in range(len(row) + 1)]
        tables.append(table)
    best = {0: 0.0}
    for table in tables:
        sums = [(kept + k, loss + more) for kept, loss in best.items() for k, more in enumerate(table)]
        best = {kept: min(loss for other, loss in sums if other == kept) for kept in {kept for kept, _ in sums}}
    return best[keep]


def exact_surgery(h, weights, keep):
    """ExactOBS of a whole layer: again and again the cheapest weight of all rows goes, its row makes up for it exactly."""
    current = weights.double().clone()
    inverses = [torch.linalg.inv(h) for _ in current]
    alive = torch.ones_like(current, dtype=torch.bool)
    order, losses = [], []
    for _ in range(current.numel() - keep):
        costs = torch.stack([row**2 / p.diagonal() for row, p in zip(current, inverses, strict=True)])
        costs = costs.masked_fill(~alive, torch.inf)
        at = int(costs.argmin())
        i, q = divmod(at, current.shape[1])
        p = inverses[i]
        losses.append(float(costs[i, q]))
        current[i] -= current[i, q] / p[q, q] * p[q]
        inverses[i] = p - torch.outer(p[:, q], p[q]) / p[q, q]
        inverses[i][q, q] = 1.0
        alive[i, q] = False
        current[i][~alive[i]] = 0.0
        order.append((i, q))
    return order, losses, current
