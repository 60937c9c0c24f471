"""`onnxprune bounds`: what theorems and norms say of pruning a model before it is done."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Any

import click

from onnxprune_cli import options as read
from onnxprune_cli.output import STDOUT, check_places, show, write_json


@click.command(short_help="Say beforehand what pruning weights can cost at most.")
@click.argument("model")
@click.option("--epsilon", type=read.number, metavar="E", help="Error of the output that is allowed: how much may go?")
@click.option(
    "--delta", type=read.number, metavar="D", default=0.05, show_default=True, help="Probability with which theorems may fail."
)
@click.option("--alpha", type=read.number, metavar="A", help="Of the D weights of a layer D^(1 - A) go, as in the theorems.")
@click.option(
    "--ratio",
    type=read.share,
    metavar="R",
    help="Share of the weights of each inner layer that goes, the smallest first.  [default: what --epsilon allows, else 0.5]",
)
@click.option("--radius", type=read.number, metavar="R", default=1.0, show_default=True, help="Largest norm of an input.")
@read.input_shape_option
@read.output_options
def bounds(
    model: str, epsilon: float | None, delta: float, alpha: float | None, ratio: float | None, radius: float,
    input_shapes: tuple[Any, ...], json_to: str | None, verbose: bool, quiet: bool,
) -> int:  # fmt: skip
    """Say beforehand what pruning the weights of MODEL can cost at most.

    Norms and moments of its layers, the error that pruning by magnitude cannot exceed whatever the input, and what the theorems
    of Qian and Klabjan promise of it, or why they do not. The first and the last layer stay whole.
    """
    check_places(json_to, models=[model])
    with redirect_stdout(sys.stderr):
        from onnxprune.report import bounds as form
        from onnxprune.theory import guarantee

        made = guarantee.bounds(
            model, epsilon=epsilon, delta=delta, alpha=alpha, ratio=ratio, radius=radius, input_shapes=dict(input_shapes) or None
        )
        found = form.describe(made, model, epsilon, delta)
    if not quiet and json_to != STDOUT:
        show(lambda console: form.show(found, console, verbose=verbose), to_stderr=False)
    if json_to is not None:
        write_json(found, json_to)
    return 0
