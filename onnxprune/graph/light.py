"""A model without its large weights: all that onnx's checker and shape inference look at, in a few kilobytes."""

from __future__ import annotations

from math import prod

import onnx
from onnx import TensorProto, helper

# Values with more elements than this are weights, not shape arithmetic.
SMALL = 4096


def light(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which weights of more than SMALL elements are inputs, the others initializers; those of Constant nodes too."""
    # From IR 4 on an initializer need not be listed as an input.
    found = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import, functions=model.functions)
    graph = found.graph
    graph.name = model.graph.name or "light"
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    listed = {i.name for i in graph.input}
    for node in model.graph.node:
        tensor = stored(node)
        if tensor is None:
            graph.node.append(node)
        elif prod(tensor.dims) <= SMALL:
            graph.initializer.append(tensor)
            graph.initializer[-1].name = node.output[0]
        else:
            graph.input.append(_declared(node.output[0], tensor))
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= SMALL and tensor.data_location != TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        elif tensor.name not in listed:
            graph.input.append(_declared(tensor.name, tensor))
    return found


def stored(node: onnx.NodeProto) -> TensorProto | None:
    """The tensor that a Constant node holds."""
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and node.attribute and node.attribute[0].name == "value":
        found: TensorProto = node.attribute[0].t
        return found
    return None


def _declared(name: str, tensor: TensorProto) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
