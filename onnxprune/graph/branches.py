"""An If whose condition is the same in every run becomes the branch that is taken, in place: what is inside can be followed then.

torch.onnx writes one wherever a script asks for a length (squeeze) or for a flag, known though it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import onnx
from onnx import helper

from onnxprune.graph import surgeon
from onnxprune.graph.structure import Graph

SUBGRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def take_branches(graph: Graph) -> int:
    """Change `graph.model`; the function it computes stays the same. Returns how many nodes were replaced."""
    found = {index: branch for index, node in enumerate(graph.nodes) if (branch := _taken(graph, node)) is not None}
    if not found:
        return 0
    model = graph.model
    before = {name for node in model.graph.node for name in surgeon.reads(node)}
    names = {*graph.producer, *graph.parameters, *graph.inputs, *graph.constants, *(node.name for node in graph.nodes)}
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(list(model.graph.node)):
        nodes += [node] if index not in found else _inside(model, node, found[index], names)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    surgeon.clean(model, before)
    return len(found)


def _taken(graph: Graph, node: onnx.NodeProto) -> onnx.GraphProto | None:
    """The branch that is taken in every run. One with subgraphs of its own, or sparse weights, stays where it is."""
    if node.op_type != "If" or node.domain not in ("", "ai.onnx"):
        return None
    asked = node.input[0]
    if asked not in graph.values or not bool(graph.fixed[asked].all()):
        return None
    name = "then_branch" if bool(graph.values[asked].reshape(-1)[0]) else "else_branch"
    branch = next(a.g for a in node.attribute if a.name == name)
    plain = not branch.sparse_initializer and not any(a.type in SUBGRAPHS for inner in branch.node for a in inner.attribute)
    return branch if plain else None


def _inside(model: onnx.ModelProto, node: onnx.NodeProto, branch: onnx.GraphProto, taken: set[str]) -> Iterator[onnx.NodeProto]:
    """The nodes of a branch, with names that are free outside; its weights are moved into the model."""
    within = [t.name for t in branch.initializer] + [o for inner in branch.node for o in inner.output if o]
    renamed = {name: _free(name, taken) for name in within}
    for tensor in branch.initializer:
        weight = onnx.TensorProto()
        weight.CopyFrom(tensor)
        weight.name = renamed[tensor.name]
        surgeon.add_initializer(model, weight)
    for inner in branch.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(inner)
        copy.name = _free(inner.name, taken) if inner.name else ""
        copy.input[:] = [renamed.get(name, name) for name in inner.input]
        copy.output[:] = [renamed.get(name, name) for name in inner.output]
        yield copy
    for made, output in zip(branch.output, node.output, strict=True):
        if output:
            yield helper.make_node("Identity", [renamed.get(made.name, made.name)], [output])


def _free(wanted: str, taken: set[str]) -> str:
    name = next(n for i in itertools.count() if (n := wanted + (f"#{i}" if i else "")) not in taken)
    taken.add(name)
    return name
