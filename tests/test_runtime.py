"""Sessions give numpy's numbers, devices are never claimed in vain, and errors are one line that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import devices, runtime
from onnxprune.errors import DataError, DeviceError, ModelError, UnknownNameError, UsageError
from onnxprune.runtime import Device, Session, choose_device

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


@pytest.fixture
def gpus(monkeypatch):
    """Pretend there are `count` GPUs, of which ONNX Runtime says `failure`."""

    def pretend(count, failure=""):
        monkeypatch.setattr(devices, "gpu_count", lambda: count)
        monkeypatch.setattr(devices, "cuda_failure", lambda index: failure)

    return pretend


# --- devices


@pytest.mark.parametrize("request_", ["cpu", "auto", " CPU ", "Auto"])
def test_without_a_gpu_everything_runs_on_the_cpu_without_a_note(gpus, request_):
    gpus(0)
    assert choose_device(request_) == CPU


def test_asking_for_cuda_without_a_gpu_is_an_error_with_a_remedy(gpus):
    gpus(0)
    with pytest.raises(DeviceError) as caught:
        choose_device("cuda")
    assert "GPU" in caught.value.problem
    assert "cpu" in caught.value.remedy


def test_a_gpu_that_works_is_chosen(gpus):
    gpus(2)
    assert choose_device("auto") == Device("cuda", 0, "CUDAExecutionProvider")
    assert choose_device("cuda") == Device("cuda", 0, "CUDAExecutionProvider")
    assert choose_device("cuda:1") == Device("cuda", 1, "CUDAExecutionProvider")


def test_a_gpu_number_out_of_range_is_an_error(gpus):
    gpus(2)
    with pytest.raises(DeviceError, match=r"cuda:2.*cuda:0 to cuda:1"):
        choose_device("cuda:2")


def test_a_gpu_that_fails_is_noted_by_auto_and_refused_when_asked_for(gpus):
    gpus(1, "libcudnn is missing")
    device = choose_device("auto")
    assert device.name == "cpu"
    assert device.provider == "CPUExecutionProvider"
    assert "libcudnn is missing" in device.note
    with pytest.raises(DeviceError, match="libcudnn is missing"):
        choose_device("cuda")


def test_asking_for_the_cpu_never_looks_for_a_gpu(monkeypatch):
    monkeypatch.setattr(devices, "gpu_count", lambda: pytest.fail("looked for a GPU"))
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("request_", ["gpu", "cuda:", "cuda:-1", "cuda:x", "", "cpu:0"])
def test_a_misspelt_device_is_an_error(request_):
    with pytest.raises(UsageError, match="cuda:N") as caught:
        choose_device(request_)
    assert not isinstance(caught.value, DeviceError)


def test_the_gpus_are_counted_by_the_driver(monkeypatch):
    class Driver:
        def __init__(self, status):
            self.status = status

        def cuInit(self, flags):  # noqa: N802 - the driver's own name
            return self.status

        def cuDeviceGetCount(self, pointer):  # noqa: N802 - the driver's own name
            pointer._obj.value = 3
            return 0

    count = devices.gpu_count.__wrapped__
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: Driver(0))
    assert count() == 3
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: Driver(100))
    assert count() == 0

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(devices.ctypes, "CDLL", missing)
    assert count() == 0


@pytest.mark.skipif(devices.gpu_count() > 0, reason="needs a machine without a GPU")
def test_the_probe_finds_out_that_cuda_does_not_run_and_prints_nothing(capfd):
    assert devices.cuda_failure.__wrapped__(0) != ""
    assert capfd.readouterr() == ("", "")


def test_the_probe_finds_out_that_the_cpu_runs():
    assert devices._provider_failure("CPUExecutionProvider", {}) == ""


def test_torch_uses_the_gpu_only_if_it_can_too(monkeypatch):
    import torch

    cuda = Device("cuda", 1, "CUDAExecutionProvider")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert cuda.torch_device == "cuda:1"
    assert CPU.torch_device == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cuda.torch_device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Device("cuda", 0, "CUDAExecutionProvider").torch_device == "cpu"


@pytest.mark.skipif(devices.gpu_count() > 0, reason="needs a machine without a GPU")
def test_a_session_never_falls_back_to_the_cpu_by_itself(capfd):
    with pytest.raises((DeviceError, ModelError)):
        Session(model(), Device("cuda", 0, "CUDAExecutionProvider"))
    assert capfd.readouterr() == ("", "")


def test_the_report_tells_listed_from_working_providers(gpus, capfd):
    gpus(0)
    report = {name: (works, reason) for name, works, reason in runtime.providers_report()}
    assert report["CPUExecutionProvider"][0]
    assert all(not works and "GPU" in reason for name, (works, reason) in report.items() if name in devices.NVIDIA)
    assert capfd.readouterr().out == ""


def test_the_installed_runtimes_are_found():
    found = runtime.installed_runtimes()
    assert found
    assert all(name.startswith("onnxruntime") and version[0].isdigit() for name, version in found.items())


@pytest.mark.skipif(sys.platform == "win32", reason="reads the cache folder of Linux and macOS")
def test_importing_leaves_no_trace_of_telemetry(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    code = "from onnxprune import devices; devices.onnx_runtime()"
    root = Path(runtime.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, check=True)
    assert list(tmp_path.rglob("*onnxruntime*")) == []


def test_a_missing_runtime_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="pip install"):
        devices.onnx_runtime.__wrapped__()


# --- running


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
    seen = []
    monkeypatch.setattr(
        runtime, "_create", lambda content, *rest, real=runtime._create: seen.append(content) or real(content, *rest)
    )
    session = Session(proto, CPU)
    assert isinstance(seen[0], str)
    np.testing.assert_allclose(session.run({"x": X})["y"], X @ WIDE, rtol=1e-5)
    assert proto.SerializeToString() == before
    session.free()
    assert list(tmp_path.iterdir()) == []


def external(folder: Path):
    onnx.save(model(WIDE), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return onnx.load(folder / "m.onnx", load_external_data=False)


@pytest.mark.parametrize("kind", ["proto", "bytes", "path"])
def test_weights_are_found_in_their_folder(tmp_path, kind):
    proto = external(tmp_path)
    given_ = {"proto": proto, "bytes": proto.SerializeToString(), "path": tmp_path / "m.onnx"}[kind]
    session = Session(given_, CPU, weights_folder=None if kind == "path" else tmp_path)
    np.testing.assert_allclose(session.run({"x": X})["y"], X @ WIDE, rtol=1e-5)


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


def test_messages_lose_their_source_places():
    text = (
        "[ONNXRuntimeError] : 1 : FAIL : /src/core/a.cc:25 void ort::F(const std::map<int>&, G (*)(int)) const Reason (one)\n"
        "b.h:3 Compute Reason two"
    )
    assert devices.one_line(Exception(text)) == "Reason (one) Reason two"
