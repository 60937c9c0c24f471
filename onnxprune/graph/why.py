"""Why the channels of one tensor may go or not: the chain of operators from the tensor to what pins them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.errors import UnknownNameError
from onnxprune.graph.structure import Graph
from onnxprune.network import Ints, Network, Pin, Slot

INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


@dataclass(frozen=True)
class Step:
    """One operator of a chain, and the tensor that it leads to."""

    node: str
    op: str
    tensor: str
    text: str


@dataclass(frozen=True)
class Cause:
    """`count` channels are held for `reason`, found out at `tensor`; `steps` lead there (empty where no operator does)."""

    tensor: str
    reason: str
    count: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class AxisStory:
    """What becomes of the channels along one axis of `length`. groups: (name, kind, how many of these channels are in it)."""

    axis: int
    length: int
    channels: int
    groups: tuple[tuple[str, str, int], ...]
    causes: tuple[Cause, ...]


@dataclass(frozen=True)
class Explanation:
    """kind: weight, activation, input or constant; no axes: nothing along it is a channel."""

    tensor: str
    kind: str
    axes: tuple[AxisStory, ...]


def explain(graph: Graph, network: Network, name: str) -> Explanation:
    """`name` is a tensor, or a layer: then its weight. Raises UnknownNameError."""
    if name in network.layer and name not in graph.shapes:
        name = network.layer[name].weight
    known = {*graph.shapes, *graph.parameters, *graph.inputs, *graph.outputs, *graph.producer}
    if name not in known:
        raise UnknownNameError("tensor or layer", name, [*known, *network.layer])
    slots = [slot for slot in network.slots if slot.parameter == name]
    axes = dict(network.tensor_channels.get(name, {})) or {slot.axis: slot.channels for slot in reversed(slots)}
    kind = "input" if name in graph.inputs else "activation"
    if name in graph.constants:
        kind = "weight" if slots else "constant"
    atlas = _Atlas(graph, network)
    return Explanation(name, kind, tuple(_axis(network, atlas, name, axis, axes[axis]) for axis in sorted(axes)))


def _axis(network: Network, atlas: _Atlas, name: str, axis: int, channels: Ints) -> AxisStory:
    here = np.unique(channels)
    groups = [(g.name, g.kind, int(np.isin(here, g.ids).sum())) for g in network.groups]
    causes = [_cause(atlas, name, pin, here) for pin in (*network.pins, *network.idle_pins) if np.isin(here, pin.channels).any()]
    told = np.concatenate([g.ids for g in network.groups] + [p.channels for p in (*network.pins, *network.idle_pins)])
    if not np.isin(here, told).all():
        causes.append(Cause("", "no layer makes these channels", int((~np.isin(here, told)).sum()), ()))
    # The nearest is the one that explains most.
    causes.sort(key=lambda cause: (not cause.steps and cause.tensor != name, len(cause.steps), -cause.count))
    return AxisStory(axis, len(channels), len(here), tuple(g for g in groups if g[2]), tuple(causes))


def _cause(atlas: _Atlas, name: str, pin: Pin, here: Ints) -> Cause:
    shared = here[np.isin(here, pin.channels)]
    return Cause(pin.tensor, pin.reason, len(shared), atlas.path(name, pin.tensor, int(shared[0])))


class _Atlas:
    """Where each channel is seen, and the ways from tensor to tensor through the nodes that see it."""

    def __init__(self, graph: Graph, network: Network) -> None:
        self.graph, self.network = graph, network
        self.slots: dict[int, list[Slot]] = {}
        self.places: dict[str, list[int]] = {}
        for slot in network.slots:
            self.slots.setdefault(slot.node, []).append(slot)
            self.places.setdefault(slot.parameter, []).append(slot.node)
        self._known: dict[tuple[str, int], dict[str, tuple[str, int]]] = {}

    def path(self, start: str, goal: str, channel: int) -> tuple[Step, ...]:
        """The shortest chain of operators from `start` to `goal` along which `channel` is carried."""
        key = start, channel
        if key not in self._known:
            self._known[key] = self._search(start, channel)
        came = self._known[key]
        found: list[Step] = []
        while goal != start and goal in came:
            before, index = came[goal]
            found.append(self._step(before, index, goal, channel))
            goal = before
        return tuple(reversed(found))

    def _search(self, start: str, channel: int) -> dict[str, tuple[str, int]]:
        """tensor -> (tensor before it, node between) for all that can be reached, breadth first."""
        carrying = {t for t, axes in self.network.tensor_channels.items() if any((ids == channel).any() for ids in axes.values())}
        came: dict[str, tuple[str, int]] = {start: ("", -1)}
        queue = deque([start])
        while queue:
            tensor = queue.popleft()
            # Beyond what carries the channel a way ends: there it was found out that it may not go.
            if tensor != start and tensor not in carrying and not self._counts(tensor):
                continue
            for index in self._nodes(tensor, channel):
                for other in self._neighbours(index, channel):
                    if other not in came:
                        came[other] = tensor, index
                        queue.append(other)
        del came[start]
        return came

    def _counts(self, tensor: str) -> bool:
        """Shape arithmetic hands on how many channels there are."""
        return self.graph.types.get(tensor) in INTEGERS and tensor not in self.graph.constants

    def _nodes(self, tensor: str, channel: int) -> Iterator[int]:
        for index in self.places.get(tensor, ()):
            if any(s.parameter == tensor and (s.channels == channel).any() for s in self.slots[index]):
                yield index
        if tensor not in self.graph.constants:
            if tensor in self.graph.producer:
                yield self.graph.producer[tensor]
            yield from (index for index, _ in self.graph.users.get(tensor, ()))

    def _neighbours(self, index: int, channel: int) -> Iterator[str]:
        """First what the channel flows to, then what lies beside it."""
        yield from (name for name in (*self.graph.nodes[index].output, *self.graph.nodes[index].input) if name)
        yield from (s.parameter for s in self.slots.get(index, ()) if (s.channels == channel).any())

    def _step(self, before: str, index: int, after: str, channel: int) -> Step:
        node, label = self.graph.nodes[index], self.graph.label(index)
        name = f"{node.op_type} {label}"
        mine = (s for s in self.slots.get(index, ()) if s.parameter == before and (s.channels == channel).any())
        slot = next(mine, None)
        if slot is not None and slot.role == "makes":
            text = f"{name} makes {len(slot.channels)} channels"
        elif slot is not None and slot.role == "reads" and after in node.input:
            text = f"{name} reads {len(slot.channels)} channels of {after!r}"
        elif after in node.output:
            tied = [repr(n) for n in dict.fromkeys(node.input) if n not in (before, after) and self._carries(n, channel)]
            text = name + (f" (tied with {', '.join(tied)})" if tied and before in node.input else "")
        elif before in node.output:
            text = f"made by {name}" + (f" of {after!r}" if after in node.input else f" with {after!r}")
        else:
            text = f"{name} ({'tied with' if self._carries(after, channel) else 'with'} {after!r})"
        return Step(label, node.op_type, after, text)

    def _carries(self, tensor: str, channel: int) -> bool:
        return any((ids == channel).any() for ids in self.network.tensor_channels.get(tensor, {}).values())


def sentence(explanation: Explanation, cause: Cause, *, most: int = 12) -> str:
    """The chain in one line: weight 'w' -> Conv 'c' makes 64 channels -> Add 's' (tied with 'b') -> graph output 'y'."""
    steps: Sequence[str] = [step.text for step in cause.steps]
    if len(steps) > most:
        half = most // 2
        steps = [*steps[:half], f"... {len(steps) - most} more ...", *steps[-half:]]
    if not cause.steps and cause.tensor not in ("", explanation.tensor):
        steps = [f"lives and dies with {cause.tensor!r}"]
    return " -> ".join([f"{explanation.kind} {explanation.tensor!r}", *steps, cause.reason])
