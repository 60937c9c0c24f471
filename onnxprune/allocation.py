"""A budget spread over rows so that the sum of their error curves is least: SiPP's OptAlloc, without a convex solver.

Of a convex curve each unit more is worth less than the one before; the best allocation takes the units that are worth most,
wherever they are. Other curves are replaced by their lower convex hull, which is within one edge per network of the optimum
(algorithms.md 1.5; the hull's slopes are the pooled gains of isotonic regression).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Steps of a curve that its hull is made of; of wider rows several units are one step.
RESOLUTION = 512


def unit_gains(errors: Tensor, room: Tensor) -> Tensor:
    """(rows, units) float64, never rising along a row: by how much each further unit lowers the hull of the row's error.

    errors   (rows, units + 1) error when so many units stay
    room     (rows,) units there are to keep; what lies beyond has a gain of -inf
    """
    gains = -errors.double().diff(dim=1)
    beyond = torch.arange(gains.shape[1], device=gains.device) >= room[:, None]
    rising = ((gains[:, 1:] > gains[:, :-1]) & ~beyond[:, 1:]).any(1)
    if bool(rising.any()):
        gains[rising] = _pooled(gains[rising].masked_fill(beyond[rising], 0.0), room[rising])
    return gains.masked_fill(beyond, -torch.inf)


def _pooled(gains: Tensor, room: Tensor) -> Tensor:
    """Neighbours whose gains rise are pooled until none do: the slopes of the lower convex hull. Blocks of units in wide rows."""
    rows, units = gains.shape
    block = -(-units // RESOLUTION)
    steps = -(-units // block)
    padded = torch.nn.functional.pad(gains, (0, steps * block - units)).reshape(rows, steps, block).sum(2)
    sizes = (room[:, None] - torch.arange(steps, device=room.device) * block).clamp(0, block)
    slopes = _isotonic(padded.cpu().numpy(), sizes.double().cpu().numpy())
    return torch.from_numpy(slopes).to(gains).repeat_interleave(block, 1)[:, :units]


def _isotonic(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pool adjacent violators in all rows at once: a stack of pools (sum, size, first step) per row."""
    rows, steps = sums.shape
    total, size, first = np.zeros((rows, steps)), np.zeros((rows, steps)), np.zeros((rows, steps), np.int64)
    top = np.full(rows, -1)
    for k in range(steps):
        live = np.flatnonzero(sizes[:, k] > 0)
        top[live] += 1
        total[live, top[live]], size[live, top[live]], first[live, top[live]] = sums[live, k], sizes[live, k], k
        live = live[top[live] > 0]
        while len(live):
            t = top[live]
            live = live[total[live, t] * size[live, t - 1] > total[live, t - 1] * size[live, t]]
            t = top[live]
            total[live, t - 1] += total[live, t]
            size[live, t - 1] += size[live, t]
            top[live] -= 1
            live = live[top[live] > 0]
    # The pool of a step is the last one that begins at it or before.
    begins = np.zeros((rows, steps), np.int64)
    there = np.arange(steps) <= top[:, None]
    np.add.at(begins, (np.nonzero(there)[0], first[there]), 1)
    pool = np.maximum(begins.cumsum(1) - 1, 0)
    return np.asarray(np.take_along_axis(total / np.maximum(size, 1), pool, 1))


def allocate(gains: Sequence[Tensor], budget: int, rng: torch.Generator) -> list[Tensor]:
    """For each layer's gains (rows, units), as from unit_gains, how many units each row keeps: `budget` in all.

    Units of equal gain at the border are shared among their rows in proportion, rounded at random without touching the sum.
    """
    flat = torch.cat([g.flatten().cpu() for g in gains])
    if not 0 < budget < len(flat):
        return [torch.full((len(g),), g.shape[1] if budget else 0) for g in gains]
    bar = flat.kthvalue(len(flat) - budget + 1).values
    above = torch.cat([(g.cpu() > bar).sum(1) for g in gains])
    tied = torch.cat([(g.cpu() == bar).sum(1) for g in gains])
    share = tied.double() * (budget - int(above.sum())) / int(tied.sum())
    counts = above + systematic(share, rng)
    return list(torch.split(counts, [len(g) for g in gains]))


def systematic(values: Tensor, rng: torch.Generator) -> Tensor:
    """Whole numbers with the same sum, each the value rounded down or up, and on average the value itself (algorithms.md 1.6).

    The sum of the values is whole.
    """
    fractions = values - values.floor()
    order = torch.randperm(len(values), generator=rng)
    ends = fractions[order].cumsum(0)
    # Against rounding errors of the sum: the end is whole.
    ends = ends * (ends[-1].round() / ends[-1]) if float(ends[-1]) > 0 else ends
    start = torch.rand((), generator=rng, dtype=torch.float64)
    marks = torch.floor(ends + start)
    marks[-1] = ends[-1].round()
    found = values.floor().long()
    found[order] += marks.diff(prepend=torch.zeros(1, dtype=marks.dtype)).long()
    return found
