"""Where the command `onnxprune` and `python -m onnxprune_cli` begin: from here on an interrupt is one line."""

from __future__ import annotations

import sys
from typing import NoReturn


def start() -> NoReturn:
    try:
        from onnxprune_cli.main import main

        main()
    except KeyboardInterrupt:
        # While the commands themselves were imported, or after they were done.
        sys.stderr.write("interrupted, nothing was written\n")
        sys.exit(130)


if __name__ == "__main__":
    start()
