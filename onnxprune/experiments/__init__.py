"""SAY: the experiments of the papers, one file per paper, rerun on models that a person has. `onnxprune papers` shows them."""

from __future__ import annotations

from onnxprune.experiments import bounds, coreset, l_obs, probabilistic, sipp
from onnxprune.experiments.case import no_case, open_case
from onnxprune.experiments.experiment import EXPERIMENTS, Case, Experiment, Figure, Line, Result, experiment

__all__ = [
    "EXPERIMENTS",
    "Case",
    "Experiment",
    "Figure",
    "Line",
    "Result",
    "bounds",
    "coreset",
    "experiment",
    "l_obs",
    "no_case",
    "open_case",
    "probabilistic",
    "sipp",
]
