"""DECIDE: what all pruning methods have in common, and the registry that knows them by name."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor

from onnxprune.contract.statistics import Statistic
from onnxprune.errors import OnnxpruneError, UnknownNameError, UsageError

Target = Literal["channel", "neuron", "kernel", "weight", "rank"]


@dataclass(frozen=True)
class Option:
    """An option of a method: its default, and one line of help with the symbol of the paper."""

    default: Any
    help: str


class Method(ABC):
    """One pruning method: a ChannelMethod, a WeightMethod or a RankMethod.

    name        as typed: <criterion>-<what goes>, no suffix for single weights
    paper       the source, in one line
    target      what goes: 'channel' takes channels and hidden units alike, 'neuron' only units of fully connected layers,
                'weight' sets single weights to zero, 'kernel' whole 2-D filters, 'rank' makes one layer into two thin ones
    needs       statistics wanted on the inputs of layers
    options     name -> Option
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    target: ClassVar[Target]
    needs: ClassVar[tuple[type[Statistic], ...]] = ()
    options: ClassVar[Mapping[str, Option]] = {}

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name not in self.options:
                raise UnknownNameError(f"option of method {self.name!r} called", name, self.options)
            if isinstance(values[name], str) and not isinstance(self.options[name].default, str):
                remedy = "give true or false" if isinstance(self.options[name].default, bool) else "give a number"
                raise UsageError(f"option {name} of method {self.name!r} is {values[name]!r}", remedy)
        self.values: dict[str, Any] = {k: o.default for k, o in self.options.items()} | values

    def counter(self, kind: type[Statistic], matrix: Tensor | None) -> Statistic:
        """A statistic of this kind that has counted nothing yet.

        matrix (groups, out, in) are the weights of the layer, where the kind `weighs` its rows with them.
        """
        return kind() if matrix is None else kind(matrix)  # type: ignore[call-arg]


METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def method(cls: M) -> M:
    """Register a method under its name: `@method class MyMethod(ChannelMethod): ...`. A name may be taken once."""
    if cls.name in METHODS and METHODS[cls.name] is not cls:
        raise OnnxpruneError(f"a method named {cls.name!r} is registered already by {METHODS[cls.name].__module__}")
    METHODS[cls.name] = cls
    return cls
