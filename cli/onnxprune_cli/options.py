"""How the options of the commands are spelled and read; what is wrong with one is said before any work is done."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
TARGETS = ("macs", "params", "bytes", "latency")


def share(text: str) -> float:
    """A share that goes or is set apart: in [0, 1)."""
    value = _float(text)
    if not 0 <= value < 1:
        hint = f", write {value / 100:g}" if 5 <= value < 100 else ""
        raise click.BadParameter(f"{text} is not at least 0 and less than 1{hint}")
    return value


def number(text: str) -> float:
    value = _float(text)
    if not math.isfinite(value):
        raise click.BadParameter(f"{text!r} is no finite number")
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number{_decimal(text)}") from None


def _decimal(text: str) -> str:
    """A hint for 40% and 0,4."""
    percent = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if percent:
        return f", write {float(percent[1]) / 100:g}"
    return f", write {text.replace(',', '.')}" if re.fullmatch(r"\d+,\d+", text) else ""


def target(text: str) -> str:
    """`macs=0.6`: what to bring down, and the share of it to keep."""
    name, equals, kept = text.partition("=")
    if name not in TARGETS or not equals:
        raise click.BadParameter(f"{text!r} is not of the form {', '.join(f'{t}=0.6' for t in TARGETS)}")
    if not 0 < _float(kept) <= 1:
        raise click.BadParameter(f"{kept} is no share to keep, which is more than 0 and at most 1")
    return f"{name}={float(kept)}"


def alignment(text: str) -> str | int:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is neither 'auto' nor a positive number of channels")
    return int(text)


def device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise click.BadParameter(f"{text!r} is not auto, cpu, cuda or cuda:N")
    return text


def numbers(text: str) -> tuple[float, ...]:
    """`0.485,0.456,0.406`, or one number for all channels."""
    values = tuple(_float(part) for part in text.strip("[]() ").split(","))
    if not all(map(math.isfinite, values)):
        raise click.BadParameter(f"{text!r} is not a list of numbers like 0.485,0.456,0.406")
    return values


def input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`name:1,3,224,224`, also with x between or [ ] around the lengths; the name may be left out: then it is ''."""
    name, _, lengths = text.rpartition(":")
    parts = re.split(r"\s*[,x]\s*", lengths.strip("[]() "))
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{text!r} is not a shape like name:1,3,224,224 or 1x3x224x224")
    return name.strip(), tuple(int(part) for part in parts)


def assignment(text: str) -> tuple[str, Any]:
    """`name=value`; numbers, true, false and null are read as such, all else is text."""
    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        raise click.BadParameter(f"{text!r} is not of the form name=value")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


def once(_context: click.Context, option: click.Parameter, given: Sequence[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    """NAME=VALUE pairs of which each name is given once: the last would win without a word."""
    names = [name for name, _ in given]
    for name in names:
        if names.count(name) > 1:
            raise click.BadParameter(f"{name!r} is given twice" if name else "it is given twice", param=option)
    return tuple(given)


def file(_context: click.Context, _option: click.Parameter, name: str | None) -> str | None:
    """A file to write; figures alone go to stdout, and a file called - is hardly meant."""
    if name == "-":
        raise click.BadParameter("'-' is no file, and only --json writes to stdout; name a file")
    return name


def gate(text: str) -> str:
    """An expression on the report; it is passed on as text, once it is known to make sense."""
    from onnxprune.validation import gates

    return gates.parse(text).text


def stacked(decorators: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    """Several decorators as one, in the order in which the help is to list them."""
    return lambda function: functools.reduce(lambda made, decorate: decorate(made), reversed(decorators), function)


def kinds(_context: click.Context, _option: click.Parameter, given: Sequence[str]) -> tuple[str, ...]:
    """`--kind head,neuron` and `--kind head --kind neuron` are the same."""
    if not given:
        return ()
    from onnxprune.request import as_kinds

    found = as_kinds(given)
    if not found:
        raise click.BadParameter("it names no kind; leave it out for all of them")
    return found


kind_option: Callable[[Any], Any] = click.option(
    "--kind",
    "kinds",
    callback=kinds,
    multiple=True,
    metavar="KIND[,KIND...]",
    help="Only channel, neuron, head, head-width, recurrent, expert or embedding.  [default: all but embedding]",
)

through_norms_option: Callable[[Any], Any] = click.option(
    "--through-norms", is_flag=True, help="Let channels go whose statistics a LayerNorm, RMSNorm or GroupNorm takes."
)

output_options: Callable[[Any], Any] = stacked(
    [
        click.option("--json", "json_to", metavar="FILE|-", help="Write the figures as JSON; - is stdout."),
        click.option("-v", "--verbose", is_flag=True, help="List everything; show tracebacks."),
        click.option("-q", "--quiet", is_flag=True, help="Show nothing but errors."),
    ]
)

report_options: Callable[[Any], Any] = stacked(
    [
        click.option("--summary", metavar="FILE", callback=file, help="Write the report as Markdown."),
        click.option(
            "--fail-if", "gates", type=gate, metavar="EXPR", multiple=True, help="Exit with 1 if e.g. 'top1_agreement<0.95'."
        ),
    ]
)

run_options: Callable[[Any], Any] = stacked(
    [
        click.option(
            "--device", type=device, metavar="auto|cpu|cuda[:N]", default="auto", show_default=True, help="Where to run."
        ),
        click.option(
            "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads when latency is measured."
        ),
        click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Samples per run."),
        click.option("--samples", type=click.IntRange(min=1), default=1024, show_default=True, help="Most samples to use."),
    ]
)

image_options: Callable[[Any], Any] = stacked(
    [
        click.option(
            "--mean", type=numbers, metavar="X[,X...]", help="Of image folders: subtracted per channel, of values in 0 .. 1."
        ),
        click.option("--std", type=numbers, metavar="X[,X...]", help="Of image folders: divided by, after --mean."),
        click.option(
            "--layout",
            type=click.Choice(["auto", "nchw", "nhwc"]),
            default="auto",
            show_default=True,
            help="Of image folders: where the channels are.",
        ),
    ]
)

input_shape_option: Callable[[Any], Any] = click.option(
    "--input-shape",
    "input_shapes",
    type=input_shape,
    callback=once,
    metavar="[NAME:]SHAPE",
    multiple=True,
    help="Shape of an input with dynamic axes, e.g. name:1,3,224,224; the name may be left out if there is one input.",
)
