"""Functions of the model's own, which torch.onnx writes, become the nodes inside them, so that these can be followed."""

from __future__ import annotations

import onnx
from onnx import defs, helper, inliner, shape_inference


def inline(model: onnx.ModelProto) -> int:
    """Replace every call of a model-local function by its body, in place; returns how many functions were dissolved.

    Names inside are made unique, and nodes inside keep their metadata. A function written for another opset than the model's is
    converted; where that cannot be done, all stay as they are, and their calls are nodes without a rule.
    """
    count = len(model.functions)
    if not count:
        return 0
    try:
        found = inliner.inline_local_functions(shape_inference.infer_shapes(_light(model)), convert_version=True)
    except Exception:  # recursion, a missing function, an opset that cannot be converted: the checker says what is wrong
        return 0
    if found.functions:
        return 0
    del model.functions[:], model.graph.node[:], model.opset_import[:]
    model.graph.node.extend(found.graph.node)
    model.opset_import.extend(found.opset_import)
    return count


def _light(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its weights as inputs: they may be more than a protobuf can hold, and the inliner asks for all types."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = model.graph.name or "light"
    light.graph.node.extend(model.graph.node)
    light.graph.value_info.extend(model.graph.value_info)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    listed = {i.name for i in model.graph.input}
    light.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in model.graph.initializer if t.name not in listed
    )
    own = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    for function in light.functions:
        for entry in function.opset_import:
            if entry.domain in ("", "ai.onnx") and _same(function, entry.version, own):
                entry.version = own
    return light


def _same(function: onnx.FunctionProto, version: int, other: int) -> bool:
    """Whether every operator in a function means the same in another opset: then there is nothing to convert."""
    used = {node.op_type for node in function.node if node.domain in ("", "ai.onnx")}
    return all(
        defs.has(op, version, "")
        and defs.has(op, other, "")
        and defs.get_schema(op, version, "").since_version == defs.get_schema(op, other, "").since_version
        for op in used
    )
