"""`--guarantee-labels`: how large one layer's error may be for a share of the calibration samples to keep their labels.

The paper ("When Are Neural Pruning Approximation Bounds Useful?", section 4) prunes the last layer alone and takes eps from Lemma
4.1 over the logits. So it is done here, with two differences. The lemma's eps is relative to the logits, the bounds of Baykal et
al. to d_i = sum_k |w_ik| |x_k|, which is more as soon as terms cancel: the eps that guarantees labels is taken against d, and the
lemma's own is told beside it. And an earlier layer may be chosen (--only) where fully connected layers and functions that are no
steeper than 1 follow: an error of at most e_k in its outputs becomes one of at most sum_k |w_ik| e_k in those of the next.

Labels are what the original model says; nobody's knowledge of the right ones is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxprune.calibration.observe import Progress, observe
from onnxprune.calibration.sources import Source
from onnxprune.calibration.views import tensor
from onnxprune.contract import Statistic
from onnxprune.decide.evidence import tap
from onnxprune.devices import Device
from onnxprune.errors import UsageError
from onnxprune.graph.structure import Graph
from onnxprune.matrix import to_matrix
from onnxprune.network import Layer, Network
from onnxprune.validation.labels import guaranteed_share, multiplicative_margins, required_epsilon, scaled_margins

Step = Callable[[Tensor], Tensor]
# What may stand between fully connected layers: no steeper than 1, so that an error does not grow.
GENTLE: dict[str, Step] = {
    "Relu": torch.relu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "Abs": torch.abs,
    "Softplus": torch.nn.functional.softplus,
}
# What leaves the values as they are, and what leaves their order as it is, up to the model's output.
STILL = frozenset({"Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Cast"})
FINAL = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "Tanh", "ArgMax", *STILL})


@dataclass(frozen=True)
class Dense:
    """y = matrix @ x + bias; matrix (out, in)."""

    matrix: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Required:
    """The eps that guarantees `share` of the labels at `samples` places of calibration samples.

    lemma    what Lemma 4.1 says of a multiplicative bound: relative to the logits themselves; None for an additive one
    margins  (places,): the eps from which on each label may flip
    """

    layer: str
    epsilon: float
    lemma: float | None
    share: float
    margins: NDArray[np.float64]

    def figures(self) -> dict[str, object]:
        figures: dict[str, object] = {
            "layer": self.layer, "share": self.share, "epsilon": self.epsilon, "labels": len(self.margins),
            "guaranteed": guaranteed_share(self.margins, self.epsilon),
        }  # fmt: skip
        return figures if self.lemma is None else figures | {"lemma_epsilon": self.lemma}


def required(
    graph: Graph, network: Network, layer: Layer, share: float, source: Source, *, additive: bool, batch: int, device: Device,
    seed: int, progress: Progress,
) -> Required:  # fmt: skip
    """The error that `layer` may have: additive, the same for each of its outputs, or relative to d (see above)."""
    counted = LabelMargins(_path(graph, network, layer, device), additive)
    taps = [tap(layer, counted, source.count, batch)]
    observe(graph, taps, source, batch=batch, device=device, seed=seed, progress=progress)
    found = np.concatenate(counted.margins) if counted.margins else np.zeros(0)
    lemma = None if additive else required_epsilon(np.concatenate(counted.lemma), share)
    return Required(layer.name, required_epsilon(found, share), lemma, share, found)


def last_layer(graph: Graph, network: Network) -> Layer:
    """The layer whose outputs the model's classes are. Raises UsageError where there is no such."""
    for layer in reversed(network.layers):
        if _reaches_output(graph, layer.output):
            return layer
    raise UsageError(
        "no layer makes this model's outputs by itself", "choose the error yourself: --epsilon, of each layer's output"
    )


def _reaches_output(graph: Graph, name: str) -> bool:
    while name not in graph.outputs:
        user = graph.sole_user(name)
        if user is None or graph.nodes[user].op_type not in FINAL:
            return False
        name = graph.nodes[user].output[0]
    return True


def _path(graph: Graph, network: Network, layer: Layer, device: Device) -> list[Dense | Step]:
    """From the layer's input to the logits."""
    by_node = {found.node: found for found in network.layers}
    steps: list[Dense | Step] = []
    current: Layer | None = layer
    while current is not None:
        if current.op not in ("Gemm", "MatMul") or current.side == "left":
            what = f"{current.name!r} is a {current.op}"
            raise UsageError(
                f"labels cannot be guaranteed: {what}, no fully connected layer", "--only a later layer, or give --epsilon"
            )
        steps.append(_dense(graph, network, current, device))
        name = current.output
        current = None
        while not _reaches_output(graph, name):
            user = graph.sole_user(name)
            node = graph.nodes[user] if user is not None else None
            if user in by_node:
                current = by_node[user]
                break
            if (
                node is None
                or node.op_type not in GENTLE.keys() | STILL
                or graph.shapes.get(name) != graph.shapes.get(node.output[0])
            ):
                what = "several nodes read it" if node is None else f"{node.op_type} reads it"
                raise UsageError(
                    f"labels cannot be guaranteed by {layer.name!r}: what becomes of an error in {name!r} is not known ({what})",
                    "--only a later layer, or give --epsilon",
                )
            steps += [GENTLE[node.op_type]] if node.op_type in GENTLE else []
            name = node.output[0]
    return steps


def _dense(graph: Graph, network: Network, layer: Layer, device: Device) -> Dense:
    matrix = to_matrix(layer, tensor(graph, layer.weight, device.torch_device, network.quantised))[0].double()
    bias = matrix.new_zeros(len(matrix))
    if layer.bias is not None:
        stored = tensor(graph, layer.bias, device.torch_device, network.quantised).double() * layer.bias_scale
        bias = stored.flatten().expand(len(matrix))
    return Dense(matrix, bias)


class LabelMargins(Statistic):
    """Per place: the eps from which on its label may flip, and the lemma's own. Two numbers are kept of each row."""

    rows = "grouped"

    def __init__(self, steps: Sequence[Dense | Step], additive: bool) -> None:
        self.steps, self.additive = steps, additive
        self.margins: list[NDArray[np.float64]] = []
        self.lemma: list[NDArray[np.float64]] = []

    def add(self, rows: Tensor) -> None:
        """rows (n, 1, in)."""
        x = rows[:, 0].double()
        reach: Tensor | None = None
        for step in self.steps:
            if not isinstance(step, Dense):
                x = step(x)
            elif reach is None:
                reach = torch.ones(len(x), len(step.matrix), dtype=x.dtype, device=x.device)
                reach = reach if self.additive else x.abs() @ step.matrix.abs().T
                x = x @ step.matrix.T + step.bias
            else:
                reach = reach @ step.matrix.abs().T
                x = x @ step.matrix.T + step.bias
        assert reach is not None, "a path begins with a layer"
        logits = x.cpu().numpy()
        self.margins.append(scaled_margins(logits, reach.cpu().numpy()))
        self.lemma.append(multiplicative_margins(logits))

    def merge(self, other: Self) -> None:
        self.margins += other.margins
        self.lemma += other.lemma

    def wanted(self, inputs: int) -> int | None:
        return None
