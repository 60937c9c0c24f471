"""Sparse weights of a file become dense ones on loading: then everything else holds for them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from onnxprune.errors import ModelError


def densify(model: onnx.ModelProto) -> int:
    """Every sparse initializer and `sparse_value` of a Constant, subgraphs included, in place; returns how many there were."""
    count = 0
    for graph in _graphs(model.graph):
        graph.initializer.extend(_dense(sparse) for sparse in graph.sparse_initializer)
        count += len(graph.sparse_initializer)
        del graph.sparse_initializer[:]
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.SPARSE_TENSOR and node.op_type == "Constant":
                    value = _dense(attribute.sparse_tensor)
                    attribute.CopyFrom(onnx.helper.make_attribute("value", value))
                    count += 1
    return count


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.type == AttributeProto.GRAPH else []) + list(attribute.graphs):
                yield from _graphs(inner)


def _dense(sparse: onnx.SparseTensorProto) -> TensorProto:
    name = sparse.values.name
    shape = tuple(sparse.dims)
    if TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
        raise ModelError(f"the sparse weight {name!r} lies outside the file", "store it inside, or dense")
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        if indices.ndim == 2:
            indices = np.ravel_multi_index(tuple(indices.T), shape) if len(indices) else np.empty(0, np.int64)
        if values.shape != indices.shape or not all(0 <= i < math.prod(shape) for i in _ends(indices)):
            raise ValueError("its indices do not fit its values or its shape")
        whole = np.zeros(math.prod(shape), values.dtype)
    except (ValueError, TypeError, MemoryError) as error:
        problem = str(error).splitlines()[0] if str(error) else "there is no memory for its shape"
        raise ModelError(f"the sparse weight {name!r} {list(shape)} is damaged: {problem}", "export the model again") from error
    whole[indices] = values
    return numpy_helper.from_array(whole.reshape(shape), name)


def _ends(indices: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> list[int]:
    return [int(indices.min()), int(indices.max())] if indices.size else []
