"""`onnxprune inspect`: the layers of a model, the channels that go together, those that may not go and why."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Any

import click

from onnxprune_cli import options as read
from onnxprune_cli.output import STDOUT, check_places, show, write_json


@click.command(short_help="Show layers, groups of channels, pins and MACs of a model.")
@click.argument("model")
@read.input_shape_option
@read.kind_option
@read.through_norms_option
@click.option(
    "--why", metavar="TENSOR", help="Explain what holds the channels of an activation, a weight or a layer, step by step."
)
@read.output_options
def inspect(
    model: str, input_shapes: tuple[Any, ...], kinds: tuple[str, ...], through_norms: bool, why: str | None,
    json_to: str | None, verbose: bool, quiet: bool,
) -> int:  # fmt: skip
    """Show what MODEL is made of, as pruning sees it: layers, groups of channels, pins with their reasons, MACs."""
    check_places(json_to, models=[model])
    with redirect_stdout(sys.stderr):
        import onnxprune
        from onnxprune.report import explanation, inspection

        given: dict[str, Any] = {"input_shapes": dict(input_shapes) or None, "kinds": kinds, "through_norms": through_norms}
        if why is None:
            found, form = inspection.describe(onnxprune.inspect(model, **given), model, kinds), inspection.show
        else:
            found, form = explanation.describe(onnxprune.explain(model, why, **given), model), explanation.show
    if not quiet and json_to != STDOUT:
        show(lambda console: form(found, console, verbose=verbose), to_stderr=False)
    if json_to is not None:
        write_json(found, json_to)
    return 0
