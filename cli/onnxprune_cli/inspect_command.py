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
@read.output_options
def inspect(
    model: str, input_shapes: tuple[Any, ...], kinds: tuple[str, ...], json_to: str | None, verbose: bool, quiet: bool
) -> int:
    """Show what MODEL is made of, as pruning sees it: layers, groups of channels, pins with their reasons, MACs."""
    check_places(json_to, inputs=(model,))
    with redirect_stdout(sys.stderr):
        import onnxprune
        from onnxprune.report import inspection

        network = onnxprune.inspect(model, input_shapes=dict(input_shapes) or None, kinds=kinds)
        found = inspection.describe(network, model, kinds)
    if not quiet and json_to != STDOUT:
        show(lambda console: inspection.show(found, console, verbose=verbose), to_stderr=False)
    if json_to is not None:
        write_json(found, json_to)
    return 0
