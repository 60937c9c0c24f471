"""Attention as one node: heads go whole, in grouped-query attention with all that read the same key/value head. Widths stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.graph.labels import Flow, Resizer, rule
from onnxprune.graph.rules import stand_ins
from onnxprune.graph.rules.stand_ins import MICROSOFT
from onnxprune.network import Ints

NOTE = "whole heads, in grouped-query attention whole key/value groups; the width of the heads, and heads in a cache: pinned"
ROTARY = "whole heads; the width of the heads: pinned"


def _resize_heads(edit: Resizer, index: int) -> None:
    """Head counts that the node states: the share that is left of its output."""
    graph = edit.graph
    output = graph.nodes[index].output[0]
    axis = _axis(graph.shapes[output])
    kept = edit.kept(output, axis)
    if kept is None:
        return
    whole = graph.shapes[output][axis]
    for name in ("q_num_heads", "kv_num_heads", "num_heads"):
        count = graph.attribute(index, name, 0)
        if count:
            edit.set_attribute(index, name, count * len(kept) // whole)
    widths = graph.attribute(index, "qkv_hidden_sizes")
    if widths:
        edit.set_attribute(index, "qkv_hidden_sizes", [n * len(kept) // whole for n in widths])


def _axis(shape: Sequence[int]) -> int:
    """Where the heads are: (batch, heads, sequence, width), (batch, sequence, heads * width) or (..., heads, 2 or 3, width)."""
    return {4: 1, 5: 2}.get(len(shape), len(shape) - 1)


def _heads(flow: Flow, index: int, position: int, axis: int, count: int) -> Ints | None:
    """Labels of the heads that lie along an axis of an input; its other axes, and the width of the heads, are pinned."""
    graph = flow.graph
    name = graph.input(index, position)
    labels = dict(flow.labels(name))
    own = labels.pop(axis, None)
    for rest in labels.values():
        flow.pin(rest, name, f"{graph.label(index)!r} attends along these channels")
    if own is None:
        return None
    heads, width = flow.split(own.reshape(count, -1))
    if width is not None:
        flow.pin(width, name, f"{graph.label(index)!r} keeps the width of its heads")
    if heads is None:
        heads = flow.fresh(count)
        flow.pin(heads, name, f"{graph.label(index)!r} keeps its heads: those of {name!r} are the same channels")
    return heads


def _bind(flow: Flow, index: int, position: int, axis: int, heads: Ints, *, role: str = "follows", why: str = "") -> None:
    """An input with a part for every head: activations are tied, constants are cut, one without channels pins the heads."""
    graph = flow.graph
    name = graph.input(index, position)
    if not name:
        return
    rank = len(graph.shapes[name])
    if not -rank <= axis < rank or graph.shapes[name][axis] == 1 < len(heads):
        flow.pin_all(name, f"{graph.label(index)!r} attends along these channels")  # broadcast over the heads
        return
    axis %= rank
    if name in graph.constants:
        labels = np.repeat(heads, graph.shapes[name][axis] // len(heads))
        flow.parameter(index, position, axis, "makes" if role == "makes" else "follows", labels)
        return
    found = _heads(flow, index, position, axis, len(heads))
    if found is None:
        flow.pin(heads, name, why or f"{graph.label(index)!r} has a head for each part of {name!r}, which carries no channels")
    else:
        flow.tie(found, heads)


def _vector(flow: Flow, index: int, position: int, labels: Ints) -> None:
    """A bias over all of `labels`."""
    graph = flow.graph
    name = graph.input(index, position)
    if not name:
        return
    if name in graph.constants and graph.shapes[name] == labels.shape:
        flow.parameter(index, position, 0, "follows", labels)
    else:
        flow.pin(labels, name, f"{graph.label(index)!r} adds {name!r}, which is computed at run time")
        flow.pin_all(name, f"{graph.label(index)!r} adds it to its heads")


def _finish(
    flow: Flow, index: int, own: Ints, shared: Ints, *, axis: int = 1, mask: int, pasts: Sequence[int],
    presents: Sequence[int], used: Sequence[int],
) -> None:  # fmt: skip
    """What all forms have in common: the mask, the cache of keys and values, the output, and inputs that carry no heads."""
    graph = flow.graph
    flow.mark(shared, "head")
    _bind(flow, index, mask, -3, own)
    for position in pasts:
        why = f"{graph.label(index)!r} keeps its heads: {graph.input(index, position)!r} holds those of earlier steps"
        _bind(flow, index, position, axis, shared, why=why)
    for position in set(range(len(graph.nodes[index].input))) - {mask, *pasts, *used}:
        flow.pin_all(graph.input(index, position), f"{graph.label(index)!r} attends along these channels")
    outputs = [*graph.nodes[index].output, *[""] * 4]
    for position in presents:
        flow.give(outputs[position], {axis: shared})
    flow.give(outputs[3], {1: own})
    shape = graph.shapes[outputs[0]]
    flow.give(outputs[0], {_axis(shape): np.repeat(own, shape[_axis(shape)] // len(own))})


@rule("Attention", resize=_resize_heads, note=NOTE)
def attention(flow: Flow, index: int) -> None:
    graph = flow.graph
    counts = []
    for position, stated in enumerate(("q_num_heads", "kv_num_heads", "kv_num_heads")):
        shape = graph.shapes[graph.input(index, position)]
        counts.append(shape[1] if len(shape) == 4 else graph.attribute(index, stated, 1))
    shared = flow.fresh(counts[1])
    own = np.repeat(shared, counts[0] // counts[1])
    for position, heads in enumerate((own, shared, shared)):
        _bind(flow, index, position, _axis(graph.shapes[graph.input(index, position)]), heads, role="makes")
    _finish(flow, index, own, shared, mask=3, pasts=(4, 5), presents=(1, 2), used=(0, 1, 2))


@rule("MultiHeadAttention", domain=MICROSOFT, resize=_resize_heads, shape=stand_ins.attended, note=NOTE)
def multi_head_attention(flow: Flow, index: int) -> None:
    """Query, key and value apart, or packed as (batch, sequence, heads, 3 or 2, width), or keys from outside as a cache is."""
    graph = flow.graph
    heads = flow.fresh(graph.attribute(index, "num_heads", 1))
    widths = []
    for position in [p for p in range(3) if graph.input(index, p)]:
        shape = graph.shapes[graph.input(index, position)]
        _bind(flow, index, position, _axis(shape), heads, role="makes")
        widths.append(shape[-1] // len(heads) if len(shape) == 3 else shape[-1])
    every = (widths[0], widths[min(1, len(widths) - 1)], widths[-1])
    _vector(flow, index, 3, np.concatenate([np.repeat(heads, width) for width in every]))
    _finish(flow, index, heads, heads, mask=5, pasts=(6, 7), presents=(1, 2), used=(0, 1, 2, 3))


@rule("GroupQueryAttention", domain=MICROSOFT, resize=_resize_heads, shape=stand_ins.grouped, note=NOTE)
def group_query_attention(flow: Flow, index: int) -> None:
    """As MultiHeadAttention; queries may be packed with the keys and values that follow them."""
    graph = flow.graph
    shared = flow.fresh(graph.attribute(index, "kv_num_heads", 1))
    own = np.repeat(shared, graph.attribute(index, "num_heads", 1) // len(shared))
    parts = (own, shared, shared) if graph.input(index, 1) else (np.concatenate([own, shared, shared]),)
    for position, heads in enumerate(parts):
        _bind(flow, index, position, 2, heads, role="makes")
    _vector(flow, index, 11, own)
    for position in [p for p in (12, 13) if graph.input(index, p)]:
        flow.pin(shared, graph.input(index, position), f"{graph.label(index)!r} keeps its heads: their cache is quantised")
    _finish(flow, index, own, shared, mask=10, pasts=(3, 4), presents=(1, 2), used=(0, 1, 2, 11))


@rule("Attention", domain=MICROSOFT, resize=_resize_heads, shape=stand_ins.values_of_packed, note=NOTE)
def packed_attention(flow: Flow, index: int) -> None:
    """Its own weights (inputs, queries + keys + values) make the heads."""
    graph = flow.graph
    name, weights = graph.input(index, 0), graph.input(index, 1)
    heads = flow.fresh(graph.attribute(index, "num_heads", 1))
    sizes = graph.attribute(index, "qkv_hidden_sizes") or [graph.shapes[weights][1] // 3] * 3
    labels = dict(flow.labels(name))
    read = labels.pop(len(graph.shapes[name]) - 1, None)
    for rest in labels.values():
        flow.pin(rest, name, f"{graph.label(index)!r} attends along these channels")
    made = np.concatenate([np.repeat(heads, n // len(heads)) for n in sizes])
    if weights not in graph.constants:
        flow.pin(heads, weights, f"the weights of {graph.label(index)!r} are computed at run time")
        flow.pin_all(name, f"the weights of {graph.label(index)!r} are computed at run time")
        flow.pin_all(weights, f"the weights of {graph.label(index)!r} are computed at run time")
    else:
        if read is not None:
            flow.parameter(index, 1, 0, "reads", read)
        flow.parameter(index, 1, 1, "makes", made)
    _vector(flow, index, 2, made)
    _finish(flow, index, heads, heads, axis=2, mask=5, pasts=(4,), presents=(1,), used=(0, 1, 2))


@rule("RotaryEmbedding", resize=_resize_heads, note=ROTARY)
def rotary_embedding(flow: Flow, index: int) -> None:
    graph = flow.graph
    name = graph.input(index, 0)
    shape = graph.shapes[name]
    axis = _axis(shape)
    tables = range(1, len(graph.nodes[index].input))
    count = shape[1] if len(shape) == 4 else graph.attribute(index, "num_heads", 0)
    if not count:  # com.microsoft: the tables hold half a width
        count = shape[-1] // (2 * graph.shapes[graph.input(index, 2)][-1])
    _heads(flow, index, 0, axis, count)
    for position in tables:
        flow.pin_all(graph.input(index, position), f"{graph.label(index)!r} rotates by these channels")
    own = flow.labels(name).get(axis)
    flow.give(graph.nodes[index].output[0], {} if own is None else {axis: own})


rule("RotaryEmbedding", domain=MICROSOFT, resize=_resize_heads, shape=stand_ins.like(), note=ROTARY)(rotary_embedding)
