"""What was found in a model: its layers, channel groups and pins, as a plain dict for JSON and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from onnxprune.figures import SCHEMA
from onnxprune.network import USUAL_KINDS, Layer, Network
from onnxprune.network import Group as ChannelGroup
from onnxprune.report import units
from onnxprune.report.essentials import pinned_reasons
from onnxprune.report.text import pin_table, plain_table, ruled_table, titled


def describe(network: Network, path: str | None = None, kinds: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON form of `onnxprune inspect`. `macs_per_channel`: what one channel of the group costs in the model as it is.

    kinds: list groups of these alone. `opt_in`: such groups are pruned only when their kind is asked for.
    """
    cost = network.cost()
    return {
        "schema": SCHEMA,
        "path": path,
        "input_shapes": {name: list(shape) for name, shape in network.input_shapes.items()},
        "macs": cost.macs,
        "parameters": cost.parameters,
        "parameter_bytes": cost.bytes,
        "layers": [_layer(layer) for layer in network.layers],
        "groups": [_group(network, group, cost.macs) for group in network.groups if not kinds or group.kind in kinds],
        "pinned": [{"tensor": pin.tensor, "reason": pin.reason, "channels": pin.count} for pin in network.pins],
    }


def _layer(layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "op": layer.op,
        "weight": layer.weight,
        "weight_shape": list(layer.weight_shape),
        "input_shape": list(layer.input_shape),
        "output_shape": list(layer.output_shape),
        "groups": layer.groups,
        "activation": layer.activation[0],
        "shared": layer.shared,
        "macs": layer.macs,
    }


def _group(network: Network, group: ChannelGroup, macs: int) -> dict[str, Any]:
    return {
        "name": group.name,
        "kind": group.kind,
        "channels": group.size,
        "makers": list(group.makers),
        "readers": list(group.readers),
        "opt_in": group.kind not in USUAL_KINDS,
        "macs_per_channel": macs - network.cost({group.name: group.size - 1}).macs,
    }


def show(found: Mapping[str, Any], console: Console, *, verbose: bool = False) -> None:
    """Print what `describe` gives."""
    for part in (_head(found), _layers(found), _groups(found, verbose), _pins(found, verbose)):
        console.print(Text(), part, sep="\n")


def _head(found: Mapping[str, Any]) -> RenderableType:
    shapes = ", ".join(f"{units.printable(name)} {_shape(shape)}" for name, shape in found["input_shapes"].items())
    weights = f"{units.count(found['parameters'])} parameters ({units.size(found['parameter_bytes'])})"
    name = Text(units.printable(found["path"] or "model"), "bold")
    return Group(name, Text(f"{weights}, {units.count(found['macs'])} MACs at {shapes}"))


def _shape(shape: list[int]) -> str:
    return "x".join(str(length) for length in shape) or "scalar"


def _layers(found: Mapping[str, Any]) -> RenderableType:
    layers = found["layers"]
    if not layers:
        return Text("No convolution or fully connected layer with stored weights was found.")
    table = plain_table("weight", "output", "MACs", "share", left=0)
    table.add_column("operator", no_wrap=True)
    table.add_column("layer", overflow="fold")
    for layer in layers:
        share = units.percent(layer["macs"] / found["macs"]) if found["macs"] else units.UNDEFINED
        share = "< 0.1 %" if share == "0.0 %" and layer["macs"] else share
        shapes = (_shape(layer["weight_shape"]), _shape(layer["output_shape"]))
        table.add_row(*shapes, units.count(layer["macs"]), share, layer["op"], Text(units.printable(layer["name"])))
    return titled("Layers", f"{len(layers)} with stored weights", table)


def _groups(found: Mapping[str, Any], verbose: bool) -> RenderableType:
    groups = found["groups"]
    if not groups:
        return Text("No channel of this model can be removed.")
    table = ruled_table()
    for name in ("channels", "MACs each"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("group", overflow="fold")
    for name in ("made by", "read by"):
        table.add_column(name, overflow="fold")
    most = 100 if verbose else 1
    for group in groups:
        layers = (Text(units.shortened(group[key], most), "dim") for key in ("makers", "readers"))
        counts = (f"{group['channels']:,}", units.count(group["macs_per_channel"]))
        kind = Text(f"{group['kind']}{' (only with --kind)' if group['opt_in'] else ''}")
        table.add_row(*counts, kind, Text(units.printable(group["name"])), *layers)
    channels = sum(group["channels"] for group in groups)
    sets = units.plural(len(groups), "set")
    return titled("Groups", f"{channels:,} removable channels in {sets} that live and die together", table)


def _pins(found: Mapping[str, Any], verbose: bool) -> RenderableType:
    pins = found["pinned"]
    if not pins:
        return Text("Nothing is pinned.")
    if not verbose:
        return titled("Pinned", "channels that may not go, and why (--verbose: which tensors)", pin_table(pinned_reasons(pins)))
    table = plain_table("tensor", "reason", "channels", left=2)
    for pin in pins:
        table.add_row(Text(units.printable(pin["tensor"])), Text(units.printable(pin["reason"])), f"{pin['channels']:,}")
    return titled("Pinned", "channels that may not go, and why", table)
