"""`onnxprune compare`: how two models differ on the same inputs, and how fast each is."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Any

import click

from onnxprune_cli import options as read
from onnxprune_cli.output import check_places, deliver


@click.command(short_help="Compare two models on the same inputs.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--data", metavar="PATH", required=True, help="Inputs: .npz, .npy, a folder of them, of images, or file.py:function."
)
@click.option("--labels", metavar="PATH", help="Class numbers of the inputs: .npy, .npz, .txt or .csv.")
@read.run_options
@read.image_options
@read.report_options
@read.output_options
def compare(
    first: str, second: str, json_to: str | None, summary: str | None, verbose: bool, quiet: bool, **arguments: Any
) -> int:
    """Compare model B with model A: size, latency, deviation of the outputs, accuracy."""
    check_places(json_to, summary, models=(first, second), inputs=(arguments["data"], arguments["labels"]))
    with redirect_stdout(sys.stderr):
        import onnxprune

        report = onnxprune.compare(first, second, **arguments)
    return deliver(report, json_to=json_to, summary=summary, verbose=verbose, quiet=quiet)
