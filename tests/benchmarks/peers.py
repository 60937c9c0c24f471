"""onnxprune and its two peers, side by side, on the same real nets and data, without fine-tuning. See README.md here."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from peer_measure import latencies, macs_and_weights, session, top1


class Net(NamedTuple):
    file: str  # what every tool that reads ONNX is given, and what "original" means in the results
    with_norms: str  # the same net with its batch norms, whence the torch module's weights
    targets: tuple[float, ...]  # shares of the MACs to keep
    calibration: int  # images, from the front of calib.npz, for the tools that look at data


NETS = {
    "resnet20": Net("cifar10/resnet20.onnx", "cifar10/resnet20_bn.onnx", (0.7, 0.5), 512),
    "resnet56": Net("cifar10/resnet56.onnx", "cifar10/resnet56_bn.onnx", (0.7, 0.5), 512),
    "mobilenetv2": Net("imagenet/mobilenetv2_keras_bn_224.onnx", "imagenet/mobilenetv2_keras_bn_224.onnx", (0.8, 0.6), 256),
}
TOOLS = ("onnxprune", "torch-pruning", "onnxsim")
NEAR = 0.01  # a search for a MACs ratio is content this near to its target
Row = dict[str, Any]


class Task(NamedTuple):
    """One net at one target, with all that a tool needs."""

    net: str
    target: float
    original: Path
    with_norms: Path
    calib: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    labels: np.ndarray
    folder: Path
    options: argparse.Namespace

    @property
    def one(self) -> dict[str, np.ndarray]:
        return {k: v[:1] for k, v in self.test.items()}

    def path(self, tool: str, variant: str) -> Path:
        return self.folder / f"{self.net}.{self.target:g}.{tool}.{variant}.onnx"


class Candidate(NamedTuple):
    path: Path
    seconds: float  # in the tool's own calls, reading, searching and writing together
    seconds_once: float | None  # one such call with the ratio known beforehand
    facts: Row


class Stopwatch:
    """Sums up the time spent in the tool itself, so that our counting of MACs is not charged to it."""

    def __init__(self) -> None:
        self.total = self.last = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.last = time.perf_counter() - start
        self.total += self.last


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def search(ratio_at: Callable[[float], float], target: float, most: float = 0.95, steps: int = 10) -> float:
    """The share to remove whose MACs ratio is nearest to the target: interpolation kept inside a shrinking bracket."""
    low, high, high_value, low_value = 0.0, most, 0.0, 1.0
    tried: dict[float, float] = {}
    for _ in range(steps):
        slope = (low_value - target) / max(low_value - high_value, 1e-9)
        share = low + (high - low) * min(max(slope, 0.15), 0.85)
        value = tried[share] = ratio_at(share)
        if abs(value - target) <= NEAR:
            break
        if value > target:
            low, low_value = share, value
        else:
            high, high_value = share, value
    return min(tried, key=lambda s: (abs(tried[s] - target), s))


def torch_pruning_candidates(task: Task) -> Iterator[tuple[str, Callable[[], Candidate]]]:
    """Group importances of Torch-Pruning, ranked per layer and over the network; MobileNetV2 also without its residual stream."""
    import peer_nets
    import torch
    import torch_pruning as tp

    torch.set_num_threads(task.options.threads)
    example = torch.from_numpy(next(iter(task.one.values())))
    whole = peer_nets.load(task.net, task.with_norms)
    eight = next(iter(task.test.values()))[:8]
    expected = session(task.with_norms, task.options.threads).run(None, {next(iter(task.test)): eight})[0]
    apart = float(np.abs(peer_nets.outputs(whole, eight) - expected).max())
    if apart > 1e-4:
        raise SystemExit(f"{task.net}: the torch module is not the file, outputs are {apart:.2g} apart")
    importances = {
        "group-l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "bn-scale": tp.importance.BNScaleImportance,
        "lamp": tp.importance.LAMPImportance,
    }
    scopes = ["all", "inner"] if hasattr(whole, "residual_stream") else ["inner"]
    dense = peer_nets.macs(whole, example)

    def pruned(share: float, criterion: str, everywhere: bool, scope: str) -> torch.nn.Module:
        module = copy.deepcopy(whole)
        kept = module.kept_whole()
        if scope == "inner" and hasattr(module, "residual_stream"):
            kept = kept + module.residual_stream()
        tp.pruner.BasePruner(
            module, example, importance=importances[criterion](), pruning_ratio=share, global_pruning=everywhere,
            max_pruning_ratio=0.95, ignored_layers=kept, round_to=task.options.round_to,
        ).step()  # fmt: skip
        return module

    def candidate(variant: str, criterion: str, everywhere: bool, scope: str) -> Candidate:
        watch, cache = Stopwatch(), {}
        with watch.running():
            peer_nets.load(task.net, task.with_norms)
        reading = watch.last
        once: dict[float, float] = {}

        def ratio_at(share: float) -> float:
            with watch.running():
                cache[share] = pruned(share, criterion, everywhere, scope)
            once[share] = watch.last
            return peer_nets.macs(cache[share], example) / dense

        share = search(ratio_at, task.target)
        path = task.path("torch-pruning", variant)
        with watch.running():
            peer_nets.export(cache[share], example, path)
        facts = {"share": share, "calibration_images": 0, "module_differs_by": apart}
        return Candidate(path, watch.total, reading + once[share] + watch.last, facts)

    for criterion in importances:
        for everywhere in (False, True):
            for scope in scopes:
                variant = "-".join([criterion, "global" if everywhere else "local", *([scope] if len(scopes) > 1 else [])])
                yield variant, lambda a=(variant, criterion, everywhere, scope): candidate(*a)


def onnxsim_candidates(task: Task) -> Iterator[tuple[str, Callable[[], Candidate]]]:
    """Weight norms and their calibrated form (wanda), per layer and global; batch norms are folded first, as onnxsim demands."""
    import onnxsim
    from onnxsim import pruning

    size = 32
    count = len(next(iter(task.calib.values())))
    batches = [{k: v[i : i + size] for k, v in task.calib.items()} for i in range(0, count, size)]
    source = onnx.load(task.original)
    dense, _ = macs_and_weights(source, task.one)

    def candidate(variant: str, calibrated: bool, everywhere: bool) -> Candidate:
        watch = Stopwatch()
        with watch.running():
            model = onnx.load(task.original)
            if any(n.op_type == "BatchNormalization" for n in model.graph.node):
                model, _ = onnxsim.simplify(model)
        reading = watch.last
        made: dict[float, tuple[onnx.ModelProto, float]] = {}

        def ratio_at(share: float) -> float:
            with watch.running():
                if calibrated:
                    result = pruning.apply_structured_wanda_pruning(
                        model, calibration_data=batches, sparsity=share, global_sparsity=everywhere,
                        providers=["CPUExecutionProvider"],
                    )  # fmt: skip
                else:
                    result = pruning.apply_structured_pruning(model, sparsity=share, global_sparsity=everywhere)
            made[share] = result, watch.last
            return macs_and_weights(result, task.one)[0] / dense

        share = search(ratio_at, task.target)
        path = task.path("onnxsim", variant)
        with watch.running():
            onnx.save(made[share][0], path)
        facts = {"share": share, "calibration_images": count if calibrated else 0}
        return Candidate(path, watch.total, reading + made[share][1] + watch.last, facts)

    for calibrated in (False, True):
        for everywhere in (False, True):
            variant = f"{'wanda' if calibrated else 'l2'}-{'global' if everywhere else 'local'}"
            yield variant, lambda a=(variant, calibrated, everywhere): candidate(*a)


def onnxprune_candidates(task: Task) -> Iterator[tuple[str, Callable[[], Candidate]]]:
    """Our own command, as a user would give it; it finds the ratio for the target itself."""
    variant = task.options.method

    def candidate() -> Candidate:
        path = task.path("onnxprune", variant)
        report, calib = path.with_suffix(".json"), path.with_suffix(".calib.npz")
        for old in (path, report):
            old.unlink(missing_ok=True)
        np.savez(calib, **task.calib)
        command = [
            *shlex.split(task.options.command), str(task.original), "--method", variant, "--target", f"macs={task.target:g}",
            "--data", str(calib), "-o", str(path), "--no-latency", "--json", str(report), *shlex.split(task.options.extra),
        ]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        calib.unlink()
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-300:]}")
        said = json.loads(report.read_text(encoding="utf-8"))
        claimed = said["pruned"]["macs"] / said["original"]["macs"]
        count = len(next(iter(task.calib.values())))
        facts = {"version": said["tool"]["version"], "claimed_macs_ratio": claimed, "calibration_images": count}
        return Candidate(path, seconds, None, facts)

    yield variant, candidate


CANDIDATES = {"torch-pruning": torch_pruning_candidates, "onnxsim": onnxsim_candidates, "onnxprune": onnxprune_candidates}


def settings_of(tool: str, options: argparse.Namespace) -> str:
    if tool == "torch-pruning" and options.round_to:
        return f"round_to={options.round_to}"
    return f"{options.method} {options.extra}".strip() if tool == "onnxprune" else ""


def measure(tool: str, task: Task) -> Row:
    """Every variant of the tool, pruned and scored; the one with the best accuracy near the target is the tool's result."""
    row: Row = {"tool": tool, "net": task.net, "target": task.target, "settings": settings_of(tool, task.options)}
    with contextlib.suppress(metadata.PackageNotFoundError):
        row["version"] = metadata.version(tool)
    dense, weights = macs_and_weights(task.original, task.one)
    tried: list[tuple[float, Row, Path]] = []
    variants: dict[str, Row] = {}
    for variant, make in CANDIDATES[tool](task):
        try:
            made = make()
            macs, kept = macs_and_weights(made.path, task.one)
            accuracy = top1(made.path, task.test, task.labels, task.options.threads)
        except Exception as error:  # a peer that fails is a result too
            variants[variant] = {"error": f"{type(error).__name__}: {error}"[:400]}
            say(f"  {variant}: {variants[variant]['error']}")
            continue
        found = {"macs_ratio": macs / dense, "weights_ratio": kept / weights, "top1_pruned": accuracy}
        found |= {"seconds": made.seconds, "seconds_once": made.seconds_once} | made.facts
        variants[variant] = found
        far = abs(found["macs_ratio"] - task.target) > 3 * NEAR
        say(f"  {variant}: MACs {found['macs_ratio']:.3f}, top-1 {accuracy:.2f}, {made.seconds:.1f} s{' (target missed)' * far}")
        tried.append((accuracy - 1000 * far, {"variant": variant} | found, made.path))
    row["variants"] = variants
    if not tried:
        return row | {"error": "; ".join(v["error"] for v in variants.values())}
    _, best, path = max(tried, key=lambda t: t[0])
    row |= best
    row["top1_original"] = top1(task.original, task.test, task.labels, task.options.threads)
    before, after = latencies(task.original, path, task.one, task.options.rounds)
    return row | {"latency_ms_original": before, "latency_ms_pruned": after, "rounds": task.options.rounds, "file": path.name}


def tasks(options: argparse.Namespace) -> Iterator[Task]:
    for name in options.nets or NETS:
        net = NETS[name]
        data = options.data / Path(net.file).stem
        count = net.calibration if options.calib is None else options.calib or None
        calib, test = np.load(data / "calib.npz"), np.load(data / "test.npz")
        for target in options.targets or net.targets:
            yield Task(
                name, target, options.models / net.file, options.models / net.with_norms,
                {k: calib[k][:count] for k in calib}, dict(test), np.load(data / "labels.npy"),
                options.out.parent, options,
            )  # fmt: skip


def table(rows: list[Row]) -> str:
    """Markdown; where a tool ran twice with the same settings, the later line of the results counts."""
    latest = {(r["net"], r["target"], TOOLS.index(r["tool"]), r["settings"]): r for r in rows}
    order = list(NETS)
    titles = [
        "net",
        "asked",
        "tool",
        "variant",
        "MACs",
        "weights",
        "top-1 before",
        "after",
        "lost",
        "latency, ms",
        "speed-up",
        "seconds",
    ]
    lines = [f"| {' | '.join(titles)} |", "|---|--:|---|---|" + "--:|" * 8]
    for key in sorted(latest, key=lambda k: (order.index(k[0]), -k[1], *k[2:])):
        row = latest[key]
        cells = [row["net"], f"{row['target']:g}", f"{row['tool']} {row.get('version', '')}".strip()]
        if "error" in row:
            cells += [f"failed: {row['error'][:80].replace('|', ' ')}", *[""] * 8]
        else:
            before, after = row["latency_ms_original"], row["latency_ms_pruned"]
            variant = row["settings"] if row["tool"] == "onnxprune" else f"{row['variant']} {row['settings']}".strip()
            cells += [variant, f"{row['macs_ratio']:.3f}", f"{row['weights_ratio']:.3f}"]
            cells += [f"{v:.1f}" for v in (row["top1_original"], row["top1_pruned"], row["top1_original"] - row["top1_pruned"])]
            cells += [f"{before:.2f} -> {after:.2f}", f"{before / after:.2f}x", f"{row['seconds']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of prepared arrays: <file stem>/{calib.npz,test.npz,labels.npy}")
    parser.add_argument("--models", type=Path, help="folder of the models: cifar10/*.onnx, imagenet/*.onnx")
    parser.add_argument("--tool", choices=TOOLS)
    parser.add_argument("--out", type=Path, required=True, help="results, one JSON object a line; models are written beside it")
    parser.add_argument("--table", action="store_true", help="print the results as Markdown and do nothing else")
    parser.add_argument("--nets", nargs="+", choices=list(NETS))
    parser.add_argument("--targets", nargs="+", type=float, help="shares of the MACs to keep, instead of each net's own")
    parser.add_argument("--calib", type=int, help="calibration images, 0 for all (default: 512 CIFAR, 256 ImageNet)")
    parser.add_argument("--threads", type=int, default=2, help="for pruning and scoring; latency is always at one")
    parser.add_argument("--rounds", type=int, default=60, help="of the latency measurement")
    parser.add_argument("--round-to", type=int, help="Torch-Pruning's channel rounding (it has none by default)")
    parser.add_argument("--command", default="onnxprune", help="how onnxprune is called")
    parser.add_argument("--method", default="coreset-channel", help="onnxprune's method")
    parser.add_argument("--extra", default="", help="more options for onnxprune, as one string")
    options = parser.parse_args()
    options.out = options.out.resolve()
    if options.table:
        text = options.out.read_text(encoding="utf-8")
        sys.stdout.write(table([json.loads(line) for line in text.splitlines()]) + "\n")
        return
    if not (options.tool and options.data and options.models):
        parser.error("--tool, --data and --models are needed")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for task in tasks(options):
        say(f"{options.tool}: {task.net} at {task.target:g} of the MACs")
        row = measure(options.tool, task)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
