"""Order, folding and clean-up of a graph; constants are folded by onnx-graphsurgeon, with its losses made good.

A round trip through graphsurgeon drops the metadata and doc strings of nodes and model, some value_info and all quantization
annotations. So only its *decision* is taken over (which nodes, which constants) and written into the
original protobuf, which keeps everything else as it was.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.logger.logger import G_LOGGER, LoggerSuppress

from onnxprune.devices import quiet
from onnxprune.errors import ModelError

# Above all severities of graphsurgeon, which prints to stdout what our errors say better.
SILENT = 100
# The only standard operators with subgraphs.
WITH_SUBGRAPHS = {"If", "Loop", "Scan", "SequenceMap"}
# Inputs by which a node is told sizes.
SIZES = {"ConstantOfShape": (0,), "Expand": (1,), "Reshape": (1,), "Resize": (3,), "Slice": (1, 2), "Tile": (1,)}


def is_sorted(graph: onnx.GraphProto) -> bool:
    """Whether every node comes after those that produce what it reads."""
    produced_later = {name for node in graph.node for name in node.output if name}
    for node in graph.node:
        if any(name in produced_later for name in reads(node)):
            return False
        produced_later.difference_update(node.output)
    return True


def sort(model: onnx.ModelProto, name: str) -> None:
    """Bring the nodes of `model` into topological order, in place, moving as few as possible. Raises ModelError on a cycle.

    Not by graphsurgeon: it recurses, and takes a chain of some hundred nodes in reverse for a cycle.
    """
    nodes = list(model.graph.node)
    producer = {output: index for index, node in enumerate(nodes) for output in node.output if output}
    waiting = [{producer[n] for n in reads(node) if n in producer} for node in nodes]
    readers: dict[int, list[int]] = {}
    for index, sources in enumerate(waiting):
        for source in sources:
            readers.setdefault(source, []).append(index)
    ready = [index for index, sources in enumerate(waiting) if not sources]
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers.get(order[-1], ()):
            waiting[reader].discard(order[-1])
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        raise ModelError(f"the graph of {name} has a cycle", "export it again: no runtime can order its nodes")
    copies = [onnx.NodeProto.FromString(nodes[index].SerializeToString()) for index in order]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def fold(model: onnx.ModelProto, wanted: set[str]) -> set[str]:
    """Turn the tensors `wanted`, computed from constants alone, into initializers of the same name, in place.

    Only the nodes that compute them are folded; nodes that nothing reads any more leave. Returns what was folded.
    """
    wanted = {o for node in model.graph.node if wanted & set(node.output) for o in node.output if o}
    ancestors = _ancestors(model.graph, wanted)
    try:
        with quiet(), LoggerSuppress(G_LOGGER, SILENT):  # it folds by ONNX Runtime, which has a logger of its own
            graph = gs.import_onnx(_part(model, ancestors, wanted)).fold_constants(fold_shapes=False, recurse_subgraphs=False)
    except Exception:  # graphsurgeon knows no sequences, for one: such weights stay computed, and are pinned
        return set()
    folded: set[str] = set()
    for tensor in graph.tensors().values():
        if tensor.name in wanted and isinstance(tensor, gs.Constant):
            add_initializer(model, onnx.numpy_helper.from_array(tensor.values, tensor.name))
            folded.add(tensor.name)
    _drop(model.graph.node, lambda node: bool(set(node.output) & folded))
    clean(model, {name for name in ancestors if name not in folded})
    return folded


def _part(model: onnx.ModelProto, names: set[str], wanted: set[str]) -> onnx.ModelProto:
    """The nodes and initializers that make `names`, as a model of their own: graphsurgeon copies all that it is given."""
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    part.graph.name = "constants"
    for node in model.graph.node:
        if names & set(node.output):
            part.graph.node.append(node)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            part.graph.initializer.append(tensor)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted))
    return part


def settle(model: onnx.ModelProto, known: Mapping[str, NDArray[Any]]) -> int:
    """Replace the nodes that compute the tensors `known` by initializers of the same name, in place; returns how many."""
    graph = model.graph
    nodes = [node for node in graph.node if node.output and all(o in known for o in node.output if o)]
    settled = {o for node in nodes for o in node.output if o}
    if not settled:
        return 0
    ancestors = _ancestors(graph, settled)
    _drop(graph.node, lambda node: bool(node.output) and all(o in settled for o in node.output if o))
    for name in sorted(settled & _read(graph)):
        add_initializer(model, onnx.numpy_helper.from_array(known[name], name))
    clean(model, ancestors - settled - {i.name for i in graph.input})
    return len(nodes)


def restate_inputs(model: onnx.ModelProto, wanted: Mapping[tuple[str, int], NDArray[Any]]) -> int:
    """Replace inputs, (first output of a node, position), by constants of their own, in place; returns how many."""
    if not wanted:
        return 0
    graph = model.graph
    taken = {name for node in graph.node for name in node.output} | {t.name for t in graph.initializer}
    old: set[str] = set()
    for node in graph.node:
        for (output, position), value in wanted.items():
            if node.output[0] == output:
                old.add(node.input[position])
                name = next(n for i in itertools.count() if (n := f"{output}.sizes" + (f"#{i}" if i else "")) not in taken)
                taken.add(name)
                node.input[position] = add_initializer(model, onnx.numpy_helper.from_array(value, name)).name
    clean(model, _ancestors(graph, old) - {i.name for i in graph.input})
    return len(wanted)


def part_concats(model: onnx.ModelProto) -> int:
    """Give every reader of a small computed shape a Concat of its own, so that each may state other sizes; returns how many."""
    graph = model.graph
    concats = {node.output[0]: node for node in graph.node if node.op_type == "Concat"}
    reads_of = Counter(name for node in graph.node for name in reads(node)) + Counter(o.name for o in graph.output)
    taken = {name for node in graph.node for name in node.output} | {t.name for t in graph.initializer}
    nodes, made = [], 0
    for node in graph.node:
        for position in SIZES.get(node.op_type, ()):
            name = node.input[position] if position < len(node.input) else ""
            if name not in concats or reads_of[name] == 1:
                continue
            copy = onnx.NodeProto.FromString(concats[name].SerializeToString())
            copy.name, copy.output[0] = "", next(n for i in itertools.count(1) if (n := f"{name}#{i}") not in taken)
            taken.add(copy.output[0])
            reads_of[name] -= 1
            node.input[position] = copy.output[0]
            nodes.append(copy)
            made += 1
        nodes.append(node)
    if made:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    return made


def add_initializer(model: onnx.ModelProto, tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Append an initializer; before IR 4 it has to be listed as a graph input too. Returns the stored tensor."""
    model.graph.initializer.append(tensor)
    if model.ir_version < 4:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    stored: onnx.TensorProto = model.graph.initializer[-1]
    return stored


def clean(model: onnx.ModelProto, candidates: set[str]) -> None:
    """Remove, in place, nodes and initializers that make only tensors of `candidates` and that nothing reads any more.

    What was unused in the original stays: it is the user's, not ours.
    """
    graph = model.graph
    readers = Counter(name for node in graph.node for name in set(reads(node)))
    readers.update(o.name for o in graph.output)
    producer = {name: node for node in graph.node for name in node.output if name}
    dead: set[str] = set()
    stack = [name for name in candidates if not readers[name]]
    while stack:
        name = stack.pop()
        if name in dead:
            continue
        dead.add(name)
        node = producer.get(name)
        if node is not None and all(o in candidates and not readers[o] for o in node.output if o):
            stack += [o for o in node.output if o and o not in dead]
            if all(o in dead for o in node.output if o):
                for source in set(reads(node)):
                    readers[source] -= 1
                    if source in candidates and not readers[source]:
                        stack.append(source)
    doomed = {n for n in dead if n not in producer or all(o in dead for o in producer[n].output if o)}
    _drop(graph.node, lambda n: bool(n.output) and all(o in doomed or not o for o in n.output))
    _drop(graph.initializer, lambda t: t.name in doomed)
    _drop(graph.input, lambda i: i.name in doomed)  # before IR 4 every initializer is listed as an input too


def _drop(field: Any, unwanted: Callable[[Any], bool]) -> int:
    """Delete items of a repeated protobuf field without copying the others; returns how many went."""
    doomed = [index for index, item in enumerate(field) if unwanted(item)]
    for index in reversed(doomed):
        del field[index]
    return len(doomed)


def _read(graph: onnx.GraphProto) -> set[str]:
    return {name for node in graph.node for name in reads(node)} | {o.name for o in graph.output}


def reads(node: onnx.NodeProto) -> list[str]:
    """Names a node reads, those captured by its subgraphs included."""
    return [*node.input, *captured(node)]


def captured(node: onnx.NodeProto) -> set[str]:
    """Names that the subgraphs of a node take from outside."""
    found: set[str] = set()
    if node.domain in ("", "ai.onnx") and node.op_type not in WITH_SUBGRAPHS:
        return found
    for attribute in node.attribute:
        for sub in [*([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []), *attribute.graphs]:
            own = {i.name for i in sub.input} | {t.name for t in sub.initializer}
            for inner in sub.node:
                found |= ({n for n in inner.input if n} | captured(inner)) - own
                own |= set(inner.output)
            found |= {o.name for o in sub.output} - own
    return found


def _ancestors(graph: onnx.GraphProto, wanted: set[str]) -> set[str]:
    """The wanted tensors and everything they are computed from."""
    producer = {name: node for node in graph.node for name in node.output}
    found, stack = set(), list(wanted)
    while stack:
        name = stack.pop()
        if name in found:
            continue
        found.add(name)
        if name in producer:
            stack += [n for n in (*producer[name].input, *producer[name].output) if n]
    return found
