"""Let the blocks of grouped convolutions and shuffles lose different positions: channels change places, the function stays.

The cut takes the same position from every block. So before it, the channels of each block are put in order of their scores: then
position i holds the i-th best of every block, and what goes together is what every block can spare, wherever it lay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.graph import surgeon
from onnxprune.graph.structure import Graph
from onnxprune.network import Ints, Network
from onnxprune.rewrite.cut import as_read, free_name, replace_numbers

# axis -> which old position every new one holds; (blocks, length) where each block of a grouped convolution has its own order
Orders = dict[int, Ints]
User = tuple[int, int]
Scores = Mapping[str, Sequence[NDArray[np.float64]]]
Removed = dict[str, dict[str, list[int]]]


@dataclass(frozen=True)
class Positions:
    """parameter -> axis -> positions in the numbering of the original; figures.Report says what each of them is."""

    removed: Removed
    removed_by_block: dict[str, dict[str, list[list[int]]]]
    reordered: dict[str, dict[str, list[Any]]]


def arrange(graph: Graph, network: Network, scores: Scores) -> dict[str, Orders]:
    """Put the channels of every cell in order of their scores, in the weights of `graph.model`, in place.

    scores    group -> for each of its cells the scores of its channels, larger is more important
    returns   parameter -> where everything came from; empty where all was in order. The graph has to be traced again: users of
              a shared parameter that now want it in different orders have clones, 'name@node'.
    """
    plan = _plan(graph, network, scores)
    if not _possible(graph, plan):
        return {}
    found: dict[str, Orders] = {}
    taken = {*graph.parameters, *graph.producer, *graph.inputs}
    for name, users in plan.items():
        if len({_signature(orders) for orders in users.values()}) == 1 and not graph.exposed(name):
            found[name] = next(iter(users.values()))
            replace_numbers(graph.parameters[name], graph.parameters[name], _moved(graph.array(name), found[name]))
            continue
        for user, orders in users.items():
            if orders:
                node, position = graph.place(*user, name)
                own = free_name(f"{name}@{graph.label(node)}", taken)
                value = as_read(graph, graph.input(node, position), name, _moved(graph.array(name), orders))
                surgeon.add_initializer(graph.model, numpy_helper.from_array(np.ascontiguousarray(value), own))
                graph.model.graph.node[node].input[position] = own
                found[own] = orders
                taken.add(own)
    return found


def _plan(graph: Graph, network: Network, scores: Scores) -> dict[str, dict[User, Orders]]:
    """parameter -> (node, input) of its users -> the orders in which they have to find it; only parameters that change."""
    found: dict[str, dict[User, Orders]] = {}
    for group in network.groups:
        for cell, ranked in zip(group.cells, scores.get(group.name, ()), strict=False):
            order = np.argsort(-ranked, kind="stable")
            if bool((order == np.arange(len(order))).all()):
                continue
            for member in cell.members:
                slot = network.slots[member.slot]
                own = found.setdefault(slot.parameter, {}).setdefault((slot.node, slot.input), {})
                still = np.arange(len(slot.channels))
                if member.block is None:
                    own.setdefault(slot.axis, still)[member.positions] = member.positions[order]
                else:
                    block, of = member.block
                    own.setdefault(slot.axis, np.tile(still, (of, 1)))[block, member.positions] = member.positions[order]
    for name, users in found.items():
        for user in graph.end_users(name):
            users.setdefault(user, {})
    return found


def _possible(graph: Graph, plan: Mapping[str, Mapping[User, Orders]]) -> bool:
    """Not where two users read a parameter through one node (DequantizeLinear) and want it in different orders."""
    for name, users in plan.items():
        wanted: dict[User, set[tuple[object, ...]]] = {}
        for user, orders in users.items():
            wanted.setdefault(graph.place(*user, name), set()).add(_signature(orders))
        if any(len(signatures) > 1 for signatures in wanted.values()):
            return False
    return True


def _signature(orders: Orders) -> tuple[object, ...]:
    return tuple(sorted((axis, order.tobytes()) for axis, order in orders.items()))


def _moved(value: NDArray[Any], orders: Orders) -> NDArray[Any]:
    """The blocks of a grouped convolution lie one after the other along axis 0 and share axis 1."""
    for axis, order in orders.items():
        if order.ndim == 1:
            value = value.take(order, axis=axis)
        else:
            blocks = np.split(value, len(order))
            value = np.concatenate([block.take(own, axis=axis) for block, own in zip(blocks, order, strict=True)])
    return value


def original_positions(removed: Removed, orders: Mapping[str, Orders]) -> Positions:
    """What the cut removed from the arranged model, told of the original."""
    found = Positions({}, {}, {})
    for name in dict.fromkeys([*removed, *orders]):
        gone, moved = removed.get(name, {}), _orders_of(name, orders)
        for axis in sorted({*gone, *map(str, moved)}):
            order = moved.get(int(axis), np.arange(max(gone.get(axis, []), default=-1) + 1))
            went = np.sort(order[..., gone.get(axis, [])], axis=-1).tolist()
            if order.ndim == 1 or all(block == went[0] for block in went):
                went = went if order.ndim == 1 else went[0]
                if went:
                    found.removed.setdefault(name, {})[axis] = went
            else:
                found.removed_by_block.setdefault(name, {})[axis] = went
            if int(axis) in moved:
                found.reordered.setdefault(name, {})[axis] = np.delete(order, gone.get(axis, []), axis=-1).tolist()
    return found


def _orders_of(name: str, orders: Mapping[str, Orders]) -> Orders:
    """Of a parameter, or of the one that it is a clone of."""
    sources = [source for source in orders if name == source or name.startswith(f"{source}@")]
    return orders[max(sources, key=len)] if sources else {}
