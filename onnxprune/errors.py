"""Every error onnxprune raises on purpose: each says what is wrong, where, and what to do.

OnnxpruneError
├── UsageError                exit code 2   the request cannot be met as it was asked
│   ├── UnknownNameError                    a method, budget, figure ... that does not exist (with the nearest ones)
│   ├── ModelError                          the model file cannot be read or is not valid ONNX
│   ├── DataError                           sample inputs that are missing, malformed or do not fit the model
│   ├── DeviceError                         the device asked for is not there
│   └── SaveError                           the result cannot be written where it was asked to go
├── NothingToPruneError       exit code 3   no channel of the model can be removed
└── ProofError                exit code 4   the pruned model is not what the plan says: our bug, nothing was written
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# An error is one line; a model may have hundreds of layers.
MOST_NAMES = 12


class OnnxpruneError(Exception):
    """Base of all errors; `exit_code` is what the command line returns for it."""

    exit_code = 4

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}; {remedy}" if remedy else problem)


class UsageError(OnnxpruneError):
    exit_code = 2


class UnknownNameError(UsageError):
    """`kind` is what was named ("method"), `known` the names that exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(set(known))
        near = _near(name, names)
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        listed = f"there are: {', '.join(names[:MOST_NAMES])}{more}" if names else "there is none"
        remedy = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else listed
        super().__init__(f"no {kind} {name!r}", remedy)


def _near(name: str, names: list[str]) -> list[str]:
    """Up to three names that may have been meant: those that begin with it, about as near as the nearest, or that hold it."""
    typed = name.strip("*").casefold()
    begun = [n for n in names if len(typed) > 1 and n.casefold().startswith(f"{typed}-")]
    if begun:
        return begun[:3]
    nearness = {n: difflib.SequenceMatcher(None, n.casefold(), typed).ratio() for n in names}
    best = max(nearness.values(), default=0.0)
    near = sorted((n for n, value in nearness.items() if value >= max(0.5, best - 0.08)), key=lambda n: -nearness[n])
    return (near or [n for n in names if len(typed) > 1 and typed in n.casefold()])[:3]


class ModelError(UsageError):
    pass


class DataError(UsageError):
    pass


class DeviceError(UsageError):
    pass


class SaveError(UsageError):
    pass


class NothingToPruneError(OnnxpruneError):
    exit_code = 3


class ProofError(OnnxpruneError):
    exit_code = 4
