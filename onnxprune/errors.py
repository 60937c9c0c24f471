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
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        remedy = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"there are: {', '.join(names)}"
        super().__init__(f"no {kind} {name!r}", remedy)


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
