"""Sparse storage: smaller files that ONNX Runtime and onnxprune read, only where smaller, and files that come with it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.devices import choose_device
from onnxprune.errors import ModelError
from onnxprune.graph import load
from onnxprune.rewrite import store_sparse as storing
from onnxprune.rewrite.store_sparse import same_function, store_sparse

QUIET = {"latency": False, "samples": 48, "batch": 8, "device": "cpu"}


def net(kind=np.float32, ir=8, opset=17, zeros=0.9):
    rng = np.random.default_rng(0)
    stored = {"w": rng.standard_normal((32, 64)), "v": rng.standard_normal((64, 8))}
    for value in stored.values():
        value[rng.random(value.shape) < zeros] = 0
    tensors = [numpy_helper.from_array(v.astype(kind), n) for n, v in stored.items()]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["r"])]
    nodes += [helper.make_node("MatMul", ["r", "v"], ["y"])]
    given = [helper.make_tensor_value_info("x", element, ["n", 32])]
    if ir < 4:
        given += [helper.make_tensor_value_info(t.name, element, t.dims) for t in tensors]
    graph = helper.make_graph(nodes, "net", given, [helper.make_tensor_value_info("y", element, ["n", 8])], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def run(model, kind=np.float32):
    given = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(given, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(1).standard_normal((5, 32)).astype(kind)})[0]


def arrays(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize(("ir", "opset"), [(3, 7), (4, 9), (5, 11), (6, 11), (8, 17), (10, 21)])
def test_what_is_stored_sparse_gives_the_same_and_is_read_again(kind, ir, opset):
    model = net(kind, ir, opset)
    before = model.SerializeToString()
    found = store_sparse(model, ["w", "v"])
    assert model.SerializeToString() == before
    assert set(found.sizes) == {"w", "v"}
    assert not found.left
    assert found.model.ir_version == max(ir, 6)
    assert [i.name for i in found.model.graph.input] == ["x"]
    onnx.checker.check_model(found.model)
    assert np.array_equal(run(found.model, kind), run(model, kind))
    assert found.model.ByteSize() < model.ByteSize()
    again = load(found.model).model
    assert not again.graph.sparse_initializer
    assert all(np.array_equal(v, arrays(model)[n]) and v.dtype == kind for n, v in arrays(again).items())
    for name, (dense, sparse) in found.sizes.items():
        stored = next(s for s in found.model.graph.sparse_initializer if s.values.name == name)
        assert sparse == stored.ByteSize() < dense
        assert stored.indices.data_type == TensorProto.INT64
        assert list(stored.indices.dims) == list(stored.values.dims)


def test_what_gets_no_smaller_stays_dense():
    found = store_sparse(net(zeros=0.6), ["w", "v", "nothing"])
    assert found.left == {"w": "it would be no smaller", "v": "it would be no smaller", "nothing": "it stands in a Constant node"}
    assert not found.model.graph.sparse_initializer
    # 8 bytes per index: single precision is ahead from two thirds of zeros on.
    assert set(store_sparse(net(zeros=0.75), ["w", "v"]).sizes) == {"w", "v"}


def test_a_weight_that_callers_may_replace_stays_dense():
    model = net()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [32, 64]))
    assert store_sparse(model, ["w", "v"]).left == {"w": "it is an input of the model too"}


def test_another_function_is_noticed():
    model = net()
    sparse = store_sparse(model, ["w"]).model
    feeds = [{"x": np.ones((2, 32), np.float32)}]
    assert same_function(sparse, model, feeds, choose_device("cpu")) == ""
    sparse.graph.sparse_initializer[0].values.CopyFrom(
        numpy_helper.from_array(2 * numpy_helper.to_array(sparse.graph.sparse_initializer[0].values), "w")
    )
    assert "other outputs" in same_function(sparse, model, feeds, choose_device("cpu"))
    sparse.graph.sparse_initializer[0].dims[0] = 1
    assert "refused in this form" in same_function(sparse, model, feeds, choose_device("cpu"))


def test_through_the_pipeline_to_a_file_and_back(tmp_path):
    path = tmp_path / "out.onnx"
    result = onnxprune.prune(net(zeros=0.0), "magnitude", 0.9, sparse_storage=True, output=path, **QUIET)
    dense = onnxprune.prune(net(zeros=0.0), "magnitude", 0.9, **QUIET)
    report = result.report
    assert report["pruned"]["bytes"] == path.stat().st_size < 0.4 * dense.report["pruned"]["bytes"]
    assert set(report["storage"]["sparse"]) == {"w", "v"}
    assert "ONNX Runtime makes them dense on loading" in report["storage"]["summary"]
    assert dense.report["storage"] == {}
    assert np.array_equal(run(str(path)), run(dense.model))
    again = onnxprune.prune(path, "magnitude", 0.9, repair="none", **QUIET)
    assert all(np.array_equal(v, arrays(again.model)[n]) for n, v in arrays(dense.model).items())
    assert any("sparse weights were made dense on loading" in warning for warning in again.report["warnings"])
    assert again.report["original"]["bytes"] == path.stat().st_size


def test_a_runtime_that_refuses_gets_dense_weights(monkeypatch):
    from onnxprune.jobs import weights

    monkeypatch.setattr(weights, "same_function", lambda *_: "refused in this form: no")
    report = onnxprune.prune(net(), "magnitude", 0.95, sparse_storage=True, **QUIET)
    assert not report.model.graph.sparse_initializer
    assert report.report["storage"]["summary"] == "no matrix as a sparse tensor (2 dense: refused in this form: no)"


def test_two_gigabytes_are_not_passed(monkeypatch):
    monkeypatch.setattr(storing, "SERIALISABLE", 2700)
    found = store_sparse(net(), ["w", "v"])
    assert list(found.sizes) == ["w"]
    assert found.left == {"v": "the file would pass 2 GiB"}


def sparse_file(values, indices, dims, name="w"):
    model = net()
    kept = [t for t in model.graph.initializer if t.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.sparse_initializer.add(dims=dims).values.CopyFrom(numpy_helper.from_array(values, name))
    model.graph.sparse_initializer[0].indices.CopyFrom(numpy_helper.from_array(indices))
    return model


def test_indices_of_two_columns_are_read():
    model = sparse_file(np.array([1.0, 2.0], np.float32), np.array([[0, 3], [31, 63]]), [32, 64])
    value = arrays(load(model).model)["w"]
    assert (value[0, 3], value[31, 63], np.count_nonzero(value)) == (1.0, 2.0, 2)


def test_a_sparse_constant_is_read():
    sparse = sparse_file(np.array([3.0], np.float32), np.array([5]), [32, 64])
    held = sparse.graph.sparse_initializer[0]
    node = helper.make_node("Constant", [], ["w"])
    node.attribute.append(helper.make_attribute("sparse_value", held))
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in sparse.graph.node]
    del sparse.graph.node[:], sparse.graph.sparse_initializer[:]
    sparse.graph.node.extend([node, *nodes])
    made = load(sparse).model.graph.node[0]
    assert made.attribute[0].name == "value"
    assert numpy_helper.to_array(made.attribute[0].t)[0, 5] == 3.0


@pytest.mark.parametrize(
    ("values", "indices", "words"),
    [([1.0, 2.0], [3], "do not fit"), ([1.0], [2048], "do not fit"), ([1.0], [-1], "do not fit"), ([1.0], [[40, 0]], "damaged")],
)
def test_damaged_sparse_weights_are_refused(values, indices, words):
    with pytest.raises(ModelError, match=words):
        load(sparse_file(np.array(values, np.float32), np.array(indices), [32, 64]))


def test_sparse_weights_outside_the_file_are_refused():
    model = sparse_file(np.array([1.0], np.float32), np.array([3]), [32, 64])
    model.graph.sparse_initializer[0].values.data_location = TensorProto.EXTERNAL
    with pytest.raises(ModelError, match="outside the file"):
        load(model)
