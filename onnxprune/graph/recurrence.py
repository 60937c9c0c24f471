"""The matrices of LSTM, GRU and RNN nodes as layers of their own: W reads the inputs, R the hidden states of the step before."""

from __future__ import annotations

from math import prod

from onnxprune.graph.structure import Graph
from onnxprune.network import Geometry, Layer

OPERATORS = ("LSTM", "GRU", "RNN")
WEIGHTS, RECURRENCE, STATES = 1, 2, 0


def recurrent_layers(graph: Graph) -> list[Layer]:
    """W and R of every recurrent node with constant weights, one group per direction.

    R is said to read the hidden states that the node gives, which are those it reads one step later: `input` is empty where the
    graph does not ask for them. Their bias is added inside the node.
    """
    found = []
    for index, node in enumerate(graph.nodes):
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            continue
        states = node.output[STATES] if node.output and node.output[STATES] in graph.shapes else ""
        for position, part, read in ((WEIGHTS, "W", node.input[0]), (RECURRENCE, "R", states)):
            stored = graph.stored(node.input[position])
            if stored is None or stored.quantised or stored.axes != (0, 1, 2) or read not in {"", *graph.shapes}:
                continue
            shape = graph.shapes[node.input[position]]
            steps = prod(graph.shapes[node.input[0]][:2])
            found.append(
                Layer(
                    name=f"{graph.label(index)}.{part}", node=index, op=node.op_type, weight=stored.parameter, bias=None,
                    input=read, output="", weight_shape=shape, input_shape=graph.shapes.get(read, ()), output_shape=(),
                    groups=shape[0], geometry=Geometry(), transposed=False, macs=steps * prod(shape),
                )
            )  # fmt: skip
    return found
