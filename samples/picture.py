"""Draws the picture in the README, a report as a terminal shows it: `python samples/picture.py report.json`."""

from __future__ import annotations

import json
import re
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console

from onnxprune.report import text

report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
console = Console(record=True, width=92, file=StringIO(), force_terminal=True)
text.show(report, console)
picture = console.export_svg(title="onnxprune digits_cnn.onnx --ratio 0.4")
# The viewer's own fixed-width font will do: a picture should not fetch anything.
picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
Path(__file__).with_name("01_first_prune").joinpath("report.svg").write_text(picture, encoding="utf-8")
