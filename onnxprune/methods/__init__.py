"""DECIDE: one file per paper. Importing this package registers every method of ours and those that other packages offer."""

from __future__ import annotations

from importlib.metadata import entry_points

from onnxprune.contract import METHODS, Method
from onnxprune.errors import UnknownNameError, UsageError
from onnxprune.methods import (
    batch_norm_scale,
    baykal,
    coreset,
    fpgm,
    l_obs,
    low_rank,
    norms,
    obs,
    obs_channel,
    pfp,
    probabilistic,
    sensitivity,
    sipp,
    sipp_bounds,
    sparsegpt,
    sparsification,
    thinet,
    thresholds,
    wanda,
)

__all__ = [
    "METHODS",
    "batch_norm_scale",
    "baykal",
    "coreset",
    "create",
    "fpgm",
    "known",
    "l_obs",
    "low_rank",
    "norms",
    "obs",
    "obs_channel",
    "pfp",
    "probabilistic",
    "sensitivity",
    "sipp",
    "sipp_bounds",
    "sparsegpt",
    "sparsification",
    "thinet",
    "thresholds",
    "wanda",
]

ENTRY_POINTS = "onnxprune.methods"


def create(name: str, **options: object) -> Method:
    """The method registered as `name`, with its options. Packages that announce methods by entry point are imported on demand."""
    if name not in METHODS:
        _load_entry_points()
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name](**options)


def known() -> dict[str, type[Method]]:
    """Every method by name, those that other packages announce included."""
    _load_entry_points()
    return dict(sorted(METHODS.items()))


def _load_entry_points() -> None:
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:  # any fault of a third party's package, named instead of a traceback
            raise UsageError(f"the method package {entry.value!r} cannot be loaded: {error}", "update or uninstall it") from error
