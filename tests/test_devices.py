"""Devices are never claimed in vain, nothing is sent or printed, and what is missing is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxprune import devices
from onnxprune.devices import Device, choose_device
from onnxprune.errors import DeviceError, UsageError

CPU = Device("cpu", 0, "CPUExecutionProvider")


@pytest.fixture
def gpus(monkeypatch):
    """Pretend there are `count` GPUs, of which ONNX Runtime says `failure`."""

    def pretend(count, failure=""):
        monkeypatch.setattr(devices, "gpu_count", lambda: count)
        monkeypatch.setattr(devices, "cuda_failure", lambda index: failure)

    return pretend


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


def test_the_report_tells_listed_from_working_providers(gpus, capfd):
    gpus(0)
    report = {name: (works, reason) for name, works, reason in devices.providers_report()}
    assert report["CPUExecutionProvider"][0]
    assert all(not works and "GPU" in reason for name, (works, reason) in report.items() if name in devices.NVIDIA)
    assert capfd.readouterr().out == ""


def test_the_installed_runtimes_are_found():
    found = devices.installed_runtimes()
    assert found
    assert all(name.startswith("onnxruntime") and version[0].isdigit() for name, version in found.items())


@pytest.mark.skipif(sys.platform == "win32", reason="reads the cache folder of Linux and macOS")
def test_importing_leaves_no_trace_of_telemetry(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    code = "from onnxprune import devices; devices.onnx_runtime()"
    root = Path(devices.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, check=True)
    assert list(tmp_path.rglob("*onnxruntime*")) == []


def test_a_missing_runtime_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="pip install"):
        devices.onnx_runtime.__wrapped__()


def test_messages_lose_their_source_places():
    text = (
        "[ONNXRuntimeError] : 1 : FAIL : /src/core/a.cc:25 void ort::F(const std::map<int>&, G (*)(int)) const Reason (one)\n"
        "b.h:3 Compute Reason two"
    )
    assert devices.one_line(Exception(text)) == "Reason (one) Reason two"
