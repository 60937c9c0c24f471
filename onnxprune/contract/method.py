"""DECIDE: what all pruning methods have in common, and the registry that knows them by name."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor

from onnxprune.contract.statistics import Statistic
from onnxprune.errors import OnnxpruneError, UnknownNameError, UsageError

Target = Literal["channel", "neuron", "kernel", "weight", "rank"]
# In the order in which methods are listed: what goes, and what comes of it.
TARGETS: dict[Target, str] = {
    "channel": "channels and hidden units go: smaller, faster files",
    "neuron": "units of fully connected layers go: smaller, faster files",
    "rank": "a layer becomes two thin ones: smaller, faster files",
    "kernel": "2-D filters of convolutions are set to zero: same size and speed in ONNX Runtime",
    "weight": "single weights are set to zero: same size and speed in ONNX Runtime, see --sparse-storage and --pattern",
}


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
            if wanted := _unlike(values[name], self.options[name].default):
                raise UsageError(f"option {name} of method {self.name!r} is {values[name]!r}", f"give {wanted}")
        self.values: dict[str, Any] = {k: o.default for k, o in self.options.items()} | values

    def counter(self, kind: type[Statistic], matrix: Tensor | None) -> Statistic:
        """A statistic of this kind that has counted nothing yet.

        matrix (groups, out, in) are the weights of the layer, where the kind `weighs` its rows with them.
        """
        return kind() if matrix is None else kind(matrix)  # type: ignore[call-arg]


def _unlike(value: Any, default: Any) -> str:
    """What a value would have to be, where it is not of the kind of its option's default; empty where it is.

    None as a default stands for a number that is worked out where none is given.
    """
    match default:
        case bool():
            return "" if isinstance(value, bool) else "true or false"
        case str():
            return "" if isinstance(value, str) else "a word"
        case int() | float() | None:
            fine = isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
            return "" if fine or (value is None and default is None) else "a number"
    return ""


def check_tensor(method: Method, what: str, view: str, given: Any) -> None:
    """Raises UsageError of anything else, such as an array of NumPy."""
    if not isinstance(given, Tensor):
        raise UsageError(
            f"{method.name} gave a {type(given).__name__} as {what} of {view!r}",
            "return a torch.Tensor (torch.as_tensor makes one)",
        )


METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def method(cls: M) -> M:
    """Register a method under its name: `@method class MyMethod(ChannelMethod): ...`. A name may be taken once."""
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UsageError(f"{cls!r} is no method", "derive it from ChannelMethod, WeightMethod or RankMethod")
    for said in ("name", "paper", "target"):
        if not isinstance(getattr(cls, said, None), str):
            raise UsageError(f"the method class {cls.__name__} does not say its {said}", f'write {said} = "..." into it')
    if cls.target not in TARGETS:
        raise UnknownNameError(f"target of method {cls.name!r} called", cls.target, TARGETS)
    if cls.name in METHODS and METHODS[cls.name] is not cls:
        raise OnnxpruneError(f"a method named {cls.name!r} is registered already by {METHODS[cls.name].__module__}")
    METHODS[cls.name] = cls
    return cls
