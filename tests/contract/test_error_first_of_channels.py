"""A method of one's own that tells its errors but no counts is refused in words, not with a bug."""

from __future__ import annotations

import pytest

import onnxprune
from onnxprune.contract import METHODS
from onnxprune.errors import UsageError
from onnxprune.methods.norms import L1Channel
from onnxprune.testing import tiny_network


class HalfBounded(L1Channel):
    name = "half-bounded-channel"

    def errors(self, view, plan):
        return {}


def test_an_error_asked_of_a_method_without_counts_is_refused(monkeypatch):
    monkeypatch.setitem(METHODS, HalfBounded.name, HalfBounded)
    with pytest.raises(UsageError, match=r"cannot say how many channels an error of 0\.5 asks for; give a ratio"):
        onnxprune.prune(tiny_network(), HalfBounded.name, epsilon=0.5, samples=16, latency=False, device="cpu")
