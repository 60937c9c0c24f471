"""Which channel counts a runtime can use: others cost as much as the next larger block, or far more.

ONNX Runtime's CPU convolutions work in blocks of the vector width (16 floats with AVX-512, 8 else) and leave the fast kernels
altogether when a count is no multiple of 4. Gemm and MatMul take any count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

from onnxprune.errors import UsageError
from onnxprune.network import Group

SMALLEST = 4


@dataclass(frozen=True)
class Choices:
    """The counts a group may keep, descending; the first is its size. `block` is what they are multiples of.

    width   what one of them counts for in a share of channels (an attention head is as many as it is wide)
    """

    group: str
    size: int
    block: int
    counts: tuple[int, ...]
    width: int = 1

    def nearest(self, wanted: float) -> int:
        """The allowed count nearest to `wanted`; of two at the same distance the larger."""
        return min(self.counts, key=lambda c: (abs(c - wanted), -c))


def vector_block() -> int:
    """16 where this processor has AVX-512, 8 else: floats per register, which is ONNX Runtime's channel block."""
    try:
        from numpy._core._multiarray_umath import __cpu_features__ as features
    except ImportError:
        return 8
    return 16 if features.get("AVX512F") else 8


def choices(group: Group, align: str | int, floor: float, widest: int) -> Choices:
    """Allowed counts of a group.

    align   'auto': convolutions get the largest block up to `widest` of which four fit into the group, at least 4; Gemm gets 1.
            A number holds for every group.
    floor   smallest share of the group that must stay
    """
    block = _block(group, widest) if align == "auto" else int(align) if str(align).isdecimal() else 0
    if block < 1:
        raise UsageError(f"--align {align} is no block size", "give 'auto' or a number from 1")
    lowest = max(1, -(-int(group.size * floor) // block) * block) if block > 1 else max(1, round(group.size * floor))
    lowest = max(lowest, block) if block > 1 else lowest
    steps = [n for n in range(group.size // block * block, lowest - 1, -block) if n < group.size]
    return Choices(group.name, group.size, block, (group.size, *steps), group.width)


def _block(group: Group, widest: int) -> int:
    if not group.spatial:
        return 1
    channels = group.size * group.width
    block = next((b for b in (widest, 8) if b <= widest and channels >= 4 * b), SMALLEST)
    return block // gcd(block, group.width)


def settle(options: Sequence[Choices], wanted: Sequence[float]) -> list[int]:
    """Round wanted counts to allowed ones so that their sum is met as closely as possible.

    Every group starts at its nearest count; then single groups move one step, those that move least out of their way first,
    as long as the sum comes nearer; at last several groups may move together, by one step each.
    """
    kept = [choice.nearest(w) for choice, w in zip(options, wanted, strict=True)]
    total = sum(wanted)
    while True:
        gap = sum(kept) - total
        moves = []
        for i, choice in enumerate(options):
            at = choice.counts.index(kept[i]) + (1 if gap > 0 else -1)
            if 0 <= at < len(choice.counts):
                new = choice.counts[at]
                nearer = abs(gap) - abs(gap + new - kept[i])
                if nearer > 1e-9:
                    moves.append((abs(new - wanted[i]) - abs(kept[i] - wanted[i]), -nearer, i, new))
        if not moves:
            return _together(options, wanted, kept)
        _, _, i, new = min(moves)
        kept[i] = new


def _together(options: Sequence[Choices], wanted: Sequence[float], kept: Sequence[int]) -> list[int]:
    """Of all ways to move groups by one step each, the one whose sum is nearest; of several the one with the least detours."""
    gap = sum(kept) - sum(wanted)
    reach = 2 * max(abs(gap), 1) + max((a - b for o in options for a, b in pairwise(o.counts)), default=0)
    ways: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # change of the sum so far -> (detours, counts)
    for choice, want, now in zip(options, wanted, kept, strict=True):
        at, found = choice.counts.index(now), dict[int, tuple[float, tuple[int, ...]]]()
        for new in choice.counts[max(at - 1, 0) : at + 2]:
            for change, (detours, counts) in ways.items():
                way = detours + abs(new - want) - abs(now - want), (*counts, new)
                total = change + new - now
                if abs(total) <= reach and (total not in found or way < found[total]):
                    found[total] = way
        ways = found
    nearest = min(abs(gap + change) for change in ways)
    return list(min(way for change, way in ways.items() if abs(gap + change) <= nearest + 1e-9)[1])
