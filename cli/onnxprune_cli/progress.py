"""A progress bar on stderr, where somebody is watching."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from onnxprune_cli import interruption

Progress = Callable[[str, float], None]


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Progress]:
    """A callback (stage, fraction done), where we may be stopped; on a terminal it moves one bar, gone when the work is."""
    if quiet or not sys.stderr.isatty():
        yield lambda stage, fraction: interruption.check()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("starting", total=1.0)

        def move(stage: str, fraction: float) -> None:
            interruption.check()
            bar.update(task, description=stage, completed=fraction)

        yield move
