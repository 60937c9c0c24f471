"""Accuracy, latency and MACs of an ONNX file by plain ONNX Runtime: shares no code with onnxprune, so it can judge it."""

from __future__ import annotations

import statistics
import time
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def session(model: Path | onnx.ModelProto, threads: int, optimise: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def macs_and_weights(model: Path | onnx.ModelProto, feed: dict[str, np.ndarray]) -> tuple[int, int]:
    """Multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul for this feed, and the weights of these operators.

    The shapes are those that ONNX Runtime really produces, unoptimised, with the operators' tensors made outputs. Biases and
    batch norms are left out of the weights, so that files before and after batch norm folding compare.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(onnx.load(model) if isinstance(model, Path) else model)
    graph = proto.graph
    constants = {i.name: tuple(i.dims) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t).shape
    nodes = [n for n in graph.node if n.op_type in COUNTED]
    taps = {t for n in nodes for t in (*n.input[:2], n.output[0])} - constants.keys() - feed.keys()
    known = {o.name for o in graph.output}
    graph.output.extend(onnx.ValueInfoProto(name=t) for t in sorted(taps - known))
    runner = session(proto, 1, optimise=False)
    names = [o.name for o in runner.get_outputs()]
    shapes = constants | {k: v.shape for k, v in feed.items()}
    shapes |= {k: v.shape for k, v in zip(names, runner.run(names, feed), strict=True)}
    total, weights = 0, {}
    for node in nodes:
        a, b, y = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
        if node.op_type == "Conv":
            total += prod(y) * prod(b[1:])
        elif node.op_type == "ConvTranspose":
            total += prod(a) * prod(b[1:])
        else:
            attributes = {x.name: helper.get_attribute_value(x) for x in node.attribute}
            total += prod(y) * a[0 if attributes.get("transA") else -1]
        if node.input[1] in constants:
            weights[node.input[1]] = prod(b)
    return total, sum(weights.values())


def top1(path: Path, inputs: dict[str, np.ndarray], labels: np.ndarray, threads: int, batch: int = 50) -> float:
    """Share, in percent, of the samples whose largest output is the label."""
    runner = session(path, threads)
    guesses = [runner.run(None, {k: v[i : i + batch] for k, v in inputs.items()})[0] for i in range(0, len(labels), batch)]
    flat = np.concatenate([g.reshape(len(g), -1) for g in guesses])
    return float(100 * np.mean(flat.argmax(1) == labels))


def latencies(original: Path, pruned: Path, feed: dict[str, np.ndarray], rounds: int) -> tuple[float, float]:
    """Medians in milliseconds at one thread; the two models take turns, and turns at going first."""
    runners = [session(original, 1), session(pruned, 1)]
    times: list[list[float]] = [[], []]
    for turn in range(-max(5, rounds // 10), rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            runners[which].run(None, feed)
            if turn >= 0:
                times[which].append(1000 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])
