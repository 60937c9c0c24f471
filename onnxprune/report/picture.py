"""A figure of an experiment as a picture that one could show in a talk: PNG or SVG, by matplotlib where it is installed."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.errors import SaveError, UsageError

if TYPE_CHECKING:
    from onnxprune.experiments import Figure, Line

# Okabe and Ito's colours: they stay apart for eyes that confuse red and green, and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A00", "#7A5195")
MARKERS = "osD^vP*Xh"
SIZE, DOTS_PER_INCH = (8.0, 5.0), 160


def draw(figure: Figure, path: Path) -> None:
    """Write the picture; the suffix says which format.

    Raises UsageError without matplotlib, SaveError where it cannot be written.
    """
    plot = _matplotlib()
    canvas, axes = plot.subplots(figsize=SIZE, layout="constrained")
    try:
        for line, colour, marker in zip(figure.lines, cycle(COLOURS), cycle(MARKERS)):
            _draw_line(axes, line, colour, marker)
        axes.set(title=figure.title, xlabel=figure.x_label, ylabel=figure.y_label)
        if figure.log_x:
            axes.set_xscale("log")
        if figure.log_y:
            axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both" if figure.log_y else "major")
        axes.spines[["top", "right"]].set_visible(False)
        if len(figure.lines) > 1:
            axes.legend(frameon=False, fontsize="small", ncols=1 + len(figure.lines) // 9)
        # The same figures give the same bytes: no date, no random ids.
        plot.rcParams["svg.hashsalt"] = "onnxprune"
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        canvas.savefig(path, dpi=DOTS_PER_INCH, metadata=metadata)
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error.strerror}", "choose another folder") from error
    finally:
        plot.close(canvas)


def _draw_line(axes: Any, line: Line, colour: str, marker: str) -> None:
    look = {"color": colour, "label": line.label, "linewidth": 1.6}
    if line.paper:
        axes.plot(line.x, line.y, linestyle=":", marker=marker, markersize=6, markerfacecolor="white", **look)
        return
    axes.plot(line.x, line.y, marker=marker, markersize=4.5, **look)
    if line.spread is not None:
        low = [y - s for y, s in zip(line.y, line.spread, strict=True)]
        high = [y + s for y, s in zip(line.y, line.spread, strict=True)]
        axes.fill_between(line.x, low, high, color=colour, alpha=0.15, linewidth=0)


def _matplotlib() -> Any:
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise UsageError("pictures need matplotlib, which is not installed", "pip install 'onnxprune[papers]'") from error
    return pyplot
