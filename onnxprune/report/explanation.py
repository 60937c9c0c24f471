"""Why the channels of one tensor may go or not (`onnxprune inspect --why`), as a plain dict for JSON and as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from onnxprune.figures import SCHEMA
from onnxprune.graph.why import AxisStory, Explanation, sentence
from onnxprune.report import units

MOST_CAUSES = 3
WITHOUT = {
    "input": "it is an input of the model: no layer makes what lies along its axes",
    "constant": "no channels lie along its axes",
    "activation": "no axis of it carries channels of a layer (they were summed over, or made by an operator without weights)",
}


def describe(explanation: Explanation, path: str | None = None) -> dict[str, Any]:
    """The JSON form. `chain`: the operators from the tensor to what pins it; `text`: the same in one line."""
    axes = [_axis(explanation, story) for story in explanation.axes]
    found = {"tensor": explanation.tensor, "kind": explanation.kind, "axes": axes}
    return {"schema": SCHEMA, "path": path, "why": found}


def _axis(explanation: Explanation, story: AxisStory) -> dict[str, Any]:
    pinned = [
        {
            "tensor": cause.tensor,
            "reason": cause.reason,
            "channels": cause.count,
            "chain": [{"node": s.node, "op": s.op, "tensor": s.tensor, "text": s.text} for s in cause.steps],
            "text": sentence(explanation, cause),
        }
        for cause in story.causes
    ]
    groups = [{"name": name, "kind": kind, "channels": count} for name, kind, count in story.groups]
    return {"axis": story.axis, "length": story.length, "channels": story.channels, "groups": groups, "pinned": pinned}


def show(found: Mapping[str, Any], console: Console, *, verbose: bool = False) -> None:
    """Print what `describe` gives."""
    why = found["why"]
    console.print(Text(), Text(f"{why['kind']} {units.printable(why['tensor'])}", "bold"), sep="\n")
    if not why["axes"]:
        console.print(Text(f"carries no channels: {WITHOUT.get(why['kind'], WITHOUT['constant'])}"))
    for axis in why["axes"]:
        console.print(Text(_headline(axis)))
        for group in axis["groups"]:
            name = units.printable(group["name"])
            console.print(
                Padding(Text(f"{group['channels']:,} can go: group {name} (kind {group['kind']})", "green"), (0, 0, 0, 2))
            )
        shown = axis["pinned"] if verbose else axis["pinned"][:MOST_CAUSES]
        for cause in shown:
            text = f"{cause['channels']:,} may not: {units.printable(cause['text'])}"
            console.print(Padding(Text(text), (0, 0, 0, 2)))
        if len(axis["pinned"]) > len(shown):
            rest = len(axis["pinned"]) - len(shown)
            more = f"{rest} more {'reason' if rest == 1 else 'reasons'}, farther away (--verbose)"
            console.print(Padding(Text(more, "dim"), (0, 0, 0, 2)))


def _headline(axis: Mapping[str, Any]) -> str:
    channels = units.plural(axis["channels"], "channel")
    return f"axis {axis['axis']}: {channels}" + (
        f" on {axis['length']:,} positions" if axis["length"] != axis["channels"] else ""
    )
