"""`onnxprune methods`: every registered method with its paper and options."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from onnxprune_cli.output import STDOUT, check_places, show, write_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


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
    from rich.padding import Padding
    from rich.text import Text

    from onnxprune.contract import TARGETS
    from onnxprune.report.text import plain_table

    width = max((len(method["name"]) for method in found), default=0)
    for target, words in TARGETS.items():
        of_target = [method for method in found if method["removes"] == target]
        if not of_target:
            continue
        table = plain_table("method", "paper and options", left=2)
        table.columns[0].min_width = width
        for method in of_target:
            table.add_row(Text(method["name"], "bold"), _about(method))
        console.print(Text.assemble((f"{target}s", "bold"), (f"  {words}", "dim")), Padding(table, (0, 0, 1, 2)))


def _about(method: dict[str, Any]) -> Text:
    """The paper, and one line per option."""
    from rich.text import Text

    about = Text(method["paper"])
    for name, option in method["options"].items():
        value = "..." if option["default"] is None else json.dumps(option["default"])
        about.append(f"\n--option {name}={value}", "bold").append(f"  {option['help']}", "dim")
    return about
