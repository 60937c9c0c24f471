"""The command `onnxprune`: commands, errors and exit codes. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from onnxprune_cli import interruption
from onnxprune_cli.bounds_command import bounds
from onnxprune_cli.compare_command import compare
from onnxprune_cli.doctor_command import doctor
from onnxprune_cli.inspect_command import inspect
from onnxprune_cli.methods_command import methods
from onnxprune_cli.papers_command import papers
from onnxprune_cli.prune_command import prune

COMMANDS = (prune, inspect, compare, bounds, methods, papers, doctor)
DEFAULT = prune
TRACEBACKS = "onnxprune.tracebacks"
EXAMPLES = """\b
Examples:
  onnxprune model.onnx --ratio 0.4 --data samples.npz
  onnxprune model.onnx small.onnx --target macs=0.5 --data images/
  onnxprune model.onnx --ratio 0.3 --fail-if 'top1_agreement<0.95' --json report.json

\b
Exit codes: 0 done, every gate passed; 1 a gate failed; 2 usage or unreadable input;
3 nothing could be pruned; 4 a bug of onnxprune; 130 interrupted.
"""


class DefaultGroup(click.Group):
    """Commands, of which `prune` is meant where a model is named instead; every error is one line and an exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[TRACEBACKS] = bool({"-v", "--verbose"} & set(args)) or os.environ.get("ONNXPRUNE_DEBUG", "0") not in ("", "0")
        return super().parse_args(ctx, self._routed(ctx, args) if args else ["--help"])

    def _routed(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0]
        if first in self.commands:
            return args
        if first.startswith("-"):
            ours = first in ctx.help_option_names or (
                not _is_option_of(DEFAULT, first) and difflib.get_close_matches(first, ("--help", "--version"))
            )
            return args if ours else [str(DEFAULT.name), *args]
        self._refuse_misspelt_command(ctx, first)
        return [str(DEFAULT.name), *args]

    def _refuse_misspelt_command(self, ctx: click.Context, word: str) -> None:
        # A name with a dot or a slash was meant as a file, whatever it looks like. (pathlib raises on names that are too long.)
        if "." in word or os.sep in word or os.path.exists(word):  # noqa: PTH110
            return
        near = difflib.get_close_matches(word, self.commands, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"commands are {', '.join(self.commands)}"
        ctx.fail(f"no command and no file is called {word!r}; {remedy}")

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted, nothing was written", err=True)
            ctx.exit(130)
        except Exception as exc:
            interruption.check()  # what an interrupt broke is no bug
            ctx.exit(_explain(exc, ctx.meta[TRACEBACKS]))

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """As click's, with errors in one line; commands return their exit code."""
        extra["standalone_mode"] = False
        try:
            code = super().main(args, *rest, **extra)
            code = interruption.exit_code() or code
        except click.ClickException as exc:
            context = getattr(exc, "ctx", None)
            hint = f" (see {context.command_path} --help)" if context else ""
            _complain(f"{_message(exc)}{hint}")
            code = exc.exit_code
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted, nothing was written", err=True)
            code = 130
        sys.exit(code)


def _is_option_of(command: click.Command, word: str) -> bool:
    name = word.partition("=")[0].replace("_", "-") if word.startswith("--") else word[:2]
    return name == "--" or any(name in (*p.opts, *p.secondary_opts) for p in command.params if isinstance(p, click.Option))


def _message(exc: click.ClickException) -> str:
    """click's words; an unknown option with the nearest one only."""
    if not isinstance(exc, click.NoSuchOption):
        return exc.format_message().removesuffix(".")
    near = difflib.get_close_matches(exc.option_name, exc.possibilities or (), n=1)
    return f"no option {exc.option_name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _complain(message: str) -> None:
    line = " ".join(part.strip() for part in message.splitlines())
    click.echo(f"onnxprune: error: {line}", err=True)


def _explain(exc: Exception, traceback_wanted: bool) -> int:
    """Say what went wrong in one line; the exit code. Errors raised on purpose say it themselves, all others are bugs."""
    from onnxprune.errors import OnnxpruneError

    if isinstance(exc, OnnxpruneError):
        _complain(str(exc))
        code = exc.exit_code
    elif isinstance(exc, MemoryError):
        _complain("out of memory; a smaller --batch or fewer --samples need less")
        code = 2
    else:
        _complain(
            f"unexpected {type(exc).__name__}: {exc}; this is a bug, please report it with the output of `onnxprune doctor`"
        )
        code = 4
    if traceback_wanted:
        click.echo("".join(traceback.format_exception(exc)), err=True, nl=False)
    elif code == 4:
        click.echo("(--verbose or ONNXPRUNE_DEBUG=1 shows where it happened)", err=True)
    return code


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from onnxprune.version import __version__

        click.echo(f"onnxprune {__version__}")
        ctx.exit()


SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda token: token.replace("_", "-")}


@click.group(cls=DefaultGroup, context_settings=SETTINGS, epilog=EXAMPLES)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version.")
def cli() -> None:
    """Prune any ONNX file: from a model to a smaller, faster, repaired, proven one.

    `onnxprune MODEL ...` is short for `onnxprune prune MODEL ...`, whose options `onnxprune prune --help` lists.
    """


for command in COMMANDS:
    cli.add_command(command)


def _open_closed_streams() -> None:
    """What was closed (`>&-`) leads nowhere: nothing is shown there, and no file of ours takes its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  (open as long as we run)


def main() -> NoReturn:
    _open_closed_streams()
    interruption.listen()
    for stream in (sys.stdout, sys.stderr):
        # Names in models and of files may hold what the terminal's encoding cannot say.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    cli.main()
