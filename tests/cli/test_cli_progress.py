"""The progress bar: on stderr, only where somebody watches, gone at the end."""

import io
import sys

from onnxprune_cli.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_nobody_watches(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(quiet=False) as move:
        assert move is None


def test_quiet(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(quiet=True) as move:
        assert move is None


def test_stages_show_on_a_terminal(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar(quiet=False) as move:
        move("see [1/2]", 0.5)
        move("repair", 1.0)
    assert "repair" in terminal.getvalue()
    assert capsys.readouterr().out == ""
