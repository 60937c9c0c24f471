"""SEE and DECIDE: what a method may look at, and what it may answer. Tensors only; a method never sees ONNX.

Activation      the elementwise function between a producer and its consumers
ChannelView     one channel group: the weights that make each channel, the weights that read it, statistics
ChannelPlan     which channels stay and by how much the readers' weights are scaled
Statistic       anything that can be counted over a stream of rows and added up
Method          score -> rank -> decide
method          the decorator that registers one
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor

from onnxprune.errors import OnnxpruneError, UnknownNameError, UsageError

Target = Literal["channel", "neuron", "kernel", "weight"]
S = TypeVar("S", bound="Statistic")


@dataclass(frozen=True)
class Activation:
    """phi, the function between a layer and those that read it; `bounds` are the limits of a Clip, the slope of a LeakyRelu ...

    A name that is not known counts as the identity, whose supremum is an upper bound for every 1-Lipschitz phi with phi(0) = 0.
    """

    name: str = "identity"
    bounds: tuple[float, ...] = ()

    HOMOGENEOUS: ClassVar[frozenset[str]] = frozenset({"identity", "Relu", "LeakyRelu", "PRelu", "Abs"})

    @property
    def homogeneous(self) -> bool:
        """Whether phi(c r) = c phi(r) for c > 0: then a common factor of all arguments cancels out of every ranking."""
        return self.name in self.HOMOGENEOUS

    def supremum(self, radius: Tensor) -> Tensor:
        """sup |phi(z)| over |z| <= radius, elementwise (coresets, Table I: phi(beta * ||p||) for a non-decreasing phi >= 0).

        Silu, Gelu and HardSwish dip below zero first: max(phi(r), -phi(-r)), with -min phi once r has passed the dip.
        """
        r = radius
        match self.name:
            case "Clip":
                low, high = self.bounds
                return torch.maximum(r.clamp(max=high).abs(), (-r).clamp(min=low).abs())
            case "Sigmoid":
                return torch.sigmoid(r)
            case "HardSigmoid":
                alpha, beta = self.bounds
                return (alpha * r + beta).clamp(0, 1)
            case "Tanh":
                return torch.tanh(r)
            case "Softplus":
                return torch.nn.functional.softplus(r)
            case "Elu":
                return torch.maximum(r, self.bounds[0] * (1 - torch.exp(-r)))
            case "LeakyRelu" | "PRelu":
                return r * max([1.0, *(abs(b) for b in self.bounds)])
            case "HardSwish":
                return _dipping(torch.nn.functional.hardswish, 1.5, r)
            case "Gelu":
                return _dipping(torch.nn.functional.gelu, 0.7517916, r)
            case "Silu":
                return _dipping(torch.nn.functional.silu, 1.2784645, r)
            case _:
                return r


def _dipping(phi: Callable[[Tensor], Tensor], lowest: float, r: Tensor) -> Tensor:
    """sup |phi| on [-r, r] of a function that rises to the right of its only minimum, at -lowest."""
    return torch.maximum(phi(r), -phi(-r.clamp(max=lowest)))


class Statistic(ABC):
    """Something counted over the rows of a layer's input. Rows are (n, d): n positions of n samples, d inputs per position.

    `rows` says what a row is: 'patches' - what one output position sees, d = channels * kernel positions, as the weight matrix
    orders them; 'channels' - one input position, d = channels. `add` may be called any number of times; `merge` adds a count
    that was made apart, on other samples. Neither may keep the rows.
    """

    rows: ClassVar[Literal["patches", "channels"]] = "channels"

    @abstractmethod
    def add(self, rows: Tensor) -> None: ...

    @abstractmethod
    def merge(self, other: Self) -> None: ...


class MaxNorm(Statistic):
    """The largest ||(x, 1)|| over all patches x: beta, the radius of the ball of queries in the coreset papers, in `value`."""

    rows = "patches"

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, rows: Tensor) -> None:
        if len(rows):
            self.value = max(self.value, math.sqrt(float((rows.float() ** 2).sum(1).max()) + 1.0))

    def merge(self, other: Self) -> None:
        self.value = max(self.value, other.value)


class Moments(Statistic):
    """Count, mean (d) and second moments (d, d) of the channels a layer reads; sums of products are added up in float32."""

    rows = "channels"

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None
        self.products: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        rows = rows.float()
        if self.total is None or self.products is None:
            self.total = rows.new_zeros(rows.shape[1], dtype=torch.float64)
            self.products = rows.new_zeros((rows.shape[1], rows.shape[1]))
        self.count += len(rows)
        self.total += rows.sum(0, dtype=torch.float64)
        self.products.addmm_(rows.T, rows)

    def merge(self, other: Self) -> None:
        if other.total is None or other.products is None:
            return
        self.count += other.count
        self.total = other.total.clone() if self.total is None else self.total + other.total
        self.products = other.products.clone() if self.products is None else self.products + other.products

    @property
    def mean(self) -> Tensor:
        assert self.total is not None, "no rows were added"
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(d, d), centred: what is left for the weights once a bias has taken the mean."""
        assert self.products is not None, "no rows were added"
        return self.products.double() / self.count - torch.outer(self.mean, self.mean)

    def shrunk(self) -> Tensor:
        """The covariance, drawn towards its diagonal by the oracle-approximating share (Chen, Wiesel, Eldar, Hero 2010, with the
        diagonal as target): from few samples the plain one promises that almost nothing is lost by removing anything.
        """
        plain = self.covariance
        squares = (plain**2).sum().clamp(min=1e-300)
        rank = plain.diagonal().sum() ** 2 / squares
        share = ((1 + rank) / ((self.count + 1) * (1 - rank / len(plain)).clamp(min=1e-3))).clamp(max=1.0)
        return (1 - share) * plain + share * torch.diag(plain.diagonal())


@dataclass(frozen=True)
class Maker:
    """A layer that makes the channels: weight (channels, fan-in) and bias (channels), a following batch norm folded in virtually.

    A channel that lies at several positions (groups, Flatten) has their rows side by side.
    """

    layer: str
    weight: Tensor
    bias: Tensor
    batch_norm_scale: Tensor | None = None


@dataclass(frozen=True)
class Reader:
    """A layer that reads the channels.

    columns     (inputs, outputs * kernel positions): its weights for every channel of its input, those of other groups included
    positions   (channels, count): where the group's channels lie among the inputs (several where Flatten or groups spread them)
    """

    layer: str
    columns: Tensor
    positions: Tensor

    @property
    def weight(self) -> Tensor:
        """(channels, count * outputs * kernel positions): the group's own part."""
        return self.columns[self.positions].flatten(1)


@dataclass(frozen=True)
class ChannelView:
    """All that a method may know of one group of `channels` channels.

    statistics[(layer, Statistic)]  what the method asked for through `Method.needs`, counted on the inputs of makers and readers;
                                    empty where no calibration data were asked for.
    """

    name: str
    channels: int
    makers: tuple[Maker, ...]
    readers: tuple[Reader, ...]
    activation: Activation
    statistics: Mapping[tuple[str, type[Statistic]], Statistic] = field(default_factory=dict)

    @cached_property
    def maker_norms(self) -> Tensor:
        """(channels,): sum over makers of ||(p, b)||_2, p the rows that make the channel and b its bias."""
        parts = [torch.linalg.vector_norm(torch.cat([m.weight, m.bias[:, None]], 1), dim=1) for m in self.makers]
        return torch.stack(parts).sum(0)

    def statistic(self, layer: str, kind: type[S]) -> S | None:
        found = self.statistics.get((layer, kind))
        return found if isinstance(found, kind) else None


@dataclass(frozen=True)
class ChannelPlan:
    """The decision for one group.

    keep    (kept,) int64, strictly ascending positions in 0 .. channels-1
    scale   (kept,) factors on every reader's weights of the kept channels (reweighing); None: all one
    """

    keep: Tensor
    scale: Tensor | None = None

    def check(self, channels: int, wanted: int) -> None:
        """Raise where the plan is not what was asked for: our own methods and those of third parties are held to it alike."""
        keep = self.keep
        if keep.dtype != torch.int64 or keep.ndim != 1 or len(keep) != wanted:
            raise OnnxpruneError(
                f"a plan keeps {tuple(keep.shape)} {keep.dtype} channels where ({wanted},) torch.int64 was asked for"
            )
        if len(keep) and (int(keep[0]) < 0 or int(keep[-1]) >= channels or not bool((keep[1:] > keep[:-1]).all())):
            raise OnnxpruneError("a plan's kept channels must be strictly ascending and inside the group")
        if self.scale is not None and (self.scale.shape != keep.shape or not bool(torch.isfinite(self.scale).all())):
            raise OnnxpruneError("a plan's scale must be finite and hold one factor per kept channel")


@dataclass(frozen=True)
class Option:
    """An option of a method: its default, and one line of help with the symbol of the paper."""

    default: Any
    help: str


class Method(ABC):
    """One pruning method. Subclass it, set the class variables, write `score`; override `rank` or `decide` to do more.

    name        as typed: <criterion>-<what goes>
    paper       the source, in one line
    target      what goes: 'channel' takes channels and hidden units alike, 'neuron' only units of fully connected layers
    needs       statistics wanted on the inputs of makers and readers
    options     name -> Option
    draws       how many random orders to try; the one with the least predicted loss is taken (deterministic methods: 1)
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    target: ClassVar[Target]
    needs: ClassVar[tuple[type[Statistic], ...]] = ()
    options: ClassVar[dict[str, Option]] = {}

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name not in self.options:
                raise UnknownNameError(f"option of method {self.name!r} called", name, self.options)
            if isinstance(values[name], str) and not isinstance(self.options[name].default, str):
                raise UsageError(f"option {name} of method {self.name!r} is {values[name]!r}", "give a number")
        self.values: dict[str, Any] = {k: o.default for k, o in self.options.items()} | values

    def wants(self, activation: Activation | None) -> tuple[type[Statistic], ...]:
        """The statistics wanted on the input of a maker with this activation behind it, or of a reader (None).

        All that the method `needs`, unless fewer will do.
        """
        return self.needs

    @property
    def draws(self) -> int:
        return 1

    @abstractmethod
    def score(self, view: ChannelView) -> Tensor:
        """(channels,) finite importance, larger is more important."""

    def rank(self, view: ChannelView, scores: Tensor, rng: torch.Generator) -> Tensor:
        """(channels,) int64: all channels, the one to keep longest first. Default: descending score, ties by position."""
        return torch.argsort(scores, descending=True, stable=True)

    def decide(self, view: ChannelView, scores: Tensor, order: Tensor, keep: int, rng: torch.Generator) -> ChannelPlan:
        """Keep `keep` channels: the first of `order`, never a threshold, so that counts are exact whatever the ties."""
        return ChannelPlan(torch.sort(order[:keep]).values)


def check_scores(method: Method, view: ChannelView, scores: Tensor) -> Tensor:
    """The scores, or an error there and then: a silent NaN would make top-k keep the first channels by position."""
    if scores.shape != (view.channels,):
        raise OnnxpruneError(
            f"{method.name} gave scores of shape {tuple(scores.shape)} for {view.channels} channels of {view.name!r}"
        )
    if not bool(torch.isfinite(scores).all()):
        raise UsageError(f"{method.name} gives non-finite scores for {view.name!r}", "its weights or inputs hold NaN or infinity")
    return scores


METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def method(cls: M) -> M:
    """Register a method under its name: `@method class MyMethod(Method): ...`. A name may be taken once."""
    if cls.name in METHODS and METHODS[cls.name] is not cls:
        raise OnnxpruneError(f"a method named {cls.name!r} is registered already by {METHODS[cls.name].__module__}")
    METHODS[cls.name] = cls
    return cls
