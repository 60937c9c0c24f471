"""`onnxprune doctor`: what is installed, what truly works here, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from onnxprune_cli.output import STDOUT, check_places, show, write_json

if TYPE_CHECKING:
    from rich.console import Console

NEEDED = ("onnxprune", "click", "numpy", "onnx", "onnx-graphsurgeon", "rich", "scipy", "torch")
OPTIONAL = ("pillow",)
MIXED = "the packages overwrite each other's files; pip uninstall -y {all} && pip install {one}"


@click.command(short_help="Say what is installed and what works.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write the findings as JSON; - is stdout.")
def doctor(json_to: str | None) -> int:
    """Say which versions are installed, which providers of ONNX Runtime truly work, and what is wrong.

    Exits with 1 if something is.
    """
    check_places(json_to)
    with redirect_stdout(sys.stderr):
        found = examine()
    if json_to is not None:
        write_json(found, json_to)
    if json_to != STDOUT:
        show(lambda console: _draw(found, console), to_stderr=False)
    return 1 if found["problems"] else 0


def examine() -> dict[str, Any]:
    problems: list[str] = []
    packages = {name: _version(name) for name in (*NEEDED, *OPTIONAL)}
    # Run from a checkout, onnxprune itself needs no installation.
    missing = [name for name in NEEDED if packages[name] is None and name != "onnxprune"]
    if missing:
        problems.append(f"not installed: {', '.join(missing)}; pip install {' '.join(missing)}")
    runtimes, providers = _onnx_runtime(problems)
    if packages["onnxprune"] is None:
        from onnxprune.version import __version__

        packages["onnxprune"] = f"{__version__} (not installed, run from its folder)"
    return {
        "python": f"{platform.python_version()} ({platform.python_implementation()}, {platform.platform()})",
        "packages": packages,
        "onnxruntime": runtimes,
        "providers": providers,
        "telemetry": _telemetry(),
        "cpu": _cpu(),
        "problems": problems,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _onnx_runtime(problems: list[str]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Installed distributions and tried providers; a broken installation is a finding here, not an error."""
    try:
        from onnxprune import runtime

        installed = runtime.installed_runtimes()
        if len(installed) > 1:
            one = next((name for name in installed if name != "onnxruntime"), "onnxruntime")
            cure = MIXED.format(all=" ".join(installed), one=one)
            problems.append(f"{' and '.join(installed)} are both installed: {cure}")
        providers = [{"provider": p, "works": works, "reason": reason} for p, works, reason in runtime.providers_report()]
    except Exception as exc:  # whatever is broken: naming it is what this command is for
        problems.append(f"ONNX Runtime does not work: {exc}")
        return {name: v for name in ("onnxruntime", "onnxruntime-gpu") if (v := _version(name))}, []
    if not any(p["works"] for p in providers):
        problems.append("no provider of ONNX Runtime works here")
    return installed, providers


def _telemetry() -> str:
    # Set to 1 by onnxprune before ONNX Runtime is imported, unless the user has set it.
    setting = os.environ.get("ORT_DISABLE_TELEMETRY", "1")
    return f"{'off' if setting == '1' else 'left to ONNX Runtime'} (ORT_DISABLE_TELEMETRY={setting})"


def _cpu() -> str:
    cores = f"{os.cpu_count()} cores"
    try:
        import torch

        vectors = torch.backends.cpu.get_cpu_capability()
    except Exception as exc:  # a broken torch is reported, not raised
        return f"{platform.machine()}, {cores}, vector unit unknown ({exc})"
    block = 16 if vectors.startswith("AVX512") else 8
    return f"{platform.machine()}, {cores}, {vectors}: convolutions are fastest in blocks of {block} channels"


def _draw(found: dict[str, Any], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("Python", Text(found["python"]))
    for name, version in found["packages"].items():
        grid.add_row(name, Text(version or "not installed", "" if version else "yellow"))
    for name, version in found["onnxruntime"].items():
        grid.add_row(name, Text(version))
    for p in found["providers"]:
        state = ("works", "green") if p["works"] else ("does not work", "yellow")
        grid.add_row(p["provider"], Text.assemble(state, f", {p['reason']}"))
    grid.add_row("telemetry", Text(found["telemetry"]))
    grid.add_row("CPU", Text(found["cpu"]))
    for problem in found["problems"]:
        grid.add_row(Text("problem", "bold red"), Text(problem))
    console.print(grid)
    if not found["problems"]:
        console.print(Text("\nEverything that is needed works.", "green"))
