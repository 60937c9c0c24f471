"""Which counts a group may keep, and rounding that meets the sum."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from onnxprune.budget.alignment import Choices, choices, settle, vector_block
from onnxprune.errors import UsageError
from onnxprune.network import Group


def group(size, spatial=True):
    return Group("g", "channel" if spatial else "neuron", np.arange(size), (), ("m",), ("r",), spatial)


@pytest.mark.parametrize(
    ("size", "spatial", "widest", "block"),
    [
        (256, True, 16, 16), (64, True, 16, 16), (63, True, 16, 8), (32, True, 16, 8), (31, True, 16, 4), (8, True, 16, 4),
        (256, True, 8, 8), (31, True, 8, 4), (256, False, 16, 1), (5, False, 16, 1),
    ],
)  # fmt: skip
def test_the_block_follows_operator_machine_and_size(size, spatial, widest, block):
    found = choices(group(size, spatial), "auto", 0.1, widest)
    assert found.block == block
    assert found.counts[0] == found.size == size
    assert list(found.counts) == sorted(set(found.counts), reverse=True)
    assert all(n % block == 0 for n in found.counts[1:])
    assert found.counts[-1] >= max(1, size * 0.1)


@pytest.mark.parametrize(("width", "block"), [(1, 16), (2, 8), (4, 4), (6, 8), (16, 1), (48, 1)])
def test_blocks_are_counted_in_channels(width, block):
    """Whole groups of a convolution: 64 of them, so many channels wide each; what stays is a multiple of 16 channels."""
    found = choices(replace(group(64), width=width), "auto", 0.1, 16)
    assert found.block == block
    assert all(n * width % 16 == 0 for n in found.counts[1:])


@pytest.mark.parametrize("size", range(1, 70))
@pytest.mark.parametrize("widest", [8, 16])
def test_a_convolution_is_never_left_with_a_remainder_of_four(size, widest):
    found = choices(group(size), "auto", 0.1, widest)
    assert all(n % 4 == 0 for n in found.counts[1:])
    assert all(1 <= n <= size for n in found.counts)


@pytest.mark.parametrize("size", [1, 3, 4, 10, 16, 33, 100])
@pytest.mark.parametrize("align", [1, 2, 4, 8, 32])
def test_a_number_holds_for_every_group(size, align):
    for spatial in (True, False):
        found = choices(group(size, spatial), align, 0.1, 16)
        expected = [n for n in range(size) if n % align == 0 and n >= max(1, size * 0.1 - 0.5)]
        assert set(found.counts[1:]) <= {n for n in range(size) if n % align == 0}
        assert set(found.counts) >= {n for n in expected if n >= size * 0.1 + align}


@pytest.mark.parametrize("size", [7, 10, 33, 100, 1000])
def test_the_floor_is_the_smallest_share_that_stays(size):
    assert choices(group(size), 1, 0.3, 16).counts[-1] >= round(size * 0.3) - 1e-9
    assert choices(group(size, False), "auto", 0.3, 16).counts[-1] == max(1, round(size * 0.3))
    assert choices(group(size), 1, 0.0, 16).counts[-1] == 1


@pytest.mark.parametrize("align", ["0", "-4", "many"])
def test_no_block_sizes(align):
    with pytest.raises(UsageError, match="align"):
        choices(group(16), align, 0.1, 16)


def test_the_vector_block_is_one_that_onnx_runtime_has():
    assert vector_block() in (8, 16)


def test_nearest_takes_the_larger_of_two():
    some = Choices("g", 16, 4, (16, 12, 8, 4))
    assert [some.nearest(w) for w in (16, 14.1, 14, 13.9, 10, 5, 0)] == [16, 16, 16, 12, 12, 4, 4]


# --- settle


def best_gap(options, wanted):
    """By brute force: how near any allowed combination comes to the sum."""
    return min(abs(sum(kept) - sum(wanted)) for kept in itertools.product(*(o.counts for o in options)))


def random_case(rng):
    options = []
    for i in range(rng.integers(1, 5)):
        size, block = int(rng.integers(2, 40)), int(rng.choice([1, 4, 8]))
        options.append(choices(group(size), block, 0.1, 16))
        options[-1] = Choices(str(i), *[getattr(options[-1], f) for f in ("size", "block", "counts")])
    ratio = rng.uniform(0, 0.95)
    return options, [o.size * (1 - ratio) for o in options]


@pytest.mark.parametrize("seed", range(60))
def test_the_sum_is_met_as_nearly_as_any_combination_could(seed):
    options, wanted = random_case(np.random.default_rng(seed))
    kept = settle(options, wanted)
    assert all(k in o.counts for k, o in zip(kept, options, strict=True))
    # No group goes further out of its way than needed to be within half of the finest block.
    assert abs(sum(kept) - sum(wanted)) <= best_gap(options, wanted) + min(o.block for o in options) / 2


def test_nearly_always_the_sum_is_the_nearest_there_is():
    cases = [random_case(np.random.default_rng(1000 + seed)) for seed in range(200)]
    gaps = [abs(sum(settle(*case)) - sum(case[1])) - best_gap(*case) for case in cases]
    assert sum(gap > 1e-9 for gap in gaps) <= 1


def test_what_is_allowed_already_stays():
    options = [Choices("a", 32, 8, (32, 24, 16, 8)), Choices("b", 10, 1, tuple(range(10, 0, -1)))]
    assert settle(options, [16.0, 6.0]) == [16, 6]


def test_groups_that_go_least_out_of_their_way_move_first():
    options = [Choices("a", 16, 8, (16, 8)), Choices("b", 20, 1, tuple(range(20, 0, -1)))]
    # a wants 9.6 and gets 8; b has to make up for 1.6
    assert settle(options, [9.6, 12.0]) == [8, 14]
