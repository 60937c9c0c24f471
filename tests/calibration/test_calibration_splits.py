"""A split shares no sample, is spread evenly, and leaves both sides something."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.calibration.sources import InputSpec, open_source, split
from onnxprune.errors import UsageError

F32 = np.dtype(np.float32)
SPEC = InputSpec("x", F32, (None, 3, 4))
X = np.random.default_rng(0).standard_normal((10, 3, 4)).astype(np.float32)


def take(source):
    return np.concatenate([batch["x"] for batch in source.batches(4)])


def test_a_single_sample_is_on_both_sides_with_a_warning():
    rest, held = split(open_source(X[:1], [SPEC]), 0.2)
    assert rest.count == held.count == 1
    assert "too few samples" in held.warnings[0]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_both_sides_of_a_split_hold_something(share):
    rest, held = split(open_source(X, [SPEC]), share)
    assert rest.count >= 1
    assert held.count >= 1
    assert sorted([*rest.numbers, *held.numbers]) == list(range(10))


def test_a_split_can_be_split_again():
    rest, _ = split(open_source(X, [SPEC]), 0.2)
    train, test = split(rest, 0.5)
    assert not set(train.numbers) & set(test.numbers)
    assert len(take(train)) + len(take(test)) == 8


def test_a_fixed_batch_is_held_out_whole():
    rest, held = split(open_source(X, [InputSpec("x", F32, (3, 3, 4))]), 0.3)
    np.testing.assert_array_equal(take(held), X[6:9])
    np.testing.assert_array_equal(take(rest), X[:6])


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(UsageError, match="between 0 and 1"):
        split(open_source(X, [SPEC]), share)
