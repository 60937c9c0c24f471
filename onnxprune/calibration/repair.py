"""Refit the layers behind removed channels, from input to output, on the activations of the already pruned model.

The original (teacher) and the pruned model (student) run side by side, segment by segment. A segment ends where layers wait to
be refitted: their inputs are at hand in the student, their outputs in the teacher. After the solve the next segment runs with the
new weights. So every node of either model runs once per sample, and no activation is kept longer than the next segment needs it.
Early layers need few samples (see calibration.quota): others join when a layer wants them, straight from the inputs.

Where the output of a layer is added to a residual branch that is already computed, the target also makes up for what that branch
has lost: t = y + (other - other'), He et al. 2017 section 3.3 for multi-branch networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnxprune.calibration.fitting import fixed_batch
from onnxprune.calibration.observe import Progress
from onnxprune.calibration.quota import HELD_EVERY, batches_wanted, rows_wanted, samples_wanted
from onnxprune.calibration.segments import Parts, reads, segment
from onnxprune.calibration.sources import Source
from onnxprune.calibration.store import Arrays, Store
from onnxprune.calibration.views import batch_norm
from onnxprune.compensation.least_squares import Regression, Repaired
from onnxprune.compensation.sampled import MOST, Sampled
from onnxprune.contract.gram import WIDEST
from onnxprune.devices import Device
from onnxprune.errors import DataError
from onnxprune.graph import surgeon
from onnxprune.graph.load import stored_bytes
from onnxprune.graph.structure import Graph
from onnxprune.matrix import from_matrix, group_count, outputs, positions, rows, to_matrix
from onnxprune.network import Bools, Layer, Network
from onnxprune.rewrite.cut import Cut
from onnxprune.runtime import Session

# Bytes of sums of products that one pass of the parallel repair may hold.
GRAM_BUDGET = 1 << 30
# Bytes of activations per model that wait in memory for the next segment; beyond that they wait on disk.
FEWEST_STORED, MOST_STORED = 1 << 24, 1 << 28
Solver = Callable[..., Repaired]
Data = Regression | Sampled


@dataclass(frozen=True)
class LayerRepair:
    """What the repair of one layer did: relative squared error of its output on unseen samples, before and after; rows used."""

    layer: str
    before: float
    after: float
    ridge: float | None
    rows: int


class Levels:
    """level[t]: how many refitted layers lie between the inputs and tensor t, on the longest path."""

    def __init__(self, graph: Graph, layers: Sequence[Layer]) -> None:
        waiting = {layer.node for layer in layers}
        self.tensor: dict[str, int] = dict.fromkeys(graph.inputs, 0)
        for index, node in enumerate(graph.nodes):
            if all(o in graph.constants for o in node.output if o):
                continue
            level = max((self.tensor[n] for n in reads(graph, index) if n in self.tensor), default=0)
            for output in node.output:
                if output:
                    self.tensor[output] = level + (index in waiting)
        self.layers: dict[int, list[Layer]] = {}
        for layer in layers:
            self.layers.setdefault(self.tensor[layer.input], []).append(layer)


class Repair:
    """One repair run; `run` changes `cut.model` in place and returns what was done layer by layer."""

    def __init__(
        self, graph: Graph, network: Network, cut: Cut, alive: Bools, *, solver: Solver, device: Device, seed: int,
        teacher: Parts | None = None,
    ) -> None:  # fmt: skip
        """teacher: the original, where it is not `graph.model`; its nodes pair off with the graph's."""
        self.graph, self.network, self.cut, self.alive = graph, network, cut, alive
        self.solver, self.device, self.seed = solver, device, seed
        self.teacher, self.student = teacher or Parts(graph, graph.model), Parts(graph, cut.model)
        self.stored: dict[str, TensorProto] = {t.name: t for t in cut.model.graph.initializer}
        for node in cut.model.graph.node:
            if node.op_type == "Constant" and node.output[0] in graph.parameters:
                self.stored.setdefault(node.output[0], node.attribute[0].t)

    def run(
        self, layers: Sequence[Layer], source: Source, batch: int, progress: Progress, *, sequential: bool
    ) -> list[LayerRepair]:
        """Refit all layers. sequential: from input to output, all samples for one segment before the next.

        Otherwise every layer by itself, on the original's inputs.
        """
        if not sequential:
            return self._apart(layers, source, batch, progress)
        batch = fixed_batch(source.inputs) or batch
        levels = Levels(self.graph, layers)
        done: list[LayerRepair] = []
        feeds = source.batches(batch)
        wanted = 0
        # Activations in memory as large as the model at most, so that memory is a matter of the model alone.
        budget = max(FEWEST_STORED, min(stored_bytes(self.graph.model), MOST_STORED))
        with Store(budget) as teacher, Store(budget) as student:
            for step in sorted(levels.layers):
                ready = levels.layers[step]
                samples = max(samples_wanted(layer, rows_wanted(n), n) for layer in ready for n in [self._inputs(layer)])
                wanted = max(wanted, batches_wanted(samples, source.count, batch))
                share = max(min(wanted, source.count // batch), 1)
                fits = self._gather(levels, step, ready, feeds, wanted, share, teacher, student)
                done += [self._refit(layer, *fits.pop(layer.name)) for layer in ready]
                progress("repairing", len(done) / len(layers))
        return done

    def _apart(self, layers: Sequence[Layer], source: Source, batch: int, progress: Progress) -> list[LayerRepair]:
        """Every layer on the original's activations, as many layers in one pass as their sums of products fit into memory."""
        done: list[LayerRepair] = []
        for part in self._portions(layers):
            wanted = sorted({n for layer in part for n in (layer.input, layer.output)})
            run = _Runner(self.teacher, self.graph, wanted, self.device)
            fits = {layer.name: self._unfitted(layer) for layer in part}
            rng = torch.Generator().manual_seed(self.seed)
            for number, feeds in enumerate(source.batches(batch)):
                now = run(feeds)
                for layer in part:
                    axis, keep = self._kept(layer, layer.input)
                    left = {layer.input: now[layer.input].take(keep.numpy(force=True), axis=axis)}
                    fit, held = fits[layer.name]
                    self._add(
                        layer,
                        held if number % HELD_EVERY == HELD_EVERY - 1 else fit,
                        now,
                        left,
                        max(source.count // batch, 1),
                        rng,
                    )
            run.free()
            done += [self._refit(layer, *fits[layer.name]) for layer in part]
            progress("repairing", len(done) / len(layers))
        return done

    def _unfitted(self, layer: Layer) -> tuple[Data, Data]:
        """What a layer will be fitted on, and what will judge it, both empty yet."""
        return (Regression(), Regression()) if self._inputs(layer) <= WIDEST else (Sampled(), Sampled())

    def _portions(self, layers: Sequence[Layer]) -> list[list[Layer]]:
        portions: list[list[Layer]] = [[]]
        used = 0
        for layer in layers:
            inputs = self._inputs(layer)
            groups = group_count(layer, tuple(self._weight(layer).dims))
            size = 2 * 8 * groups * (inputs + 1) * (inputs + 1 if inputs <= WIDEST else MOST)
            if portions[-1] and used + size > GRAM_BUDGET:
                portions.append([])
                used = 0
            portions[-1].append(layer)
            used += size
        return portions

    def _gather(
        self, levels: Levels, step: int, ready: Sequence[Layer], feeds: Iterator[Arrays], wanted: int, share: int,
        teacher: Store, student: Store,
    ) -> dict[str, tuple[Data, Data]]:  # fmt: skip
        """Run the next segment of both models over `wanted` batches; sums of products for every layer that waits at its end.

        share: over how many batches the rows of a layer are spread.
        Batches that the stores do not hold yet come from `feeds` and run from the inputs on.
        """
        ahead = {layer.output for layer in ready}
        frontier_s = self._frontier(levels, step, set())
        frontier_t = self._frontier(levels, step, ahead)
        next_t = [*frontier_t, *sorted(ahead - set(frontier_t))]
        fits = {layer.name: self._unfitted(layer) for layer in ready}
        rng = torch.Generator().manual_seed(self.seed)
        for numbers in (range(min(len(teacher), wanted)), range(len(teacher), wanted)):
            run_s = _Runner(self.student, self.graph, frontier_s, self.device)
            run_t = _Runner(self.teacher, self.graph, next_t, self.device)
            for number in numbers:
                if number == len(teacher):
                    given = next(feeds, None)
                    if given is None:
                        break
                    teacher.put(number, given)
                    student.put(number, given)
                now_t, now_s = run_t(teacher.get(number)), run_s(student.get(number))
                for layer in ready:
                    fit, held = fits[layer.name]
                    self._add(layer, held if number % HELD_EVERY == HELD_EVERY - 1 else fit, now_t, now_s, share, rng)
                teacher.put(number, {n: now_t[n] for n in frontier_t})
                student.put(number, {n: now_s[n] for n in frontier_s})
            run_s.free()
            run_t.free()
        return fits

    def _frontier(self, levels: Levels, step: int, ahead: set[str]) -> list[str]:
        """Tensors known after this step that a later node reads. `ahead`: outputs of waiting layers, if they are known too."""
        through = segment(self.graph, levels.tensor.keys() - self._after(levels, step), sorted(ahead)).nodes if ahead else ()
        passed = {o for index in through for o in self.graph.nodes[index].output if o}
        known = {t for t, level in levels.tensor.items() if level <= step} | passed
        wanted: set[str] = set()
        for index, node in enumerate(self.graph.nodes):
            if any(o in levels.tensor and o not in known for o in node.output if o):
                wanted.update(n for n in reads(self.graph, index) if n in known)
        return sorted(wanted)

    @staticmethod
    def _after(levels: Levels, step: int) -> set[str]:
        return {t for t, level in levels.tensor.items() if level > step}

    def _add(self, layer: Layer, fit: Data, teacher: Arrays, student: Arrays, batches: int, rng: torch.Generator) -> None:
        device = self.device.torch_device
        x = torch.from_numpy(student[layer.input]).to(device)
        groups = group_count(layer, tuple(self._weight(layer).dims))
        chosen = positions(layer, x, -(-rows_wanted(self._inputs(layer)) // batches), rng)
        target = self._target(layer, teacher, student, chosen)
        fit.add(rows(layer, x, groups, chosen), target)

    def _inputs(self, layer: Layer) -> int:
        """Inputs that one output of the cut layer sums over."""
        shape: tuple[int, ...] = tuple(self._weight(layer).dims)
        if layer.op == "ConvTranspose":
            return prod(shape) // (shape[1] * group_count(layer, shape))
        return prod(shape) // shape[1 if layer.transposed else 0]

    def _target(self, layer: Layer, teacher: Arrays, student: Arrays, chosen: torch.Tensor | None) -> torch.Tensor:
        """The original's pre-activation at the kept outputs, made good for what the residual branch has lost."""
        device = self.device.torch_device
        keep = self._kept(layer, layer.output)[1]
        target = outputs(layer, torch.from_numpy(teacher[layer.output]).to(device), chosen)[:, keep].float()
        residual = layer.residual
        if residual is None or residual.other not in student or residual.other not in teacher:
            return target
        whole = outputs(layer, torch.from_numpy(teacher[residual.other]).to(device), chosen)[:, keep].float()
        lost = whole - outputs(layer, torch.from_numpy(student[residual.other]).to(device), chosen).float()
        if residual.batch_norm is not None:
            factor = batch_norm(self.graph, residual.batch_norm, device)[0][keep]
            usable = factor.abs() > 1e-3 * factor.abs().max()
            lost = torch.where(usable, lost / torch.where(usable, factor, torch.ones_like(factor)), torch.zeros_like(lost))
        return target + lost

    def _kept(self, layer: Layer, tensor: str) -> tuple[int, torch.Tensor]:
        """The channel axis of the layer's input or output, and the positions along it that stay."""
        shape = self.graph.shapes[tensor]
        axis = 1 if layer.op.startswith("Conv") else len(shape) - (2 if layer.side == "left" else 1)
        channels = self.network.tensor_channels.get(tensor, {}).get(axis)
        keep = np.arange(shape[axis]) if channels is None else np.flatnonzero(self.alive[channels])
        return axis, torch.from_numpy(keep).to(self.device.torch_device)

    def _weight(self, layer: Layer) -> TensorProto:
        return self.stored[layer.weight]

    def _refit(self, layer: Layer, fit: Data, held: Data) -> LayerRepair:
        device = self.device.torch_device
        if not (fit.finite() and held.finite()):
            raise DataError(
                f"NaN or infinity in {layer.input!r}, which layer {layer.name!r} reads, or in its output, on the sample inputs",
                "check the samples' scale, or the model",
            )
        proto = self._weight(layer)
        value = numpy_helper.to_array(proto)
        matrix = to_matrix(layer, torch.from_numpy(value.astype(np.promote_types(value.dtype, np.float32))).to(device, fit.kind))
        bias = self._bias(layer, matrix)
        free = layer.bias is not None or layer.widen_bias
        found = self.solver(fit, held, matrix, bias, free_bias=free)
        if found.weight is not matrix:
            new = from_matrix(layer, found.weight, tuple(value.shape)).cpu().numpy().astype(value.dtype)
            proto.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new), proto.name))
            if free:
                self._set_bias(layer, found.bias.reshape(-1).cpu().numpy() / layer.bias_scale, value.dtype)
        return LayerRepair(layer.name, found.before, found.after, found.ridge, fit.count + held.count)

    def _bias(self, layer: Layer, matrix: torch.Tensor) -> torch.Tensor:
        """(groups, out), zeros where there is none."""
        if layer.bias is None:
            return torch.zeros(matrix.shape[:2], dtype=matrix.dtype, device=matrix.device)
        value = numpy_helper.to_array(self._stored_bias(layer)).astype(np.float64) * layer.bias_scale
        return torch.from_numpy(value).to(matrix.device).reshape(matrix.shape[:2])

    def _bias_input(self, layer: Layer) -> tuple[int, int]:
        """(node, input) that reads the bias: the layer itself or the Add behind it."""
        node = layer.bias_node if layer.bias_node is not None else layer.node
        if node == layer.node:
            return node, 2
        names = list(self.graph.nodes[node].input)
        return node, next(i for i, n in enumerate(names) if n in self.graph.constants)

    def _stored_bias(self, layer: Layer) -> TensorProto:
        name = self.cut.renamed.get(self._bias_input(layer), layer.bias or "")
        return self.stored[name]

    def _set_bias(self, layer: Layer, value: NDArray[Any], kind: np.dtype[Any]) -> None:
        """Write the bias where the layer reads it. A new or a shared one becomes an initializer of its own."""
        node, position = self._bias_input(layer)
        model = self.cut.model
        shared = layer.bias is not None and len(self.graph.end_users(layer.bias)) > 1 and (node, position) not in self.cut.renamed
        if layer.bias is not None and not shared:
            proto = self._stored_bias(layer)
            old = numpy_helper.to_array(proto)
            proto.CopyFrom(numpy_helper.from_array(value.reshape(old.shape).astype(old.dtype), proto.name))
            return
        name = f"{layer.bias or layer.weight + '.bias'}@{layer.name}"
        shape = tuple(numpy_helper.to_array(self._stored_bias(layer)).shape) if shared else value.shape
        self.stored[name] = surgeon.add_initializer(model, numpy_helper.from_array(value.reshape(shape).astype(kind), name))
        inputs = model.graph.node[node].input
        if len(inputs) > position:
            inputs[position] = name
        else:
            inputs.append(name)
        self.cut.renamed[node, position] = name
        self.student.refresh()


class _Runner:
    """Runs the segment between what a batch has at hand and what is wanted; built when the first batch shows what that is."""

    def __init__(self, parts: Parts, graph: Graph, wanted: Sequence[str], device: Device) -> None:
        self._parts, self._graph, self._wanted, self._device = parts, graph, wanted, device
        self._session: Session | None = None
        self._built = False

    def __call__(self, at_hand: Arrays) -> Arrays:
        """Everything at hand plus everything wanted."""
        if not self._built:
            part = segment(self._graph, at_hand, self._wanted)
            self._session = Session(self._parts.model(part), self._device) if part.nodes else None
            self._built = True
        return at_hand | (self._session.run(at_hand) if self._session else {})

    def free(self) -> None:
        if self._session:
            self._session.free()
