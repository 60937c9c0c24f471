"""Lemma 4.1 against logits that are moved at random, and as badly as possible."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.validation.labels import (
    additive_margins,
    guaranteed_share,
    multiplicative_margins,
    required_epsilon,
    scaled_margins,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(300, 6)) * 3
SCALES = {"additive": np.ones_like(LOGITS), "multiplicative": np.abs(LOGITS), "scaled": RNG.random(LOGITS.shape) * 2}


def worst(logits, scale, epsilon):
    """The winner down and all others up by as much as they may."""
    moved = logits + epsilon[:, None] * scale
    rows, top = np.arange(len(logits)), logits.argmax(1)
    moved[rows, top] = logits[rows, top] - epsilon * scale[rows, top]
    return moved


@pytest.mark.parametrize("kind", SCALES)
def test_no_change_below_the_margin_flips_a_label_and_the_worst_above_it_does(kind):
    scale = SCALES[kind]
    margins = scaled_margins(LOGITS, scale)
    for seed in range(300):
        moves = np.random.default_rng(seed).uniform(-1, 1, LOGITS.shape) * scale * margins[:, None] * (1 - 1e-9)
        assert ((LOGITS + moves).argmax(1) == LOGITS.argmax(1)).all()
    assert (worst(LOGITS, scale, margins * (1 - 1e-9)).argmax(1) == LOGITS.argmax(1)).all()
    assert (worst(LOGITS, scale, margins * (1 + 1e-9)).argmax(1) != LOGITS.argmax(1)).all()


def test_margins_are_the_lemmas():
    for logits, half, relative in zip(LOGITS, additive_margins(LOGITS), multiplicative_margins(LOGITS), strict=True):
        second, first = sorted(logits)[-2:]
        assert half == pytest.approx((first - second) / 2)
        assert relative == pytest.approx((first - second) / (abs(first) + abs(second)))


def test_the_bound_is_strict():
    margins = additive_margins(np.array([[3.0, 1.0]]))
    assert margins.tolist() == [1.0]
    assert guaranteed_share(margins, 1.0) == 0.0
    assert guaranteed_share(margins, 0.999) == 1.0


def test_ties_have_no_margin_and_logits_that_cannot_move_have_all():
    assert additive_margins(np.array([[1.0, 1.0, 0.0]])).tolist() == [0.0]
    assert multiplicative_margins(np.array([[0.0, 0.0]])).tolist() == [0.0]
    assert scaled_margins(np.array([[2.0, 1.0]]), np.zeros((1, 2))).tolist() == [np.inf]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.95, 1.0])
def test_the_epsilon_for_a_share_is_the_largest_that_does(share):
    margins = additive_margins(LOGITS)
    epsilon = required_epsilon(margins, share)
    assert guaranteed_share(margins, epsilon) >= share
    assert guaranteed_share(margins, np.nextafter(epsilon, np.inf)) < share


def test_what_cannot_be_guaranteed_is_refused_with_what_can():
    tied = np.array([0.0, 0.0, 1.0, 2.0])
    with pytest.raises(UsageError, match=r"tied .* at most 0\.5"):
        required_epsilon(tied, 0.75)
    assert required_epsilon(tied, 0.5) == np.nextafter(1.0, 0)
    for share in (0.0, 1.5):
        with pytest.raises(UsageError, match="more than 0"):
            required_epsilon(tied, share)
    with pytest.raises(UsageError, match="--data"):
        required_epsilon(np.zeros(0), 0.5)
