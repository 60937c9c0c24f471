"""Quantised numbers: the operators between floats and integers, and those that compute with integers."""

from __future__ import annotations

from onnxprune.graph.labels import Flow, rule
from onnxprune.network import Ints


@rule("DequantizeLinear", "QuantizeLinear", note="scales and zero points per channel follow; in blocks of the channels: pinned")
def quantize(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    scale = graph.shapes[node.input[1]]
    along = graph.attribute(index, "axis", 1) % max(len(graph.shapes[node.input[0]]), 1)
    found: dict[int, Ints] = {}
    for axis, labels in flow.labels(node.input[0]).items():
        if len(scale) > 1 and axis == along:
            flow.pin(labels, node.input[1], f"{graph.label(index)!r} has scales for blocks of these channels")
            continue
        found[axis] = labels
        if len(scale) > 1 or axis == along:
            for position in range(1, len(node.input)):
                if node.input[position]:
                    flow.scale(index, position, node.input[position], axis, labels)
    flow.give(node.output[0], found)


@rule("DynamicQuantizeLinear", note="one scale for all channels, which depends on those that stay")
def measure(flow: Flow, index: int) -> None:
    node = flow.graph.nodes[index]
    labels = flow.labels(node.input[0])
    flow.measured += list(labels.values())
    flow.give(node.output[0], labels)
