"""`onnxprune prune`, the main job: from a model to a smaller, repaired, proven one and its report."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from onnxprune_cli import options as read
from onnxprune_cli.output import check_places, deliver
from onnxprune_cli.progress import progress_bar


@click.command(short_help="Prune a model (what `onnxprune MODEL` does).")
@click.argument("model")
@click.argument("positional_output", metavar="[OUTPUT]", required=False, callback=read.file)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    callback=read.file,
    help="Where the pruned model goes.  [default: MODEL's name with .pruned.onnx]",
)
@click.option("--method", default="coreset-channel", show_default=True, help="See `onnxprune methods`.")
@click.option("--ratio", type=read.share, metavar="SHARE", help="The share to remove, from 0 to less than 1.")
@click.option(
    "--target",
    type=read.target,
    metavar="NAME=SHARE",
    help="Instead of --ratio: the share to KEEP of macs, params, bytes or latency.",
)
@click.option("--data", metavar="PATH", help="Sample inputs: .npz, .npy, a folder of them, of images, or file.py:function.")
@click.option("--test-data", metavar="PATH", help="Inputs to measure deviation and accuracy on.  [default: held out of --data]")
@click.option("--labels", metavar="PATH", help="Class numbers of --test-data (else of --data): .npy, .npz, .txt or .csv.")
@click.option(
    "--held-out",
    type=read.share,
    metavar="SHARE",
    default=0.2,
    show_default=True,
    help="Share of --data kept apart for the report.",
)
@read.run_options
@read.image_options
@read.input_shape_option
@click.option(
    "--budget",
    default="auto",
    show_default=True,
    metavar="auto|uniform|global|row|bound",
    help="How the ratio is spread over the groups of channels, or over layers (row, bound: of weights alone).",
)
@click.option("--pattern", metavar="N:M", help="Instead of --ratio, of weights: N of every M neighbours stay, e.g. 2:4.")
@click.option("--epsilon", type=click.FloatRange(min=0, min_open=True), help="Instead of --ratio: the error a layer may have.")
@click.option(
    "--guarantee-labels",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="SHARE",
    help="Instead of --ratio: the share of labels that one layer's pruning must not change.",
)
@click.option("--sparse-storage", is_flag=True, help="Of weights: write them as sparse tensors where the file gets smaller.")
@click.option("--keep-ends", is_flag=True, help="Of weights: the first and the last layer keep all of theirs.")
@click.option(
    "--align",
    type=read.alignment,
    metavar="auto|N",
    default="auto",
    show_default=True,
    help="Round kept channels to multiples of this.",
)
@click.option(
    "--repair",
    type=click.Choice(["auto", "least-squares", "mean", "none"]),
    default="auto",
    show_default=True,
    help="How the layers that lost inputs are refitted to sample inputs.",
)
@click.option("--sequential/--parallel", default=None, help="Refit layers one after the other, or apart.  [default: sequential]")
@click.option(
    "--reweigh/--no-reweigh",
    default=True,
    show_default=True,
    help="With --repair none: reweigh the sampled channels, as the paper does.",
)
@click.option("--beta", type=click.FloatRange(min=0, min_open=True), help="Radius of the ball of inputs.  [default: from data]")
@click.option(
    "--option",
    "method_options",
    type=read.assignment,
    callback=read.once,
    metavar="NAME=VALUE",
    multiple=True,
    help="An option of the method.",
)
@click.option("--only", multiple=True, metavar="GLOB", help="Prune only groups and layers with such names.")
@click.option("--skip", multiple=True, metavar="GLOB", help="Leave groups and layers with such names alone.")
@read.kind_option
@read.through_norms_option
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--no-latency", is_flag=True, help="Do not measure latency.")
@click.option("--dry-run", is_flag=True, help="Do all but write the model.")
@read.report_options
@read.output_options
def prune(model: str, **given: Any) -> int:
    """Prune MODEL and report what it cost and gained.

    One of --ratio, --target, --pattern, --epsilon and --guarantee-labels is needed.
    """
    ways = ("ratio", "target", "pattern", "epsilon", "guarantee_labels")
    amounts = [f"--{name.replace('_', '-')}" for name in ways if given[name] is not None]
    if len(amounts) != 1:
        but = f"not by {' and '.join(amounts)} together: " if amounts else ""
        raise click.UsageError(f"say how much should go, {but}--ratio 0.4 (the share removed) or --target macs=0.6 (kept)")
    if given["beta"] is not None and "beta" in dict(given["method_options"]):
        raise click.UsageError("beta is given twice, by --beta and by --option; leave one of them out")
    if given["test_data"] is not None and _named("held_out"):
        raise click.UsageError("--held-out is of --data, and with --test-data nothing of it is kept apart; leave one of them out")
    output = None if given.pop("dry_run") else _output(model, given["output"], given["positional_output"])
    places = {key: given.pop(key) for key in ("json_to", "summary")}
    check_places(output, *places.values(), models=[model], inputs=[given[key] for key in ("data", "test_data", "labels")])
    verbose, quiet = given.pop("verbose"), given.pop("quiet")
    before = _state(output)
    try:
        report = _run(model, output, given, quiet)
        return deliver(report, **places, verbose=verbose, quiet=quiet)
    except KeyboardInterrupt:
        written = _state(output) != before
        click.echo(f"interrupted; the model is in {output}" if written else "interrupted, nothing was written", err=True)
        raise click.exceptions.Exit(130) from None


def _named(parameter: str) -> bool:
    """Whether it was given, be it with the value that it has anyway."""
    return click.get_current_context().get_parameter_source(parameter) is click.core.ParameterSource.COMMANDLINE


def _state(output: str | None) -> tuple[int, int] | None:
    """Tells whether the file was replaced in between."""
    if output is None or not os.path.exists(output):  # noqa: PTH110  (pathlib raises on names that are too long)
        return None
    found = Path(output).stat()
    return found.st_ino, found.st_mtime_ns


def _output(model: str, *named: str | None) -> str:
    """The file to write: named by option or position, else beside the model; never the model itself."""
    wanted = {name for name in named if name is not None}
    if len(wanted) > 1:
        raise click.UsageError(f"two outputs were named: {' and '.join(sorted(wanted))}")
    source = Path(model)
    output = Path(wanted.pop()) if wanted else source.with_name(f"{source.stem}.pruned.onnx")
    # Asked of os.path, for pathlib raises on names that are too long.
    if os.path.exists(output) and os.path.exists(source) and output.samefile(source):  # noqa: PTH110
        raise click.UsageError(f"{output} is the input, which is never overwritten; name another output")
    return str(output)


def _run(model: str, output: str | None, given: dict[str, Any], quiet: bool) -> Any:
    if not os.path.exists(model):  # noqa: PTH110  (pathlib raises on names that are too long)
        from onnxprune.errors import ModelError

        raise ModelError(f"there is no model file {model!r}", "check the path")
    arguments = {key: value for key, value in given.items() if key not in ("output", "positional_output", "no_latency")}
    arguments["options"] = dict(arguments.pop("method_options"))
    arguments["input_shapes"] = dict(arguments["input_shapes"]) or None
    # Scripts of the user, libraries and providers may print; stdout is for the report alone.
    with redirect_stdout(sys.stderr), progress_bar(quiet=quiet) as progress:
        import onnxprune

        result = onnxprune.prune(model, **arguments, progress=progress, latency=not given["no_latency"], output=output)
    return result.report
