"""Fused nodes that ONNX Runtime's optimiser wrote become the standard nodes they were made of, in place.

An activation inside a convolution hides what the layer itself computes, which is what its weights are refitted to, and operators
without an ONNX schema have no known shapes. Split into their parts, they are ordinary nodes to every rule; ONNX Runtime fuses
them again when it loads the result. What cannot be told apart (an activation of unknown name, training outputs) is left whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import surgeon

MICROSOFT = "com.microsoft"
# Activations that a fused node names, and the attributes that its parameters become.
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (), "Sigmoid": (), "Softplus": (), "Softsign": (), "Tanh": (), "LeakyRelu": ("alpha",), "Elu": ("alpha",),
    "ThresholdedRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Selu": ("alpha", "gamma"), "Clip": ("min", "max"),
}  # fmt: skip


class Parts:
    """The nodes that one fused node becomes. `add` names their outputs; the last one is told to make the fused node's own."""

    def __init__(self, node: onnx.NodeProto, opset: int, types: dict[str, int], taken: set[str]) -> None:
        self.node, self.opset, self.types, self.taken = node, opset, types, taken
        self.nodes: list[onnx.NodeProto] = []

    def input(self, position: int) -> str:
        return self.node.input[position] if position < len(self.node.input) else ""

    def output(self, position: int) -> str:
        return self.node.output[position] if position < len(self.node.output) else ""

    def attribute(self, name: str, default: Any = None) -> Any:
        found = next((helper.get_attribute_value(a) for a in self.node.attribute if a.name == name), default)
        return found.decode() if isinstance(found, bytes) else found

    def attributes(self, *names: str) -> list[onnx.AttributeProto]:
        """Attributes that a part takes over as they are."""
        return [a for a in self.node.attribute if a.name in names]

    def add(
        self, op: str, inputs: Sequence[str], output: str = "", *, domain: str = "", more: Sequence[onnx.AttributeProto] = (),
        **attributes: Any,
    ) -> str:  # fmt: skip
        """Append a node and return its output, a new name where none is given."""
        output = output or self._name(f"{self.node.output[0]}/{op}")
        name = self._name(f"{self.node.name or output}/{op}")
        made = helper.make_node(op, list(inputs), [output], name, domain=domain, **attributes)
        made.attribute.extend(more)
        self.nodes.append(made)
        return output

    def constant(self, value: NDArray[Any]) -> str:
        return self.add("Constant", (), value=numpy_helper.from_array(value))

    def scalar(self, value: float, element: int = TensorProto.FLOAT) -> str:
        return self.constant(np.array(value, helper.tensor_dtype_to_np_dtype(element)))

    def sum(self, terms: Sequence[str], output: str = "") -> str:
        """The sum of those that are given, added one by one in that order."""
        total, *rest = [t for t in terms if t]
        for number, term in enumerate(rest):
            total = self.add("Add", (total, term), output if number == len(rest) - 1 else "")
        return total

    def activate(self, tensor: str, name: str, parameters: Sequence[float], output: str) -> None:
        if name == "Clip" and self.opset >= 11:
            element = self.types.get(self.input(1), TensorProto.FLOAT)
            self.add("Clip", (tensor, *(self.scalar(p, element) for p in parameters)), output)
        else:
            stated: dict[str, Any] = dict(zip(ACTIVATIONS[name], parameters, strict=False))
            self.add(name, (tensor,), output, **stated)

    def _name(self, wanted: str) -> str:
        free = next(n for i in itertools.count(1) if (n := wanted if i == 1 else f"{wanted}#{i}") not in self.taken)
        self.taken.add(free)
        return free


def unfuse(model: onnx.ModelProto) -> int:
    """Write fused nodes as their parts, in place, those of subgraphs too. Returns how many there were."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    if not _fused(model.graph, opset):
        return 0
    types = {t.name: t.data_type for t in model.graph.initializer}
    return _unfuse(model.graph, opset, types, _names(model.graph))


def _fused(graph: onnx.GraphProto, opset: int) -> bool:
    """Whether there is anything to write as its parts."""
    return any(_writer(node, opset) is not None or any(_fused(inner, opset) for inner in _inner(node)) for node in graph.node)


def _inner(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The subgraphs of a node."""
    if node.domain in ("", "ai.onnx") and node.op_type not in surgeon.WITH_SUBGRAPHS:
        return []
    return [g for a in node.attribute for g in (*([a.g] if a.type == onnx.AttributeProto.GRAPH else []), *a.graphs)]


def _unfuse(graph: onnx.GraphProto, opset: int, types: dict[str, int], taken: set[str]) -> int:
    types = types | {t.name: t.data_type for t in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in graph.node:
        for inner in _inner(node):
            count += _unfuse(inner, opset, types, taken)
        parts = _parts(node, opset, types, taken)
        nodes += parts or [node]
        count += bool(parts)
    if count:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    return count


def _parts(node: onnx.NodeProto, opset: int, types: dict[str, int], taken: set[str]) -> list[onnx.NodeProto]:
    write = _writer(node, opset)
    if write is None:
        return []
    parts = Parts(node, opset, types, taken)
    if not write(parts):
        return []
    made = [n for n in parts.nodes if n.op_type != "Constant"]
    main = next((n for n in made if n.op_type in node.op_type), made[-1])
    main.name, main.doc_string = node.name, node.doc_string
    main.metadata_props.extend(node.metadata_props)
    return parts.nodes


def _writer(node: onnx.NodeProto, opset: int) -> Callable[[Parts], bool] | None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    found = WRITERS.get((domain, node.op_type))
    if found is None or domain:
        return found
    if node.op_type == "Gemm":
        return found if any(a.name == "transA" and a.i for a in node.attribute) else None
    return None if onnx.defs.has(node.op_type, opset, "") else found


def _names(graph: onnx.GraphProto) -> set[str]:
    found = {t.name for t in graph.initializer} | {i.name for i in graph.input}
    for node in graph.node:
        found |= {node.name, *node.output, *node.input}
        for inner in _inner(node):
            found |= _names(inner)
    return found


WINDOW = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _conv(parts: Parts) -> bool:
    """activation(Conv(X, W, B) + Z)"""
    name, parameters = parts.attribute("activation", ""), parts.attribute("activation_params", [])
    if name not in ("", *ACTIVATIONS):
        return False
    added, output = parts.input(3), parts.output(0)
    whole = parts.add(
        "Conv", [n for n in parts.node.input[:3] if n], "" if added or name else output, more=parts.attributes(*WINDOW)
    )
    if added:
        whole = parts.add("Add", (whole, added), "" if name else output)
    if name:
        parts.activate(whole, name, parameters, output)
    return True


def _with_activation(op: str, domain: str, *own: str) -> Callable[[Parts], bool]:
    def write(parts: Parts) -> bool:
        name = parts.attribute("activation", "")
        if name not in ("", *ACTIVATIONS):
            return False
        output = parts.output(0)
        whole = parts.add(op, parts.node.input, "" if name else output, domain=domain, more=parts.attributes(*own))
        given = [parts.attribute(f"activation_{p}") for p in ("alpha", "beta", "gamma")]
        if name:
            parts.activate(whole, name, [p for p in given if p is not None], output)
        return True

    return write


def _bias_gelu(parts: Parts) -> bool:
    summed = parts.sum(parts.node.input)
    parts.add("FastGelu" if parts.node.op_type == "FastGelu" else "Gelu", (summed,), parts.output(0), domain=MICROSOFT)
    return len(parts.nodes) > 1  # a FastGelu without a bias has no parts


def _turned_gemm(parts: Parts) -> bool:
    """Gemm of a transposed A: a layer reads rows, so it is transposed on its own."""
    turned = parts.add("Transpose", parts.node.input[:1], perm=[1, 0])
    own = parts.attributes("alpha", "beta", "transB", "broadcast")
    parts.add("Gemm", (turned, *parts.node.input[1:]), parts.output(0), more=own)
    return True


def _gemm_fast_gelu(parts: Parts) -> bool:
    product = parts.add("MatMul", parts.node.input[:2])
    parts.add("FastGelu", (parts.sum((product, parts.input(2))),), parts.output(0), domain=MICROSOFT)
    return True


def _quick_gelu(parts: Parts) -> bool:
    """x * Sigmoid(alpha * x)"""
    x, alpha = parts.input(0), parts.attribute("alpha", 1.702)
    if alpha != 1:
        # The type of x is not known here: a constant in its type would have to be cast.
        return False
    parts.add("Mul", (x, parts.add("Sigmoid", (x,))), parts.output(0))
    return True


def _bias_split_gelu(parts: Parts) -> bool:
    """left * Gelu(right) of the halves of the sum"""
    halves: dict[str, Any] = {"num_outputs": 2} if parts.opset >= 18 else {}
    left = parts.add("Split", (parts.sum(parts.node.input),), axis=-1, **halves)
    right = f"{left}/right"
    parts.nodes[-1].output.append(right)
    parts.add("Mul", (left, parts.add("Gelu", (right,), domain=MICROSOFT)), parts.output(0))
    return True


def _bias_add(parts: Parts) -> bool:
    parts.sum(parts.node.input, parts.output(0))
    return True


def _bias_dropout(parts: Parts) -> bool:
    if parts.output(1) or parts.input(4):
        return False
    parts.sum(parts.node.input[:3], parts.output(0))
    return True


def _bias_softmax(parts: Parts) -> bool:
    """Softmax(data + bias); from opset 13 on it is fused over the last axis alone, where both count the axis alike"""
    parts.add("Softmax", (parts.sum(parts.node.input),), parts.output(0), axis=int(parts.attribute("axis", 1)))
    return True


def _skip_norm(parts: Parts) -> bool:
    """Norm(input + skip + bias); the sum may be an output too"""
    if parts.output(1) or parts.output(2):
        return False
    simple = parts.node.op_type == "SkipSimplifiedLayerNormalization"
    bias = parts.input(3 if simple else 4)
    summed = parts.sum((parts.input(0), parts.input(1), bias), parts.output(3))
    return _normalise(parts, summed, parts.input(2), "" if simple else parts.input(3), simple=simple)


def _norm(parts: Parts) -> bool:
    if parts.output(1) or parts.output(2) or parts.attribute("axis", -1) != -1:
        return False
    simple = parts.node.op_type == "SimplifiedLayerNormalization"
    return _normalise(parts, parts.input(0), parts.input(1), parts.input(2), simple=simple)


def _normalise(parts: Parts, x: str, scale: str, bias: str, *, simple: bool = False) -> bool:
    """LayerNormalization, or with `simple` RMSNormalization, over the last axis; spelt out where the opset is older than they."""
    element = parts.types.get(scale, TensorProto.FLOAT)
    default = 1e-12 if parts.node.domain else 1e-5
    epsilon, output = float(parts.attribute("epsilon", default)), parts.output(0)
    op = "RMSNormalization" if simple else "LayerNormalization"
    if onnx.defs.has(op, parts.opset, ""):
        parts.add(op, [n for n in (x, scale, bias) if n], output, axis=-1, epsilon=epsilon)
        return True
    if element != TensorProto.FLOAT:
        x = parts.add("Cast", (x,), to=TensorProto.FLOAT)
    if not simple:
        x = parts.add("Sub", (x, _mean(parts, x)))
    variance = _mean(parts, parts.add("Pow", (x, parts.scalar(2))))
    x = parts.add("Div", (x, parts.add("Sqrt", (parts.add("Add", (variance, parts.scalar(epsilon))),))))
    if element != TensorProto.FLOAT:
        x = parts.add("Cast", (x,), to=element)
    x = parts.add("Mul", (x, scale), "" if bias else output)
    if bias:
        parts.add("Add", (x, bias), output)
    return True


def _mean(parts: Parts, x: str) -> str:
    if parts.opset >= 18:
        return parts.add("ReduceMean", (x, parts.constant(np.array([-1], np.int64))), keepdims=1)
    return parts.add("ReduceMean", (x,), axes=[-1], keepdims=1)


def _embed_norm(parts: Parts) -> bool:
    """LayerNormalization(word[ids] + position[0, 1, ...] + segment[segment_ids]); the ones of the mask are counted on the side"""
    ids, segments, mask, positions = (parts.input(p) for p in (0, 1, 7, 8))
    terms = [parts.add("Gather", (parts.input(2), ids))]
    if not positions:
        length = parts.add("Gather", (parts.add("Shape", (ids,)), parts.constant(np.array(1, np.int64))))
        positions = parts.add("Range", (parts.constant(np.array(0, np.int64)), length, parts.constant(np.array(1, np.int64))))
    terms.append(parts.add("Gather", (parts.input(3), positions)))
    if segments and parts.input(4):
        terms.append(parts.add("Gather", (parts.input(4), segments)))
    if parts.output(1) and not mask:
        batch = parts.add("Gather", (parts.add("Shape", (ids,)), parts.constant(np.array([0], np.int64))))
        parts.add("ConstantOfShape", (batch,), parts.output(1), value=numpy_helper.from_array(np.array([0], np.int32)))
    elif parts.output(1):
        axes: dict[str, Any] = {"axes": [1]} if parts.opset < 13 else {}
        along = () if axes else (parts.constant(np.array([1], np.int64)),)
        parts.add("ReduceSum", (mask, *along), parts.output(1), keepdims=0, **axes)
    return _normalise(parts, parts.sum(terms, parts.output(2)), parts.input(5), parts.input(6))


WRITERS: dict[tuple[str, str], Callable[[Parts], bool]] = {
    (MICROSOFT, "BiasAdd"): _bias_add,
    (MICROSOFT, "BiasDropout"): _bias_dropout,
    (MICROSOFT, "BiasGelu"): _bias_gelu,
    (MICROSOFT, "BiasSoftmax"): _bias_softmax,
    (MICROSOFT, "BiasSplitGelu"): _bias_split_gelu,
    (MICROSOFT, "EmbedLayerNormalization"): _embed_norm,
    (MICROSOFT, "FastGelu"): _bias_gelu,
    (MICROSOFT, "FusedConv"): _conv,
    (MICROSOFT, "FusedGemm"): _with_activation("Gemm", "", "alpha", "beta", "transA", "transB"),
    (MICROSOFT, "FusedMatMulActivation"): _with_activation(
        "FusedMatMul", MICROSOFT, "alpha", "transA", "transB", "transBatchA", "transBatchB"
    ),
    (MICROSOFT, "GemmFastGelu"): _gemm_fast_gelu,
    (MICROSOFT, "QuickGelu"): _quick_gelu,
    (MICROSOFT, "SkipLayerNormalization"): _skip_norm,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _skip_norm,
    ("", "Gemm"): _turned_gemm,
    # ONNX Runtime's own operators in the domain of ONNX, which onnx.checker refuses there.
    ("", "LayerNormalization"): _norm,
    ("", "SimplifiedLayerNormalization"): _norm,
}  # fmt: skip
