"""Order, folding and clean-up of a graph, in place: everything else stays as it was.

Constants that cannot be computed node by node are folded by onnx-graphsurgeon. A round trip through it drops the metadata and doc
strings of nodes and model, some value_info and all quantization annotations. So only its *decision* is taken over (which nodes,
which constants) and written into the original protobuf.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.logger.logger import G_LOGGER, LoggerSuppress

from onnxprune.devices import quiet
from onnxprune.errors import ModelError
from onnxprune.graph.arithmetic import compute

# Above all severities of graphsurgeon, which prints to stdout what our errors say better.
SILENT = 100
# Elements of weights that are folded at once, a little more at most than by one weight.
PORTION = 1 << 21
# The only standard operators with subgraphs.
WITH_SUBGRAPHS = {"If", "Loop", "Scan", "SequenceMap"}
# Inputs by which a node is told sizes.
SIZES = {"ConstantOfShape": (0,), "Expand": (1,), "Reshape": (1,), "Resize": (3,), "Slice": (1, 2), "Tile": (1,)}


def is_sorted(graph: onnx.GraphProto) -> bool:
    """Whether every node comes after those that produce what it reads."""
    read: set[str] = set()
    for node in graph.node:
        read.update(reads(node))
        read.discard("")
        if not read.isdisjoint(node.output):
            return False
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
    folded: set[str] = set()
    for names, portion in _portions(model.graph, wanted):
        found = _folded(_part(model, names, portion), portion)
        settle(model, found)
        folded |= found.keys()
    return folded


def _folded(part: onnx.ModelProto, wanted: set[str]) -> dict[str, NDArray[Any]]:
    """Computed node by node; by graphsurgeon, which is slower, where a node is not known or rounds to half precision."""
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in part.opset_import}
    known = {t.name: onnx.numpy_helper.to_array(t) for t in part.graph.initializer}
    for node in part.graph.node:
        found = compute(node, {name: known[name] for name in node.input if name}, opsets)
        if found is None or any(value.dtype.kind in "fV" and value.dtype.itemsize < 4 for value in found):
            return _folded_by_graphsurgeon(part, wanted)
        known.update(zip((o for o in node.output if o), found, strict=True))
    return {name: known[name] for name in wanted}


def _folded_by_graphsurgeon(part: onnx.ModelProto, wanted: set[str]) -> dict[str, NDArray[Any]]:
    try:
        with quiet(), LoggerSuppress(G_LOGGER, SILENT):  # it folds by ONNX Runtime, which has a logger of its own
            graph = gs.import_onnx(part).fold_constants(fold_shapes=False, recurse_subgraphs=False)
    except Exception:  # graphsurgeon knows no sequences, for one: such weights stay computed, and are pinned
        return {}
    return {t.name: t.values for t in graph.tensors().values() if t.name in wanted and isinstance(t, gs.Constant)}


def _portions(graph: onnx.GraphProto, wanted: set[str]) -> list[tuple[set[str], set[str]]]:
    """What is computed, with all that makes it, in portions: each is copied several times, which all at once would not fit."""
    producer = {name: node for node in graph.node for name in node.output}
    sizes = {t.name: prod(t.dims) for t in graph.initializer}
    found: list[tuple[set[str], set[str]]] = []
    for outputs in [{o for o in node.output if o} for node in graph.node if not wanted.isdisjoint(node.output)]:
        names = _ancestors(producer, outputs)
        if not found or sum(sizes.get(name, 0) for name in found[-1][0]) > PORTION:
            found.append((set(), set()))
        found[-1][0].update(names)
        found[-1][1].update(outputs)
    return found


def _part(model: onnx.ModelProto, names: set[str], wanted: set[str]) -> onnx.ModelProto:
    """The nodes and initializers that make `names`, as a model of their own: graphsurgeon copies all that it is given."""
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    part.graph.name = "constants"
    part.graph.node.extend(node for node in model.graph.node if not names.isdisjoint(node.output))
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in names)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted))
    return part


def settle(model: onnx.ModelProto, known: Mapping[str, NDArray[Any]]) -> int:
    """Replace the nodes that compute the tensors `known` by initializers of the same name, in place; returns how many."""
    graph = model.graph
    doomed = [i for i, node in enumerate(graph.node) if node.output and all(o in known for o in node.output if o)]
    if not doomed:
        return 0
    before = _read(graph)
    settled = {o for i in doomed for o in graph.node[i].output if o}
    delete(graph.node, doomed)
    for name in sorted(settled & _read(graph)):
        add_initializer(model, onnx.numpy_helper.from_array(known[name], name))
    clean(model, before)
    return len(doomed)


def restate_inputs(model: onnx.ModelProto, wanted: Mapping[tuple[str, int], NDArray[Any]]) -> int:
    """Replace inputs, (first output of a node, position), by constants of their own, in place; returns how many."""
    if not wanted:
        return 0
    graph = model.graph
    before = _read(graph)
    taken = {name for node in graph.node for name in node.output} | {t.name for t in graph.initializer}
    for node in graph.node:
        for (output, position), value in wanted.items():
            if node.output[0] == output:
                name = next(n for i in itertools.count() if (n := f"{output}.sizes" + (f"#{i}" if i else "")) not in taken)
                taken.add(name)
                node.input[position] = add_initializer(model, onnx.numpy_helper.from_array(value, name)).name
    clean(model, before)
    return len(wanted)


def part_concats(model: onnx.ModelProto) -> int:
    """Give every reader of a small computed shape a Concat of its own, so that each may state other sizes; returns how many."""
    graph = model.graph
    concats = {node.output[0]: node for node in graph.node if node.op_type == "Concat"}
    readers = [name for node in graph.node for name in reads(node) if name in concats]
    reads_of = Counter([*readers, *(o.name for o in graph.output)])
    if all(reads_of[name] < 2 for name in concats):
        return 0
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
    """Remove, in place, nodes and initializers of which something in `candidates` was read before, and nothing is read any more.

    What was unused in the original stays: it is the user's, not ours.
    """
    graph = model.graph
    wiring = [(reads(node), [o for o in node.output if o]) for node in graph.node]
    readers = Counter(name for names, _ in wiring for name in names)
    readers.update(o.name for o in graph.output)
    doomed = []
    for index in reversed(range(len(wiring))):  # sorted: the readers of a node come after it
        names, made = wiring[index]
        if not any(readers[o] for o in made) and not candidates.isdisjoint(made):
            doomed.append(index)
            readers.subtract(names)
    delete(graph.node, doomed[::-1])
    dead = {t.name for t in graph.initializer if t.name in candidates and not readers[t.name]}
    for field in (graph.initializer, graph.input):  # before IR 4 every initializer is listed as an input too
        delete(field, [index for index, item in enumerate(field) if item.name in dead])


def delete(field: Any, doomed: Sequence[int]) -> None:
    """Delete items of a repeated protobuf field, by their indices in ascending order, without copying the others."""
    for index in reversed(doomed):
        del field[index]


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


def _ancestors(producer: Mapping[str, onnx.NodeProto], wanted: set[str]) -> set[str]:
    """The wanted tensors and everything they are computed from."""
    found, stack = set(), list(wanted)
    while stack:
        name = stack.pop()
        if name in found:
            continue
        found.add(name)
        if name in producer:
            stack += [n for n in (*producer[name].input, *producer[name].output) if n]
    return found
