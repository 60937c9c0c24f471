"""The progress bar: on stderr, only where somebody watches, gone at the end."""

import io
import signal
import sys

import pytest
from onnxprune_cli import interruption
from onnxprune_cli.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_nobody_watches(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(quiet=False) as move:
        move("repair", 1.0)
    assert sys.stderr.getvalue() == ""


def test_quiet(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(quiet=True) as move:
        move("repair", 1.0)
    assert sys.stderr.getvalue() == ""


def test_stages_show_on_a_terminal(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar(quiet=False) as move:
        move("see [1/2]", 0.5)
        move("repair", 1.0)
    assert "repair" in terminal.getvalue()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("watched", [True, False])
def test_every_step_is_a_safe_point_to_stop(monkeypatch, watched):
    monkeypatch.setattr(sys, "stderr", Terminal() if watched else io.StringIO())
    monkeypatch.setattr(interruption, "_asked", [signal.SIGINT])
    with pytest.raises(KeyboardInterrupt), progress_bar(quiet=False) as move:
        move("repair", 1.0)
