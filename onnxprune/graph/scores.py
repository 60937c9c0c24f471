"""Which products of activations are attention: only their channels are heads and the width of heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from onnxprune.graph.structure import Graph

# What may lie between a product of activations and the Softmax that makes it attention, and how many of these are looked at.
SOFTMAX = ("BiasSoftmax", "LogSoftmax", "QLinearSoftmax", "Softmax")
PRODUCTS = ("Einsum", "FusedMatMul", "MatMul")
BESIDE_SOFTMAX = (
    "Add", "Cast", "Clip", "Concat", "DequantizeLinear", "Div", "Dropout", "DynamicQuantizeLinear", "Expand", "Identity", "Max",
    "Min", "Mul", "QLinearAdd", "QLinearMul", "QuantizeLinear", "Reshape", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze",
    "Where",
)  # fmt: skip
FARTHEST = 64


def attends(graph: Graph, index: int) -> bool:
    """Whether a product of activations gives the scores that a Softmax takes, or takes what one gives: it is attention.

    Linear attention has no Softmax: there a second such product stands in its place.
    """
    node = graph.nodes[index]
    return any(_meets(graph, name, lambda n: [user for user, _ in graph.users.get(n, ())]) for name in node.output) or any(
        _meets(graph, name, lambda n: [graph.producer[n]] if n in graph.producer else []) for name in node.input
    )


def _meets(graph: Graph, start: str, step: Callable[[str], Iterable[int]]) -> bool:
    """Whether there is one in this direction, behind nothing but operators that scale, mask or lay out."""
    seen, waiting = set[int](), [start]
    while waiting and len(seen) < FARTHEST:
        name = waiting.pop()
        for index in set(step(name)) - seen:
            seen.add(index)
            node = graph.nodes[index]
            if node.op_type in SOFTMAX or (node.op_type in PRODUCTS and graph.constants.isdisjoint(node.input)):
                return True
            if node.op_type in BESIDE_SOFTMAX:
                waiting += node.input if name in node.output else node.output
    return False
