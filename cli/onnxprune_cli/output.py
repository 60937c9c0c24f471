"""Where results go: text for people, JSON and Markdown for programs; stdout holds nothing else."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

STDOUT = "-"
PIPED_WIDTH = 120


def check_places(*places: str | None, inputs: Iterable[str | None] = (), models: Iterable[str | None] = ()) -> None:
    """Refuse now what could not be written after an hour's work, or would overwrite an input or another result.

    inputs    files, folders and file.py:function
    models    files of models: with their external data
    """
    named = [place for place in places if place is not None and place != STDOUT]
    taken = {os.path.realpath(name): f"{name} is an input, which is never overwritten" for name in _files(inputs, models, named)}
    for place in named:
        _check_place(place)
        real = os.path.realpath(place)
        if real in taken:
            raise click.UsageError(f"{taken[real]}; name another file")
        if not Path(place).exists() or Path(place).is_file():
            taken[real] = f"{place} was named for two results"


def _files(inputs: Iterable[str | None], models: Iterable[str | None], places: Iterable[str]) -> Iterator[str]:
    """All that may not be written to."""
    for name in filter(None, inputs):
        yield name
        script, _, function = name.rpartition(":")
        if script and function:
            yield script
    # Only what is there already can be overwritten; else the model need not be read for this.
    there = any(os.path.isfile(place) for place in places)  # noqa: PTH113  (pathlib raises on names that are too long)
    for model in filter(None, models):
        yield model
        if there:
            from onnxprune.graph.external import data_files

            yield from map(str, data_files(Path(model)))


def _check_place(place: str) -> None:
    from onnxprune.errors import SaveError

    path = Path(place)
    try:
        if path.is_dir():
            raise SaveError(f"{place} is a folder", "name a file")
        if path.parent.is_file():
            raise SaveError(f"{path.parent} is a file, not a folder", "choose another place")
        if not path.parent.is_dir():
            raise SaveError(f"there is no folder {path.parent} for {path.name}", "make it first")
        if path.exists():
            writable = os.access(path, os.W_OK)
        else:
            writable = os.access(path.parent, os.W_OK)
            # Permissions do not tell of read-only file systems and the like; a file without a name does.
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except OSError as exc:
        raise SaveError(f"cannot write {place}: {exc.strerror}", "choose another place") from exc
    if not writable:
        raise SaveError(f"{place} may not be written", "choose another place")


def show(draw: Callable[[Console], None], *, to_stderr: bool) -> None:
    """Show what `draw` prints on a rich console."""
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    # A pipe has no width: take one at which names of usual length stay whole.
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    console = Console(file=stream, width=width, highlight=False, markup=False, emoji=False)
    with _writing(stream), console.capture() as captured:
        draw(console)
    _write(stream, "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def write_json(figures: Mapping[str, Any], place: str) -> None:
    from onnxprune.report import json

    text = json.render(figures)
    if place == STDOUT:
        _write(sys.stdout, text)
    else:
        _save(place, text)


def write_summary(report: Mapping[str, Any], place: str | None) -> None:
    """Markdown to the file asked for, and to GitHub's page of the CI job where there is one."""
    from onnxprune.report import markdown

    if place is not None:
        _save(place, markdown.render(report))
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if page:
        try:
            with Path(page).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(markdown.render(report) + "\n")
        except OSError as exc:
            # Nobody asked for this one by name: no reason to fail the job.
            click.echo(f"onnxprune: warning: cannot write GITHUB_STEP_SUMMARY: {exc}", err=True)


def deliver(report: Mapping[str, Any], *, json_to: str | None, summary: str | None, verbose: bool, quiet: bool) -> int:
    """Report in every form that was asked for; the exit code the gates call for."""
    from onnxprune.report import essentials, text

    failed = [gate for gate in report["gates"] if not gate["passed"]]
    if not quiet:
        show(lambda console: text.show(report, console, verbose=verbose), to_stderr=json_to == STDOUT)
    for gate in failed if quiet else ():
        click.echo(f"onnxprune: gate failed: {gate['expression']}: it is {essentials.gate_value(gate)}", err=True)
    if json_to is not None:
        write_json(report, json_to)
    write_summary(report, summary)
    return 1 if failed else 0


def _save(place: str, text: str) -> None:
    """Whole or not at all, by one rename; what is no file (/dev/null, a pipe) is written to as it is."""
    from onnxprune.errors import SaveError

    path = Path(place)
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, "utf-8", errors="backslashreplace")
            return
        path = path.resolve()
        temporary = path.with_name(f".{path.name[:64]}.{os.getpid()}.tmp")
        try:
            temporary.write_text(text, "utf-8", errors="backslashreplace")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as exc:
        raise SaveError(f"cannot write {place}: {exc.strerror or exc}", "choose another place") from exc


def _write(stream: TextIO, text: str) -> None:
    with _writing(stream):
        click.echo(text, file=stream, nl=False)


@contextmanager
def _writing(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        # What Python flushes at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        # A reader that left (head, less) has seen enough.
        if not isinstance(exc, BrokenPipeError):
            from onnxprune.errors import SaveError

            name = "stdout" if stream is sys.stdout else "stderr"
            raise SaveError(f"cannot write to {name}: {exc.strerror}", "give it another place") from exc
