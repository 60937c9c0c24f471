"""Small hand-built nets, and the yardstick of the rule tests: removed == masked, where the masking knows nothing of our labels.

The yardstick takes from a cut only the positions it says it removed from each weight, and puts a 0/1 mask (a Mul node) in front
of every layer of the original that reads those positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.find import find
from onnxprune.graph.prepare import prepare
from onnxprune.rewrite.cut import Cut, cut

F32 = TensorProto.FLOAT
RECURRENT = ("GRU", "LSTM", "RNN")
# Products of integers: positions of the weights and of the zero point of the activation.
INTEGERS = {
    "ConvInteger": (1, 2), "MatMulInteger": (1, 2), "MatMulIntegerToFloat": (1, 4), "QGemm": (3, 2), "QLinearConv": (3, 2),
    "QLinearMatMul": (3, 2),
}  # fmt: skip
# The operators of floats that they and others stand for.
STANDS_FOR = {
    "ConvInteger": "Conv", "DynamicQuantizeLSTM": "LSTM", "DynamicQuantizeMatMul": "MatMul", "MatMulInteger": "MatMul",
    "MatMulIntegerToFloat": "MatMul", "QGemm": "Gemm", "QLinearConv": "Conv", "QLinearMatMul": "MatMul",
}  # fmt: skip


def values(*shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Uniform numbers that depend on shape and seed alone."""
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(np.float32)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """`node("Conv", "x w", "y")`; a dash is an input or output left out. `name` and `domain` are passed on."""
    ins, outs = (["" if n == "-" else n for n in names.split()] for names in (inputs, outputs))
    return helper.make_node(op, ins, outs, **attributes)


def net(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str] = ("y",),
    *,
    opset: int = 17,
    ir: int = 8,
    kind: int = F32,
    output_kind: int | None = None,
    imports: Mapping[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    output_shape: Sequence[Any] | None = None,
    **graph_fields: Any,
) -> onnx.ModelProto:
    """A checked model. Outputs get the shapes that ONNX infers, or that which is given; before IR 4 weights are inputs too."""
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    listed = [helper.make_tensor_value_info(k, kind, list(v)) for k, v in inputs.items()]
    if ir < 4:
        listed += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors]
    outs = [helper.make_tensor_value_info(n, kind if output_kind is None else output_kind, None) for n in outputs]
    graph = helper.make_graph(list(nodes), "net", listed, outs, tensors, **graph_fields)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in (imports or {}).items())]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=functions)
    found = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
    for output, inferred in zip(model.graph.output, found, strict=True):
        output.type.CopyFrom(inferred.type)
        if output_shape is not None:
            output.type.CopyFrom(helper.make_tensor_type_proto(kind if output_kind is None else output_kind, output_shape))
        output.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(model)
    return model


def conv_net(
    middle: Sequence[onnx.NodeProto],
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    channels: int = 6,
    reads: int | None = None,
    size: Sequence[Any] = (8, 8),
    reader: str = "Conv",
    **fields: Any,
) -> onnx.ModelProto:
    """x -> Conv 'first' -> a, the nodes of `middle` make b of a, b -> Conv (or flat Gemm) 'last' -> y. `reads`: channels of b."""
    rank = len(size)
    reads = channels if reads is None else reads
    own = {"w1": values(channels, 3, *(3,) * rank), "b1": values(channels, seed=1)}
    nodes = [node("Conv", "x w1 b1", "a", name="first", pads=[1] * (2 * rank)), *middle]
    if reader == "Conv":
        own["w2"] = values(4, reads, *(1,) * rank, seed=2)
        nodes.append(node("Conv", "b w2", "y", name="last"))
    else:
        own["w2"] = values(4, reads, seed=2)
        nodes.append(node("Gemm", "b w2", "y", name="last", transB=1))
    return net(nodes, own | dict(weights or {}), {"x": ["N", 3, *size]}, **fields)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(model: onnx.ModelProto, batch: int, seed: int = 0, open_size: int = 9) -> dict[str, np.ndarray]:
    """Uniform inputs; an open first axis gets `batch`, other open axes `open_size`."""
    found = {}
    for port in session(model).get_inputs():
        shape = [n if isinstance(n, int) else (batch if a == 0 else open_size) for a, n in enumerate(port.shape)]
        kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(bool)": bool}[
            port.type
        ]
        found[port.name] = (values(*shape, seed=seed) > 0) if kind is bool else values(*shape, seed=seed).astype(kind)
    return found


def run(model: onnx.ModelProto, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return session(model).run(None, dict(given))


def half(network, seed: int, only: str | None = None, share: float = 0.5) -> dict[str, np.ndarray]:
    """group -> a random choice of about half of its channels to keep (never none, never all where there are two)."""
    rng = np.random.default_rng(seed)
    chosen = {}
    for group in network.groups:
        if only in (None, group.name):
            count = min(max(round(group.size * (1 - share)), 1), max(group.size - 1, 1))
            chosen[group.name] = np.sort(rng.permutation(group.size)[:count])
    return chosen


def pruned(model: onnx.ModelProto, seed: int = 0, only: str | None = None, share: float = 0.5):
    """(graph, network, cut) after a random half of every group went. `model` is left alone."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, _ = prepare(copy)
    network = find(graph)
    return graph, network, cut(graph, network, network.alive(half(network, seed, only, share)))


def _stored(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    tensors = {t.name: t for t in model.graph.initializer}
    for n in model.graph.node:
        if n.op_type == "Constant" and n.attribute[0].name == "value":
            tensors[n.output[0]] = n.attribute[0].t
    return tensors


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {name: numpy_helper.to_array(t) for name, t in _stored(model).items()}


def _entry(
    model: onnx.ModelProto, n: onnx.NodeProto, name: str, removed: Mapping[str, Any]
) -> tuple[Mapping[str, Any] | None, bool]:
    """What went from the weight that a node reads as `name`, and whether that weight stands transposed behind `name`."""
    producer, turned = {o: p for p in model.graph.node for o in p.output}, False
    while True:
        for key in (f"{name}@{n.name}", f"{name}@{n.output[0]}", name):
            if key in removed:
                return removed[key], turned
        p = producer.get(name)
        if p is None or p.op_type not in ("Identity", "Cast", "DequantizeLinear", "Transpose", "Reshape", "Unsqueeze"):
            return None, False
        turned ^= p.op_type == "Transpose"
        name = p.input[0]


def _weight_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of constants, computed ones included, as ONNX infers them."""
    shapes = {name: tuple(tensor.dims) for name, tensor in _stored(model).items()}
    constants = set(shapes)
    for n in model.graph.node:
        if n.op_type != "Constant" and all(i in constants for i in n.input if i):
            constants.update(n.output)
    if constants == set(shapes):
        return shapes
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    return shapes | {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in inferred if v.name in constants}


def masked(model: onnx.ModelProto, removed: Mapping[str, Mapping[str, Sequence[int]]]) -> onnx.ModelProto:
    """The original with 0/1 masks in front of the layers that read removed positions.

    And behind the MatMuls that make them: what attention multiplies with another activation, no layer reads.
    """
    twin, shapes = onnx.ModelProto(), _weight_shapes(model)
    twin.CopyFrom(model)
    del twin.graph.node[:]
    for number, original in enumerate(model.graph.node):
        reading = onnx.NodeProto()
        reading.CopyFrom(original)
        _forget(model, twin, reading, removed)
        found = _gone(model, original, shapes, removed)
        if found is not None and original.op_type in INTEGERS:
            _mask_integers(twin, reading, number, *found)
        elif found is not None:
            position, mask = found
            tensor = numpy_helper.from_array(mask, f"mask_{number}")
            twin.graph.initializer.append(tensor)
            if twin.ir_version < 4:
                twin.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, mask.shape))
            twin.graph.node.append(helper.make_node("Mul", [original.input[position], tensor.name], [f"masked_{number}"]))
            reading.input[position] = f"masked_{number}"
        twin.graph.node.append(reading)
        _empty(twin, reading, removed)
        silent = _silent(model, original, shapes, removed)
        if silent is not None:
            reading = twin.graph.node[-1]
            twin.graph.initializer.append(numpy_helper.from_array(silent, f"silent_{number}"))
            if twin.ir_version < 4:
                twin.graph.input.append(helper.make_tensor_value_info(f"silent_{number}", TensorProto.FLOAT, silent.shape))
            twin.graph.node.append(helper.make_node("Mul", [f"loud_{number}", f"silent_{number}"], [reading.output[0]]))
            reading.output[0] = f"loud_{number}"
    return twin


def _empty(twin: onnx.ModelProto, n: onnx.NodeProto, removed: Any) -> None:
    """Hidden units of experts lie inside one node: the weights that read them are zero in the twin."""
    if n.op_type != "MoE":
        return
    stored = _stored(twin)[n.input[4]]
    value = numpy_helper.to_array(stored).copy()
    value[:, :, list(removed.get(n.input[4], {}).get("2", []))] = 0
    stored.CopyFrom(numpy_helper.from_array(value, stored.name))


def _attribute(n: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in n.attribute if a.name == name), default)


def _mask_integers(twin: onnx.ModelProto, n: onnx.NodeProto, number: int, position: int, mask: np.ndarray) -> None:
    """Zero points instead of the integers that went; and zeros in front of a scale that is measured at run time."""
    zero = n.input[INTEGERS[n.op_type][1] if position == 0 else position + 2]
    twin.graph.initializer.append(numpy_helper.from_array(mask.astype(bool), f"mask_{number}"))
    for at, earlier in enumerate(twin.graph.node):
        if earlier.op_type == "DynamicQuantizeLinear" and n.input[position] in earlier.output:
            twin.graph.initializer.append(numpy_helper.from_array(mask, f"float_mask_{number}"))
            silent = helper.make_node("Mul", [earlier.input[0], f"float_mask_{number}"], [f"silent_{number}"])
            earlier.input[0] = silent.output[0]
            nodes = [*twin.graph.node[:at], silent, *twin.graph.node[at:]]
            copies = [onnx.NodeProto.FromString(c.SerializeToString()) for c in nodes]
            del twin.graph.node[:]
            twin.graph.node.extend(copies)
            break
    twin.graph.node.append(helper.make_node("Where", [f"mask_{number}", n.input[position], zero], [f"masked_{number}"]))
    n.input[position] = f"masked_{number}"


def _forget(model: onnx.ModelProto, twin: onnx.ModelProto, n: onnx.NodeProto, removed: Mapping[str, Any]) -> None:
    """Recurrent units that went are not read by the others any more: zeros in their columns of R."""
    if n.op_type == "DynamicQuantizeLSTM":
        # Their states, which set a scale together with the others', are zero: so are all their weights. Zero points are 0 here.
        for position in (1, 2, 3):
            entry, weight = removed[n.input[position]], arrays(model)[n.input[position]].copy()
            for axis, gone in entry.items():
                if (position, axis) != (1, "1"):
                    weight[(slice(None),) * int(axis) + (gone,)] = 0
            twin.graph.initializer.append(numpy_helper.from_array(weight, f"forgetful_{n.input[position]}"))
            n.input[position] = twin.graph.initializer[-1].name
    if n.op_type not in RECURRENT:
        return
    entry, _ = _entry(model, n, n.input[2], removed)
    if entry is not None:
        weight = arrays(model)[n.input[2]].copy()
        weight[..., list(entry.get("2", []))] = 0
        twin.graph.initializer.append(numpy_helper.from_array(weight, f"forgetful_{n.output[0]}"))
        n.input[2] = twin.graph.initializer[-1].name


def _gone(
    model: onnx.ModelProto, n: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], removed: Any
) -> tuple[int, np.ndarray] | None:
    """(input with the activation, mask over it) of one node of the original."""
    kind = STANDS_FOR.get(n.op_type, n.op_type)
    if kind not in ("Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul", *RECURRENT):
        return None
    second = INTEGERS.get(n.op_type, (1, 0))[0]
    left = kind == "MatMul" and n.input[second] not in shapes
    weight = n.input[0 if left else second]
    entry, turned = _entry(model, n, weight, removed)
    if entry is None or n.output[0] in shapes:
        return None
    axes = {"Conv": 1, "ConvTranspose": 0, "DeformConv": 1, "Gemm": int(_attribute(n, "transB", 0)), "MatMul": int(left)}
    inner = axes.get(kind, 1 if n.op_type == "DynamicQuantizeLSTM" else 2)
    shape, group = shapes[weight], _attribute(n, "group", 1)
    if group > 1 and (shape[1] == 1 if kind == "Conv" else shape[0] == group):
        return None  # depthwise: what it computes of a removed channel is read, masked, by the next layer
    mask = np.ones(
        shape[inner], np.float16 if model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16 else np.float32
    )
    gone = list(entry.get(str(1 - inner if turned else inner), []))
    if gone and isinstance(gone[0], list):  # another list for each group of the convolution
        mask = np.stack([np.where(np.isin(np.arange(len(mask)), own), mask * 0, mask) for own in gone]).reshape(-1)
    else:
        mask[gone] = 0
        mask = np.tile(mask, group) if kind == "Conv" else mask
    behind = len(shape) - 2 if "Conv" in kind else int(left)
    return second if left else 0, mask.reshape([-1] + [1] * behind)


def _silent(model: onnx.ModelProto, n: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], removed: Any) -> np.ndarray | None:
    """0/1 over the outputs of a MatMul or Einsum with a constant second operand."""
    if n.op_type not in ("MatMul", "Einsum") or n.input[1] not in shapes or n.output[0] in shapes:
        return None
    entry, turned = _entry(model, n, n.input[1], removed)
    if entry is None or model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16:
        return None
    if n.op_type == "MatMul":
        mask = np.ones(shapes[n.input[1]][1], np.float32)
        mask[list(entry.get("0" if turned else "1", []))] = 0
        return mask
    inputs, arrow, output = _attribute(n, "equation", b"").decode().replace(" ", "").partition("->")
    output = output.replace("...", "") if arrow else "".join(sorted(c for c in inputs if c.isalpha() and inputs.count(c) == 1))
    letters = inputs.split(",")[1]
    mask = np.ones([shapes[n.input[1]][letters.index(c)] if c in letters else 1 for c in output], np.float32)
    for axis, gone in entry.items():
        if letters[int(axis)] in output:
            mask[(slice(None),) * output.index(letters[int(axis)]) + (gone,)] = 0
    return mask


def check(
    model: onnx.ModelProto, made: Cut, *, batches: Sequence[int] = (1, 3), tolerance: float = 1e-4,
    reordered: Mapping[str, Mapping[str, Any]] | None = None, **sizes: int,
) -> None:  # fmt: skip
    """The pruned model is valid, runs, equals the masked original, and its weights are the original's at the kept positions.

    reordered   axes whose channels changed places (figures.Report)
    """
    small = made.model
    onnx.checker.check_model(small, full_check=True)
    onnx.shape_inference.infer_shapes(small, check_type=True, strict_mode=True, data_prop=True)
    assert made.removed, "nothing was removed"
    twin = masked(model, made.removed)
    ours, theirs = session(small), session(twin)
    for batch in batches:
        given = feeds(model, batch, seed=batch, **sizes)
        for name, got, expected in zip(
            [o.name for o in model.graph.output], ours.run(None, given), theirs.run(None, given), strict=True
        ):
            assert got.shape == expected.shape, name
            scale = max(float(np.abs(expected.astype(np.float64)).max(initial=0)), 1e-6)
            assert np.isfinite(expected.astype(np.float64)).all(), "the yardstick itself is not finite"
            assert float(np.abs(got.astype(np.float64) - expected.astype(np.float64)).max(initial=0)) <= tolerance * scale, name
    check_weights(model, made, reordered or {})


def check_weights(model: onnx.ModelProto, made: Cut, reordered: Mapping[str, Mapping[str, Any]]) -> None:
    """What was removed is stated truly, and everything else is as it was, bit for bit."""
    before, after = arrays(model), arrays(made.model)
    for name in dict.fromkeys([*made.removed, *reordered]):
        axes, moved = made.removed.get(name, {}), reordered.get(name, {})
        source = name if name in before else name.split("@")[0]
        if source not in before:
            continue  # it was computed from constants
        expected = before[source]
        for axis, gone in axes.items():
            assert gone, f"{name} axis {axis} is listed without any position"
            if axis not in moved:
                expected = np.delete(expected, gone, axis=int(axis))
        for axis in sorted(moved, key=lambda a: -int(a)):  # axis 1 of a grouped convolution while axis 0 still has its blocks
            assert _complete(moved[axis], axes.get(axis, []), expected.shape[int(axis)]), (name, axis)
            expected = _reordered(expected, int(axis), moved[axis])
        got = after[name]
        assert got.dtype == expected.dtype
        assert got.size == expected.size
        assert np.array_equal(got, expected) or np.array_equal(got, expected.T.reshape(got.shape))
    was, now = _stored(model), _stored(made.model)
    constants = _weight_shapes(model)
    folded = {i for n in model.graph.node if n.output[0] in constants for i in n.input}
    for name in set(was) - set(made.removed) - set(reordered) - (folded - set(now)):
        if before[name].dtype.kind == "f" or before[name].size == 0:
            assert now[name].SerializeToString() == was[name].SerializeToString(), name


def _reordered(value: np.ndarray, axis: int, order: list[Any]) -> np.ndarray:
    """`order`: positions to take, or a list of them for each block of a grouped convolution."""
    if not order or not isinstance(order[0], list):
        return value.take(order, axis=axis)
    return np.concatenate([b.take(own, axis=axis) for b, own in zip(np.split(value, len(order)), order, strict=True)])


def _complete(order: list[Any], gone: list[Any], length: int) -> bool:
    """Every position either stays or went, in each block."""
    blocks = order if order and isinstance(order[0], list) else [order]
    lists = gone if gone and isinstance(gone[0], list) else [gone] * len(blocks)
    return all(sorted([*own, *went]) == list(range(length)) for own, went in zip(blocks, lists, strict=True))
