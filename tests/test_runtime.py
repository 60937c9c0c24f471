"""Sessions give numpy's numbers on models of any size, and errors are one line that says what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import devices, runtime
from onnxprune.errors import DataError, DeviceError, ModelError, UnknownNameError, UsageError
from onnxprune.runtime import Device, Session

CPU = Device("cpu", 0, "CPUExecutionProvider")
W = np.arange(12, dtype=np.float32).reshape(4, 3)
WIDE = np.random.default_rng(0).standard_normal((4, 300)).astype(np.float32)


def model(weight=W, shape=("n", 4), op="MatMul", ir_version=10, kind=TensorProto.FLOAT, outputs=("y",)):
    nodes = [helper.make_node(op, ["x", "W"] if op == "MatMul" else ["x"], [name], name=f"the_{name}") for name in outputs]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(weight, "W")] if op == "MatMul" else [],
    )
    return helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", 17)])


X = np.ones((2, 4), np.float32)


def given(kind, folder):
    if kind == "proto":
        return model()
    if kind == "bytes":
        return model().SerializeToString()
    onnx.save(model(), folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("kind", ["proto", "bytes", "path"])
@pytest.mark.parametrize("optimise", [True, False])
def test_a_session_computes_what_numpy_does(tmp_path, kind, optimise):
    session = Session(given(kind, tmp_path), CPU, threads=1, optimise=optimise)
    np.testing.assert_allclose(session.run({"x": X})["y"], X @ W)


def test_inputs_and_outputs_are_described():
    session = Session(model(), CPU)
    assert session.inputs == (("x", np.dtype(np.float32), ("n", 4)),)
    assert session.outputs[0].name == "y"
    assert session.outputs[0].dtype == np.float32


def test_only_the_outputs_asked_for_come_back_and_extra_feeds_are_ignored():
    session = Session(model(outputs=("y", "z")), CPU)
    assert list(session.run({"x": X, "label": np.ones(1)})) == ["y", "z"]
    assert list(session.run({"x": X}, ["z"])) == ["z"]
    with pytest.raises(UnknownNameError, match="zz"):
        session.run({"x": X}, ["zz"])


def test_bfloat16_goes_in_and_comes_out():
    import ml_dtypes

    x = np.array([[1.5, -2, 3, 4]], ml_dtypes.bfloat16)
    session = Session(model(op="Identity", kind=TensorProto.BFLOAT16), CPU)
    y = session.run({"x": x})["y"]
    assert y.dtype == x.dtype == session.inputs[0].dtype
    np.testing.assert_array_equal(y, x)


def test_a_freed_session_says_so():
    session = Session(model(), CPU)
    session.free()
    with pytest.raises(UsageError, match="freed"):
        session.run({"x": X})


# --- weights in other files


def test_a_model_too_large_for_one_message_is_written_to_disk_and_left_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "LARGEST_PROTO", 100)
    monkeypatch.setattr(runtime.tempfile, "tempdir", str(tmp_path))
    proto = model(WIDE)
    proto.metadata_props.add(key="k", value="v")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "small"))
    before = proto.SerializeToString()
    create, seen = runtime._create, []
    monkeypatch.setattr(runtime, "_create", lambda content, *rest: seen.append(content) or create(content, *rest))
    session = Session(proto, CPU)
    assert isinstance(seen[0], str)
    np.testing.assert_allclose(session.run({"x": X})["y"], X @ WIDE, rtol=1e-5)
    assert proto.SerializeToString() == before
    if sys.platform != "win32":  # where the file stays mapped until the session goes
        assert list(tmp_path.iterdir()) == []
    session.free()
    assert list(tmp_path.iterdir()) == []


def external(folder: Path, weight=WIDE):
    onnx.save(model(weight), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return onnx.load(folder / "m.onnx", load_external_data=False)


@pytest.mark.parametrize("kind", ["proto", "bytes", "path"])
def test_weights_are_found_in_their_folder(tmp_path, kind):
    proto = external(tmp_path)
    given_ = {"proto": proto, "bytes": proto.SerializeToString(), "path": tmp_path / "m.onnx"}[kind]
    session = Session(given_, CPU, weights_folder=None if kind == "path" else tmp_path)
    np.testing.assert_allclose(session.run({"x": X})["y"], X @ WIDE, rtol=1e-5)


def test_small_weights_in_files_come_along_when_the_model_is_too_large(tmp_path, monkeypatch):
    proto = external(tmp_path, W)
    proto.graph.initializer.append(numpy_helper.from_array(WIDE, "unused"))
    monkeypatch.setattr(runtime, "LARGEST_PROTO", 100)
    np.testing.assert_allclose(Session(proto, CPU, weights_folder=tmp_path).run({"x": X})["y"], X @ W)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_weights_behind_a_link_are_found_as_in_a_hub_cache(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    proto = external(tmp_path / "blobs")
    (tmp_path / "snapshot" / "m.data").symlink_to("../blobs/m.data")
    session = Session(proto, CPU, weights_folder=tmp_path / "snapshot")
    np.testing.assert_allclose(session.run({"x": X})["y"], X @ WIDE, rtol=1e-5)


def test_missing_weights_are_a_model_error(tmp_path, monkeypatch):
    proto = external(tmp_path)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match="W"):
        Session(proto, CPU, weights_folder=tmp_path)
    proto.graph.initializer.append(numpy_helper.from_array(WIDE, "other"))
    monkeypatch.setattr(runtime, "LARGEST_PROTO", 100)
    with pytest.raises(ModelError, match="cannot be read"):
        Session(proto, CPU, weights_folder=tmp_path)


# --- errors


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda: model(ir_version=99), "IR version 99"),
        (lambda: model(op="Nonsense"), "Nonsense"),
        (lambda: model(shape=(1, 5)), "the_y"),
        (lambda: b"no model", "protobuf"),
        (lambda: Path("nowhere.onnx"), "nowhere.onnx"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_line_without_c_plus_plus(broken, words, capfd):
    with pytest.raises(ModelError) as caught:
        Session(broken(), CPU)
    text = str(caught.value)
    assert words in text
    assert caught.value.remedy
    assert "\n" not in text
    assert "::" not in text
    assert ".cc" not in text
    assert "ONNXRuntimeError" not in text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.ones((2, 5), np.float32), "Got: 5 Expected: 4"),
        (np.ones(4, np.float32), "rank"),
        (np.ones((2, 4)), "double"),
    ],
)
def test_inputs_that_do_not_fit_are_a_data_error(x, words):
    with pytest.raises(DataError, match=words):
        Session(model(), CPU).run({"x": x})


def test_a_node_that_fails_is_named_quietly(capfd):
    session = Session(model(shape=("n", "k")), CPU)
    with pytest.raises(DataError, match=r"MatMul node 'the_y': .*dimension mismatch"):
        session.run({"x": np.ones((2, 5), np.float32)})
    assert capfd.readouterr() == ("", "")


def test_a_missing_feed_and_a_negative_thread_count_are_refused():
    with pytest.raises(DataError, match="'x'"):
        Session(model(), CPU).run({})
    with pytest.raises(UsageError, match="threads"):
        Session(model(), CPU, threads=-1)


def test_running_out_of_memory_is_told_apart():
    error = runtime._run_error(RuntimeError("Failed to allocate memory for requested buffer of size 99"))
    assert isinstance(error, DeviceError)
    assert "smaller batch" in error.remedy


@pytest.mark.skipif(devices.gpu_count() > 0, reason="needs a machine without a GPU")
def test_a_session_never_falls_back_to_the_cpu_by_itself(capfd):
    with pytest.raises((DeviceError, ModelError)):
        Session(model(), Device("cuda", 0, "CUDAExecutionProvider"))
    assert capfd.readouterr() == ("", "")


def test_a_sequence_of_maps_is_an_output_as_any_other():
    """What skl2onnx puts behind a classifier."""
    ml = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_strings=list("abcd"))
    labels = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    outputs = [helper.make_value_info("y", helper.make_sequence_type_proto(labels))]
    graph = helper.make_graph([ml], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])], outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    session = Session(helper.make_model(graph, ir_version=10, opset_imports=opsets), CPU)
    assert session.outputs == (("y", np.dtype(object), ()),)
    assert session.run({"x": X})["y"] == [dict.fromkeys("abcd", 1.0)] * 2
