"""Normalisations over an axis that carries channels: such channels are pinned, or go and the norm is rescaled (through_norms).

Statistics over n channels become statistics over the m that stay. What goes on counting n is the divisor, as in SliceGPT
(Ashkboos et al., ICLR 2024: RMSNorm of a sliced model divides by the width before slicing): scale * sqrt(n / m) and
epsilon * n / m. A removed channel then counts as zero in a mean square (RMSNorm: the zeroed twin to the letter), in a variance as
the mean of those that stay (LayerNorm, GroupNorm); the vector that leaves the norm keeps its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from onnxprune.graph.facts import FLOATS
from onnxprune.graph.labels import Flow
from onnxprune.graph.structure import Graph
from onnxprune.network import Ints, Norm, Place

# Operators on the way from a variance to the scale that a factor passes unchanged.
COMMUTES = ("Cast", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def take(flow: Flow, labels: Iterable[Ints], norm: Norm, *, mends: bool = True) -> None:
    """`norm` takes statistics over these labels. `mends`: its parameters can be rescaled, so that labels may go if asked."""
    graph, node = flow.graph, flow.graph.nodes[norm.node]
    found = list(labels)
    mends = mends and all(place is None or scalable(graph, place) for place in (norm.scale, norm.epsilon))
    if flow.through_norms and mends and found:
        flow.norms.append(norm)
        flow.normalised += found
        return
    hint = "; --through-norms lets them go" if mends else ", and it has no stored scale to mend"
    for own in found:
        reason = f"{graph.label(norm.node)!r} normalises over these channels ({node.op_type}){hint}"
        flow.pin(own, node.input[norm.inputs[0]], reason)


def scalable(graph: Graph, place: Place) -> bool:
    """Whether a constant input holds plain numbers that can be multiplied."""
    name = graph.input(*place)
    return name in graph.constants and graph.stored(name) is not None and graph.types.get(name) in FLOATS


def follow(flow: Flow, index: int, position: int, labels: Mapping[int, Ints], rank: int) -> None:
    """An input that is broadcast over a tensor of `rank` axes with these labels, right-aligned: its axes carry them too."""
    graph = flow.graph
    name = graph.input(index, position)
    if not name:
        return
    shape = graph.shapes[name]
    for axis, own in labels.items():
        at = axis - rank + len(shape)
        if at >= 0 and shape[at] == len(own):
            follow_along(flow, index, position, at, own)


def follow_along(flow: Flow, index: int, position: int, axis: int, labels: Ints) -> None:
    """One axis of an input carries these labels: a constant is cut with them, an activation is tied or pins them."""
    name = flow.graph.input(index, position)
    if not name:
        return
    own = flow.labels(name).get(axis)
    if name in flow.graph.constants:
        flow.parameter(index, position, axis, "follows", labels)
    elif own is not None:
        flow.tie(labels, own)
    else:
        flow.pin(labels, name, f"parameter {name!r} is computed at run time")


def last_axes(flow: Flow, index: int, axis: int, norm: Norm, parameters: Iterable[int]) -> None:
    """A norm over the axes from `axis` on, with inputs that are broadcast over them; its other outputs are statistics."""
    graph, node = flow.graph, flow.graph.nodes[index]
    x = node.input[norm.inputs[0]]
    labels, rank = flow.labels(x), len(graph.shapes[x])
    over = {a: own for a, own in labels.items() if a >= axis}
    take(flow, over.values(), replace(norm, axes=tuple(range(axis, rank))))
    for position in parameters:
        follow(flow, index, position, labels, rank)
    flow.give(node.output[0], labels)
    for name in node.output[1:]:
        flow.give(name, {a: own for a, own in labels.items() if a < axis})


def reduced_axes(graph: Graph, index: int) -> set[int] | None:
    """The axes that a reduction takes together; None where they are not known before a run."""
    rank = len(graph.shapes[graph.nodes[index].input[0]])
    if graph.nodes[index].op_type.startswith("Arg"):
        return {int(graph.attribute(index, "axis", 0)) % rank}
    axes = graph.attribute(index, "axes")
    name = graph.input(index, 1)
    if name:
        if name not in graph.values:
            return None
        axes = graph.values[name].tolist()
    if not axes:
        return set() if graph.attribute(index, "noop_with_empty_axes", 0) else set(range(rank))
    return {int(a) % rank for a in axes}


def spelled(graph: Graph, index: int) -> tuple[Norm, bool] | None:
    """The part that a reduction plays in a norm spelled out in single operators, and whether that can be mended.

    Mean and variance or mean square (ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div), a length (ReduceL2, Div; or
    Mul, ReduceSum, Sqrt, Div) or a mean (ReduceMean, Div).
    """
    op, axes = graph.nodes[index].op_type, reduced_axes(graph, index) or set()
    plain = Norm(index, (0,), tuple(sorted(axes)), "zero")
    squares = _squared(graph, graph.nodes[index].input[0]) is not None
    if op in ("ReduceL2", "ReduceL1") or (op == "ReduceSum" and squares):
        # A sum forgets what is zero, and no divisor counts the channels: nothing to mend.
        return (plain, True) if _divides(graph, graph.nodes[index].output[0]) else None
    if op != "ReduceMean":
        return None
    if squares:
        return _variance(graph, plain)
    if _divides(graph, graph.nodes[index].output[0]):
        # A mean that something is divided by (ConvNeXt V2): what counts as the mean of the others does not change it.
        return replace(plain, fill="mean"), True
    return _mean(graph, plain)


def _squared(graph: Graph, tensor: str) -> str | None:
    """What `tensor` is the square of."""
    producer = graph.producer.get(tensor)
    if producer is None:
        return None
    node = graph.nodes[producer]
    if node.op_type == "Mul" and node.input[0] == node.input[1]:
        return str(node.input[0])
    exponent = graph.values.get(node.input[1]) if node.op_type == "Pow" else None
    return str(node.input[0]) if exponent is not None and exponent.size == 1 and float(exponent.reshape(())) == 2 else None


def _divides(graph: Graph, tensor: str) -> bool:
    """Whether a length, maybe bounded from below, is what something is divided by."""
    user = graph.sole_user(tensor)
    if user is None:
        return False
    node = graph.nodes[user]
    if node.op_type == "Div":
        return bool(node.input[1] == tensor and node.input[0] != tensor)
    return node.op_type in (*COMMUTES, "Clip", "Max", "Add", "Sqrt") and _divides(graph, node.output[0])


def _mean(graph: Graph, plain: Norm) -> tuple[Norm, bool] | None:
    """A mean that is subtracted from what it is the mean of, and the square of that is what a variance is the mean of."""
    node = graph.nodes[plain.node]
    for user, _ in graph.users.get(node.output[0], ()):
        if graph.nodes[user].op_type != "Sub" or set(graph.nodes[user].input) != {node.input[0], node.output[0]}:
            continue
        centred = graph.nodes[user].output[0]
        squares = [n for n, _ in graph.users.get(centred, ()) if _squared(graph, graph.nodes[n].output[0]) == centred]
        for variance in {v for square in squares for v, _ in graph.users.get(graph.nodes[square].output[0], ())}:
            if graph.nodes[variance].op_type == "ReduceMean" and reduced_axes(graph, variance) == set(plain.axes):
                found = _variance(graph, replace(plain, node=variance))
                if found is not None:
                    mends = found[1] and all(p is None or scalable(graph, p) for p in (found[0].scale, found[0].epsilon))
                    return replace(plain, fill="mean"), mends
    return None


def _variance(graph: Graph, plain: Norm) -> tuple[Norm, bool] | None:
    """Follow a mean square through Add epsilon and Sqrt to the first constant that the result is multiplied by."""
    tensor, norm, rooted = graph.nodes[plain.node].output[0], plain, False
    while True:
        user = graph.sole_user(tensor)
        if user is None:
            return (norm, False) if rooted else None
        node = graph.nodes[user]
        other = next((p for p, name in enumerate(node.input) if name != tensor), 0)
        constant = graph.input(user, other) in graph.constants
        power = float(graph.values[node.input[1]].reshape(-1)[0]) if node.op_type == "Pow" and constant and other == 1 else 0.0
        if node.op_type == "Add" and constant and not rooted and norm.epsilon is None:
            norm = replace(norm, epsilon=(user, other))
        elif (node.op_type == "Sqrt" or abs(power) == 0.5) and not rooted:
            rooted = True
        elif node.op_type in ("Mul", "Div") and rooted and len(node.input) == 2 and node.input[0] != node.input[1]:
            if constant and (node.op_type == "Mul" or other == 0):
                return replace(norm, scale=(user, other)), scalable(graph, (user, other))
            if constant:
                return norm, False
        elif not (node.op_type in COMMUTES or (node.op_type == "Reciprocal" and rooted)):
            return (norm, False) if rooted else None
        tensor = node.output[0]
