"""`onnxprune methods`: every registered method with its paper and options."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from onnxprune_cli.output import STDOUT, check_places, show, write_json

if TYPE_CHECKING:
    from rich.console import Console


@click.command(short_help="List the pruning methods with paper and options.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write the list as JSON; - is stdout.")
def methods(json_to: str | None) -> int:
    """List the pruning methods: what goes, the paper, and what --option takes."""
    check_places(json_to)
    with redirect_stdout(sys.stderr):
        found = _describe()
    if json_to is not None:
        write_json({"methods": found}, json_to)
    if json_to != STDOUT:
        show(lambda console: _draw(found, console), to_stderr=False)
    return 0


def _describe() -> list[dict[str, Any]]:
    from onnxprune.methods import known

    return [
        {
            "name": name,
            "removes": method.target,
            "paper": method.paper,
            "options": {option: {"default": o.default, "help": o.help} for option, o in method.options.items()},
        }
        for name, method in known().items()
    ]


def _draw(found: list[dict[str, Any]], console: Console) -> None:
    from rich.text import Text

    from onnxprune.report.text import plain_table

    table = plain_table("method", "removes", "paper and options", left=3)
    for method in found:
        about = Text(method["paper"])
        for name, option in method["options"].items():
            value = "..." if option["default"] is None else option["default"]
            about.append(f"\n--option {name}={value}", "bold").append(f"  {option['help']}", "dim")
        table.add_row(Text(method["name"], "bold"), f"{method['removes']}s", about)
    console.print(table)
