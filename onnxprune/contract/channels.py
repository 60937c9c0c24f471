"""SEE and DECIDE for channels: what a method may look at, and what it may answer. Tensors only; a method never sees ONNX.

Maker, Reader   the weights that make each channel, and those that read it
ChannelView     one channel group: makers, readers, the activation between them, statistics
ChannelPlan     which channels stay and by how much the readers' weights are scaled
ChannelMethod   score -> rank -> decide
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from onnxprune.contract.activation import Activation
from onnxprune.contract.method import Method, check_tensor
from onnxprune.contract.statistics import S, Statistic
from onnxprune.errors import OnnxpruneError, UsageError


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
    gains[layer]                    what a squared error in a reader's output does to the model's outputs, by their spread;
                                    empty where it was not measured (--budget uniform and global)
    """

    name: str
    channels: int
    makers: tuple[Maker, ...]
    readers: tuple[Reader, ...]
    activation: Activation
    statistics: Mapping[tuple[str, type[Statistic]], Statistic] = field(default_factory=dict)
    gains: Mapping[str, float] = field(default_factory=dict)

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
    draws   draws with replacement behind it, where it was drawn
    error   what the paper's bound says of so many draws, where it has one
    """

    keep: Tensor
    scale: Tensor | None = None
    draws: int | None = None
    error: float | None = None

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


class ChannelMethod(Method):
    """Removes channels or neurons. Set the class variables, write `score`; override `rank` or `decide` to do more.

    needs       statistics wanted on the inputs of makers and readers
    draws       how many random orders to try; the one with the least predicted loss is taken (deterministic methods: 1)
    """

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

    def errors(self, view: ChannelView, plan: ChannelPlan) -> Mapping[str, Tensor] | None:
        """Reader -> (outputs * kernel positions,): how far each sum over the channels can get from the original's with this plan.

        It holds for every input that the paper's bound is about, and supposes the readers' weights reweighed, not refitted. None:
        the paper has no bound.
        """
        return None

    @property
    def bounded(self) -> bool:
        """Whether the method has a bound, so that an error may be asked for instead of a share."""
        return type(self).errors is not ChannelMethod.errors

    def within(self, view: ChannelView, scores: Tensor, epsilon: float, rng: torch.Generator) -> ChannelPlan:
        """Error-first: as many draws as the bound asks for an error of at most epsilon; how many channels stay is an outcome.

        Raises UsageError where a method tells its errors, but not how many channels an error asks for.
        """
        raise UsageError(f"{self.name} cannot say how many channels an error of {epsilon:g} asks for", "give a ratio instead")


def check_scores(method: ChannelMethod, view: ChannelView, scores: Tensor) -> Tensor:
    """The scores, or an error there and then: a silent NaN would make top-k keep the first channels by position."""
    check_tensor(method, "scores", view.name, scores)
    if scores.shape != (view.channels,):
        raise OnnxpruneError(
            f"{method.name} gave scores of shape {tuple(scores.shape)} for {view.channels} channels of {view.name!r}"
        )
    if not bool(torch.isfinite(scores).all()):
        raise UsageError(f"{method.name} gives non-finite scores for {view.name!r}", "its weights or inputs hold NaN or infinity")
    return scores
