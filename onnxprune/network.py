"""FIND: what the graph half knows of a model, in frozen dataclasses: layers, channel groups, pins and their price.

    Network   everything below, found once, never changed
    Layer     one Conv, ConvTranspose, Gemm or MatMul with constant weights
    Quantised how the integers of a parameter stand for numbers
    Slot      one axis of one stored parameter, as one node reads it: which channel lies at each position
    Group     channels that have the same members: the thing a method ranks
    Member    where the channels of a group lie on one slot
    Norm      statistics that a node takes over channels which may go all the same
    Pin       a tensor whose channels may not go, with the reason
    Term      a number of multiplications or parameters that is a product of axis lengths

A *channel* is the smallest set of positions that can only be removed together. Channels are numbered over the whole network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
# 'scales': follows, but is a scale or a zero point of quantised numbers: never to be set to zero itself.
Role = Literal["makes", "reads", "follows", "scales"]
Place = tuple[int, int]
Kind = Literal["channel", "neuron", "head", "head-width", "embedding", "recurrent", "expert"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# What goes unless others are asked for: the width of embeddings runs through the whole of a transformer.
USUAL_KINDS: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "embedding")


@dataclass(frozen=True)
class Geometry:
    """How a convolution samples its input; one entry per spatial axis (none for Gemm and MatMul).

    `pads` holds all begins, then all ends, as ONNX does; auto_pad is already resolved.
    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()


@dataclass(frozen=True)
class Residual:
    """A layer's output ends in a sum: sum = scale * output + shift + other (scale per channel where batch norm is between)."""

    sum: str
    other: str
    batch_norm: int | None = None


@dataclass(frozen=True)
class Layer:
    """y = matrix @ x (+ bias), applied at every position. Shapes are those of one run at the trial input shapes.

    weight, bias   names of the stored parameters (bias: None where there is none)
    transposed     the stored weight is (in, out) instead of (out, in)
    side           'right': x @ W (Gemm, MatMul, Conv);  'left': W @ x (MatMul with a constant first operand)
    output         the pre-activation, after the bias
    batch_norm     index of the BatchNormalization node that alone reads the output, if there is one
    activation     operator type (and bounds) of the elementwise function behind it, see contract.Activation
    shared         another node reads the same weight
    quantised      the stored weight is integers
    widen_bias     there is no bias, but the operator would take one
    """

    name: str
    node: int
    op: str
    weight: str
    bias: str | None
    input: str
    output: str
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    groups: int
    geometry: Geometry
    transposed: bool
    macs: int
    side: Literal["left", "right"] = "right"
    scale: float = 1.0
    bias_scale: float = 1.0
    bias_node: int | None = None
    batch_norm: int | None = None
    activation: tuple[str, tuple[float, ...]] = ("identity", ())
    residual: Residual | None = None
    shared: bool = False
    quantised: bool = False
    widen_bias: bool = False
    whole_groups: bool = False


@dataclass(frozen=True)
class Quantised:
    """A parameter of integers q that stand for (q - zero_point) * the product of scales: names of constant tensors.

    axes     the parameter's axes along which scales and zero points differ: theirs in order; none where there is one of each
    blocked  of these axes the one along which `block` positions share a scale
    """

    scales: tuple[str, ...]
    zero_point: str = ""
    axes: tuple[int, ...] = ()
    blocked: int | None = None
    block: int = 1


@dataclass(frozen=True)
class Slot:
    """Axis `axis` of `parameter` as read by input `input` of node `node`; `channels[i]` is the channel at position i."""

    parameter: str
    node: int
    input: int
    axis: int
    role: Role
    channels: Ints = field(repr=False)


@dataclass(frozen=True)
class Member:
    """Positions of a group's channels on slot number `slot`: shape (channels, count), row i belongs to channel i of the group.

    block   (b, of n): only block b of a grouped convolution has the channels there; all n share one axis of its weight
    """

    slot: int
    positions: Ints = field(repr=False)
    block: tuple[int, int] | None = None


@dataclass(frozen=True)
class Group:
    """Channels with the same members. `ids` are their numbers in the network, in order of first appearance.

    width   positions of one channel along the axis that makes it: 1, for an attention head its width, for a whole group of a
            convolution the channels in it
    cells   where a channel consists of one (or k) of each block of grouped convolutions: the finer channels of each block, in
            this order (channel 0 owns the first k). Those of one cell may change places among themselves.
    makers, readers   layers and recurrent nodes by name; of any other node that holds weights, the name of these
    """

    name: str
    kind: Kind
    ids: Ints = field(repr=False)
    members: tuple[Member, ...] = field(repr=False)
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    spatial: bool
    width: int = 1
    cells: tuple[Group, ...] = field(default=(), repr=False)

    @property
    def size(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Pin:
    """Channels of `tensor` may not be removed, because `reason`. `count`: how many of `channels` have weights made along them."""

    tensor: str
    reason: str
    count: int
    channels: Ints = field(default_factory=lambda: np.empty(0, np.int64), repr=False, compare=False)


@dataclass(frozen=True)
class Norm:
    """Statistics that node `node` takes over axes of which channels may go; what is mended then is told in graph.norms.

    inputs    positions of the tensors whose sum it looks at
    fill      what a removed channel counts as: the mean of those that stay, or zero
    groups    axis 1 is looked at in so many parts (0: as a whole)
    scale     (node, input) of a constant that the result is multiplied by
    epsilon   (node, input) of the constant that is added to the variance; attribute: it is the attribute `epsilon` of `node`
    """

    node: int
    inputs: tuple[int, ...]
    axes: tuple[int, ...]
    fill: Literal["mean", "zero"]
    groups: int = 0
    scale: Place | None = None
    epsilon: Place | None = None
    attribute: bool = False


@dataclass(frozen=True)
class Axis:
    """Length of one axis: `fixed` positions, plus `per_channel[g]` for every channel of group g that is kept."""

    fixed: int
    per_channel: Mapping[str, int]

    def length(self, kept: Mapping[str, int]) -> int:
        return self.fixed + sum(n * kept[g] for g, n in self.per_channel.items())


@dataclass(frozen=True)
class Term:
    """unit * product of axis lengths: the multiplications of a layer or the elements of a parameter."""

    name: str
    unit: int
    axes: tuple[Axis, ...]

    def value(self, kept: Mapping[str, int]) -> int:
        total = self.unit
        for axis in self.axes:
            total *= axis.length(kept)
        return total


@dataclass(frozen=True)
class Cost:
    """macs: multiply-accumulates of one run at the trial shapes; parameters: stored elements; bytes: of those elements."""

    macs: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Network:
    """All that was found in one model. `tensor_channels[t][a]` are the channels along axis a of activation t.

    new_bias_terms: the elements of a bias for each layer that has none and could have one (named after its weight).
    norms: normalisations that some channels go through.
    idle_pins: those that keep no weights from leaving (no parameter is made along them).
    quantised: parameter -> what its integers stand for.
    measured: channels whose values count also where no weights read them: a scale is set by all of them at run time, or two
              activations of integers are multiplied and summed over them. A twin without them has to make them zero.
    sums: where two activations are multiplied and summed over channels (attention). A twin has zeros in one of them there.
    """

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    pins: tuple[Pin, ...]
    slots: tuple[Slot, ...]
    channel_count: int
    tensor_channels: Mapping[str, Mapping[int, Ints]] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    input_shapes: Mapping[str, tuple[int, ...]]
    mac_terms: tuple[Term, ...] = field(repr=False)
    parameter_terms: tuple[Term, ...] = field(repr=False)
    element_bytes: Mapping[str, int] = field(repr=False)
    new_bias_terms: tuple[Term, ...] = field(default=(), repr=False)
    idle_pins: tuple[Pin, ...] = field(default=(), repr=False)
    quantised: Mapping[str, Quantised] = field(default_factory=dict, repr=False)
    measured: Ints = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    norms: tuple[Norm, ...] = field(default=(), repr=False)
    sums: tuple[Norm, ...] = field(default=(), repr=False)

    @cached_property
    def layer(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def group(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def full(self) -> dict[str, int]:
        """The kept count of every group when nothing goes."""
        return {group.name: group.size for group in self.groups}

    def cost(self, kept: Mapping[str, int] | None = None) -> Cost:
        """What the model costs when each group keeps `kept[name]` channels."""
        counts = self.full() | dict(kept or {})
        macs = sum(term.value(counts) for term in self.mac_terms)
        sizes = {term.name: term.value(counts) for term in self.parameter_terms}
        return Cost(macs, sum(sizes.values()), sum(n * self.element_bytes[name] for name, n in sizes.items()))

    def alive(self, kept: Mapping[str, Ints]) -> Bools:
        """Mask over all channels of the network: False for those of a group that are not in `kept[group]`."""
        mask = np.ones(self.channel_count, bool)
        for group in self.groups:
            if group.name in kept:
                mask[group.ids] = False
                mask[group.ids[kept[group.name]]] = True
        return mask
