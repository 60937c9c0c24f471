"""Experiments are registered once under a name."""

from __future__ import annotations

import pytest

from onnxprune.errors import OnnxpruneError
from onnxprune.experiments import EXPERIMENTS, Result, experiment


def test_a_name_is_taken_once():
    def run(case, seeds, progress):
        return Result(("a",), [("1",)])

    try:
        experiment("mine-fig1", "mine, Fig. 1", "none")(run)
        with pytest.raises(OnnxpruneError, match="registered already"):
            experiment("mine-fig1", "mine, Fig. 1", "none")(run)
    finally:
        del EXPERIMENTS["mine-fig1"]
