"""A figure of an experiment as a picture that one could show in a talk: PNG or SVG, by matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.errors import SaveError, UsageError

if TYPE_CHECKING:
    from onnxprune.experiments import Figure, Line

# Okabe and Ito's colours: they stay apart for eyes that confuse red and green, and in print.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A00", "#7A5195", "#A0522D", "#6C8EBF",
)  # fmt: skip
MARKERS = "osD^vP*Xh<>"
GREY = "#777777"
SIZE, DOTS_PER_INCH = (9.0, 5.0), 150
# From so many points on a curve is drawn without markers.
SMOOTH = 25
# Same figure, same bytes: no random ids in an SVG. Text as text: smaller, and it can be searched.
SETTINGS = {"svg.hashsalt": "onnxprune", "svg.fonttype": "none"}


def draw(figure: Figure, path: Path, note: str = "") -> None:
    """Write the picture, `note` (whose experiment, on which model) small under its title; the suffix says which format.

    Raises UsageError without matplotlib, SaveError where it cannot be written.
    """
    plot = _matplotlib()
    with plot.rc_context(SETTINGS):
        canvas, axes = plot.subplots(figsize=SIZE, layout="constrained")
        try:
            for line, (colour, marker) in zip(figure.lines, _looks(figure.lines), strict=True):
                _draw_line(axes, line, colour, marker)
            _label(canvas, axes, figure, note)
            if len(figure.lines) > 1:
                _legend(canvas, axes, figure.lines)
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            canvas.savefig(path, dpi=DOTS_PER_INCH, metadata=metadata)
        except OSError as error:
            raise SaveError(f"cannot write {path}: {error.strerror}", "choose another folder") from error
        finally:
            plot.close(canvas)


def _looks(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Colour and marker of each line: a line `like` another has its colour, a level is grey."""
    fresh = zip(cycle(COLOURS), cycle(MARKERS))
    known: dict[str | None, tuple[str, str]] = {}
    found = []
    for line in lines:
        look = (GREY, "") if line.level and line.like is None else known.get(line.like) or next(fresh)
        known[line.label] = look
        found.append(look)
    return found


def _draw_line(axes: Any, line: Line, colour: str, marker: str) -> None:
    look = {"color": colour, "label": line.label, "linewidth": 1.6, "zorder": 2}
    marker = "" if len(line.x) >= SMOOTH else marker
    if line.paper:
        axes.plot(line.x, line.y, linestyle=":", marker=marker, markersize=7, markerfacecolor="white", **look | {"zorder": 3})
    elif line.level or line.like is not None:
        axes.plot(line.x, line.y, linestyle="--", marker="" if line.level else marker, markersize=4, **look)
    else:
        axes.plot(line.x, line.y, marker=marker, markersize=4.5, **look)
    if line.spread is not None:
        low = [y - s for y, s in zip(line.y, line.spread, strict=True)]
        high = [y + s for y, s in zip(line.y, line.spread, strict=True)]
        axes.fill_between(line.x, low, high, color=colour, alpha=0.15, linewidth=0)


def _label(canvas: Any, axes: Any, figure: Figure, note: str) -> None:
    from matplotlib.ticker import PercentFormatter

    canvas.suptitle(figure.title, x=0.01, horizontalalignment="left", fontsize="large", fontweight="bold")
    axes.set_title(note, loc="left", color=GREY, fontsize="small")
    axes.set(xlabel=figure.x_label, ylabel=figure.y_label)
    for name, axis, log in (("x", axes.xaxis, figure.log_x), ("y", axes.yaxis, figure.log_y)):
        if log:
            axes.set(**{f"{name}scale": "log"})
            _ticks_at(axis, [v for line in figure.lines for v in getattr(line, name)])
        if name in figure.percent:
            axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.grid(alpha=0.3, which="major")
    axes.spines[["top", "right"]].set_visible(False)


def _ticks_at(axis: Any, values: Sequence[float]) -> None:
    """A log axis of two decades has its ticks at its values, or at 1, 2, 5, 10, as 4 x 10^1 for 40 is hard to read."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

    found = sorted({v for v in values if v > 0})
    if found[-1] <= 100 * found[0]:
        axis.set_major_locator(FixedLocator(found) if len(found) <= 8 else LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _legend(canvas: Any, axes: Any, lines: Sequence[Line]) -> None:
    """Beside the axes, where it hides no curve. The paper's values of curves that are named need one name together."""
    from matplotlib.lines import Line2D

    handles, _ = axes.get_legend_handles_labels()
    named = [handle for handle, line in zip(handles, lines, strict=True) if not (line.paper and line.like)]
    if len(named) < len(handles):
        named.append(Line2D([], [], color=GREY, linestyle=":", marker="o", markerfacecolor="white", label="the paper's"))
    canvas.legend(handles=named, loc="outside right center", frameon=False, fontsize="small", handlelength=2.6)


def _matplotlib() -> Any:
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise UsageError("pictures need matplotlib, which is not installed", "pip install 'onnxprune[papers]'") from error
    return pyplot
