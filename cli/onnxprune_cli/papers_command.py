"""`onnxprune papers`: rerun a paper's experiment on a model of one's own, with the paper's figures beside it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune_cli import options as read
from onnxprune_cli.output import STDOUT, check_places, show, write_json
from onnxprune_cli.progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console

    from onnxprune.experiments import Figure

INPUTS = ("model", "data", "test_data", "labels")


@click.command(short_help="Rerun the experiments of the papers on a model of yours.")
@click.argument("name", required=False)
@click.option("--model", metavar="FILE", help="The model to run it on; not for experiments on random matrices.")
@click.option("--data", metavar="PATH", help="Samples to calibrate on, as for `onnxprune prune`.")
@click.option("--test-data", metavar="PATH", help="Samples to judge by.")
@click.option("--labels", metavar="PATH", help="Class numbers of --test-data.")
@click.option("--samples", type=click.IntRange(min=1), default=1024, show_default=True, help="Most calibration samples to use.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Repetitions of what is random.")
@click.option("--picture", metavar="FILE", help="Draw it: FILE.png or FILE.svg; further figures get a number behind the name.")
@read.output_options
def papers(name: str | None, **given: Any) -> int:
    """Rerun the experiment NAME of a paper; without NAME, list them."""
    asked = [_option(key) for key in (*INPUTS, "picture") if given[key]]
    if name is None and asked:
        raise click.UsageError(f"{asked[0]} is for an experiment: name one of those that `onnxprune papers` lists")
    check_places(given["json_to"], given["picture"], models=[given["model"]], inputs=[given[key] for key in INPUTS[1:]])
    with redirect_stdout(sys.stderr):
        found = _list() if name is None else _run(name, given)
    if given["json_to"] is not None:
        write_json(found, given["json_to"])
    if given["json_to"] != STDOUT and not given["quiet"]:
        show(lambda console: (_draw_list if name is None else _draw)(found, console), to_stderr=False)
    return 0


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _list() -> dict[str, Any]:
    from onnxprune.experiments import EXPERIMENTS

    rows = [{"name": e.name, "paper": e.paper, "kind": e.kind} for e in sorted(EXPERIMENTS.values(), key=lambda e: e.name)]
    return {"experiments": rows}


def _run(name: str, given: dict[str, Any]) -> dict[str, Any]:
    from onnxprune.errors import UnknownNameError, UsageError
    from onnxprune.experiments import EXPERIMENTS, no_case, open_case
    from onnxprune.report import picture

    if name not in EXPERIMENTS:
        raise UnknownNameError("experiment", name, EXPERIMENTS)
    chosen = EXPERIMENTS[name]
    place = Path(given["picture"]) if given["picture"] else None
    if place is not None and place.suffix not in (".png", ".svg"):
        raise UsageError(f"a picture called {place.name!r}", "end its name in .png or .svg")
    there = [_option(key) for key in INPUTS if given[key]]
    if chosen.kind == "none":
        if there:
            raise UsageError(f"{name} runs on random matrices, not on a model", f"leave out {', '.join(there)}")
        case = no_case()
    else:
        missing = [_option(key) for key in INPUTS if not given[key]]
        if missing:
            raise UsageError(f"{name} runs on a model with data: {', '.join(missing)} missing", "see `onnxprune papers --help`")
        case = open_case(Path(given["model"]), given["data"], given["test_data"], given["labels"], given["samples"])
    with progress_bar(quiet=given["quiet"]) as progress:
        result = chosen.run(case, given["seeds"], progress)
    pictures = _places(place, len(result.figures))
    for figure, path in zip(result.figures, pictures, strict=False):
        picture.draw(figure, path, f"{chosen.paper}; {case.name}")
    return {
        "name": name, "paper": chosen.paper, "model": case.name, "seeds": given["seeds"], "header": list(result.header),
        "rows": [list(row) for row in result.rows], "claim": result.claim, "verdict": result.verdict,
        "remarks": list(result.remarks), "pictures": [str(p) for p in pictures],
        "figures": [_figure(figure) for figure in result.figures],
    }  # fmt: skip


def _places(place: Path | None, count: int) -> list[Path]:
    if place is None:
        return []
    return [place if i == 0 else place.with_stem(f"{place.stem}-{i + 1}") for i in range(count)]


def _figure(figure: Figure) -> dict[str, Any]:
    """All that it takes to draw it again."""
    lines = [
        {"label": line.label, "x": list(line.x), "y": list(line.y), "spread": line.spread and list(line.spread),
         "paper": line.paper, "level": line.level, "like": line.like}
        for line in figure.lines
    ]  # fmt: skip
    return {
        "title": figure.title, "x": figure.x_label, "y": figure.y_label, "log_x": figure.log_x, "log_y": figure.log_y,
        "percent": figure.percent, "lines": lines,
    }  # fmt: skip


def _draw_list(found: dict[str, Any], console: Console) -> None:
    from rich.text import Text

    from onnxprune.report.text import plain_table

    table = plain_table("experiment", "runs on", "paper", left=3)
    kinds = {"mlp": "a fully connected net", "cnn": "a convolutional net", "none": "random matrices"}
    for row in found["experiments"]:
        table.add_row(Text(row["name"], "bold"), kinds.get(row["kind"], row["kind"]), Text(row["paper"]))
    console.print(table)


def _words(rows: list[list[str]]) -> int:
    """How many columns from the left are words: the first, and those after it in which no cell begins like a number."""
    columns = list(zip(*rows, strict=True))
    return next((i for i, column in enumerate(columns) if i and any(cell[:1] in "0123456789+-" for cell in column)), 1)


def _draw(found: dict[str, Any], console: Console) -> None:
    from rich.text import Text

    from onnxprune.report.text import plain_table

    console.print(Text.assemble((found["name"], "bold"), f"  {found['paper']}, on {found['model']}"))
    table = plain_table(*found["header"], left=_words(found["rows"]))
    for row in found["rows"]:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)
    for who, said in (("paper", found["claim"]), ("here", found["verdict"])):
        if said:
            console.print(Text.assemble((f"{who:<7}", "bold"), said))
    for remark in found["remarks"]:
        console.print(Text(remark, "dim"))
    for path in found["pictures"]:
        console.print(Text.assemble("drawn in ", (path, "bold")))
