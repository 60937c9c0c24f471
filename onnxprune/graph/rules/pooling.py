"""Pooling, resizing and reductions over positions: the channel axis goes through, whatever happens to the others."""

from __future__ import annotations

from onnxprune.graph import norms, sizes
from onnxprune.graph.facts import FLOATS
from onnxprune.graph.labels import Flow, Resizer, rule
from onnxprune.graph.structure import Graph
from onnxprune.network import Norm

POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare",
)  # fmt: skip


@rule(*POOLS, note="window over height, width, depth")
def pool(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    labels = dict(flow.labels(node.input[0]))
    for axis in [a for a in labels if a >= 2]:
        flow.pin(labels.pop(axis), node.input[0], f"{graph.label(index)!r} slides a window over these channels")
    if len(node.output) > 1 and node.output[1] and graph.users.get(node.output[1]):
        # Indices count over the whole tensor, so they change their meaning with the number of channels.
        for found in labels.values():
            flow.pin(found, node.output[1], f"the indices of {graph.label(index)!r} are read")
    flow.give(node.output[0], labels)


@rule(
    *REDUCTIONS,
    "ArgMax",
    "ArgMin",
    note="pinned along the axes it reduces; a sum of products: as MatMul; in a norm spelled out: as LayerNormalization",
)
def reduce(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    labels = flow.labels(node.input[0])
    gone = norms.reduced_axes(graph, index)
    over = [values for axis, values in labels.items() if gone is None or axis in gone]
    part = norms.spelled(graph, index) if over else None
    keepdims = bool(graph.attribute(index, "keepdims", 1))
    found = {}
    if part is not None:
        norms.take(flow, over, part[0], mends=part[1])
    elif len(over) == 1 and _sums_products(graph, index):
        flow.summed += over
        flow.sums.append(Norm(index, (0,), tuple(a for a in labels if gone is None or a in gone), "zero"))
    else:
        for values in over:
            flow.pin(values, node.input[0], f"{graph.label(index)!r} reduces these channels to one ({node.op_type})")
    for axis, values in labels.items():
        if gone is not None and axis not in gone:
            found[axis if keepdims else axis - sum(g < axis for g in gone)] = values
    flow.give(node.output[0], found)


def _sums_products(graph: Graph, index: int) -> bool:
    """Whether it is a product of two tensors that is summed up: a channel that is gone counts as zero there, as in a MatMul."""
    node = graph.nodes[index]
    producer = graph.producer.get(node.input[0])
    if node.op_type != "ReduceSum" or producer is None or graph.types.get(node.input[0]) not in FLOATS:
        return False
    return graph.nodes[producer].op_type == "Mul" and len(set(graph.nodes[producer].input)) == 2


def _resize_sizes(edit: Resizer, index: int) -> None:
    """Resize may state the whole output shape, channels included."""
    graph = edit.graph
    output, rank = graph.nodes[index].output[0], len(graph.shapes[graph.nodes[index].output[0]])
    if not graph.input(index, 3):
        return
    axes = enumerate(graph.attribute(index, "axes") or range(rank))
    kept = {entry: edit.kept(output, int(axis) % rank) for entry, axis in axes}
    sizes.restate(edit, index, 3, {entry: len(keep) for entry, keep in kept.items() if keep is not None})


@rule(
    "Resize",
    "Upsample",
    resize=_resize_sizes,
    note="not along the channels; channel counts in computed sizes have to be those of the input",
)
def resize(flow: Flow, index: int) -> None:
    graph = flow.graph
    node = graph.nodes[index]
    before, after = graph.shapes[node.input[0]], graph.shapes[node.output[0]]
    found = {}
    for axis, labels in flow.labels(node.input[0]).items():
        if before[axis] != after[axis] or graph.attribute(index, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
            flow.pin(labels, node.input[0], f"{graph.label(index)!r} resizes along these channels")
        else:
            found[axis] = labels
    if node.op_type == "Resize" and graph.input(index, 3):
        rank = len(after)
        axes = graph.attribute(index, "axes") or range(rank)
        sizes.settle(flow, index, 3, {int(a) % rank: entry for entry, a in enumerate(axes)}, found)
    flow.give(node.output[0], found)
