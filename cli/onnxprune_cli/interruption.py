"""Signals that ask us to stop: raised where they arrive and remembered, for libraries swallow what is raised in their callbacks.

A safe point (any step of the progress, right before the model is saved) raises again what was swallowed.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

# A key was pressed, a CI job was cancelled, a terminal was closed.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_asked: list[int] = []


def listen() -> None:
    """From now on these signals raise, so that temporary files go; those that are ignored (nohup) stay so."""
    for name in NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, _: object) -> NoReturn:
    _asked.append(number)
    _raise(number)


def _raise(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def check() -> None:
    """A safe point: raises KeyboardInterrupt or SystemExit if we were asked to stop."""
    if _asked:
        _raise(_asked[0])


def exit_code() -> int | None:
    """What a run that was asked to stop ends with, even where nothing but its last steps noticed."""
    return 128 + _asked[0] if _asked else None
