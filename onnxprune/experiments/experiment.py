"""What an experiment is given, and what it gives: a table with the paper's figures beside ours, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onnxprune.errors import OnnxpruneError

Floats = Sequence[float]


@dataclass(frozen=True)
class Case:
    """One model with data: calibration inputs (n, ...), test inputs (m, ...) that nothing is fitted to, their classes (m,)."""

    name: str
    model: Path
    calibration: NDArray[Any]
    test: NDArray[Any]
    labels: NDArray[Any]


@dataclass(frozen=True)
class Line:
    """One curve of a figure.

    spread  standard deviation at each point
    paper   read off the paper, not measured here
    level   something to compare with, such as the unpruned accuracy: no curve that was measured point by point
    like    label of the line that this one belongs to and shares its colour with: the paper's values of it, or a bound on it
    """

    label: str
    x: Floats
    y: Floats
    spread: Floats | None = None
    paper: bool = False
    level: bool = False
    like: str | None = None


@dataclass(frozen=True)
class Figure:
    """A picture: curves over one axis. `percent`: the axes, of "x" and "y", whose values are shares, shown in percent."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    percent: str = ""


@dataclass(frozen=True)
class Result:
    """What came out. rows: cells as they are to be shown, under `header`; remarks: where ours differs, by how much and why.

    The first figure is the one that the paper has, or would have had.
    claim    what the paper says that this shows, with its numbers, in a sentence
    verdict  what came out here, made from the numbers that were measured, in a sentence
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: Sequence[Figure] = ()
    remarks: Sequence[str] = ()
    claim: str = ""
    verdict: str = ""


Progress = Callable[[str, float], None]
Run = Callable[[Case, int, Progress], Result]


@dataclass(frozen=True)
class Experiment:
    """One figure or table of a paper.

    name    as typed: <paper>-<figure or table>
    paper   which one, and where in it
    kind    the kind of model that it is about: 'mlp', 'cnn' or 'none', where no model is looked at
    run     (case, seeds, progress) -> Result; `seeds` is how often whatever is random is repeated
    """

    name: str
    paper: str
    kind: str
    run: Run = field(repr=False)


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(name: str, paper: str, kind: str) -> Callable[[Run], Run]:
    """Register a function as an experiment. A name may be taken once."""

    def register(run: Run) -> Run:
        if name in EXPERIMENTS:
            raise OnnxpruneError(f"an experiment named {name!r} is registered already")
        EXPERIMENTS[name] = Experiment(name, paper, kind, run)
        return run

    return register
