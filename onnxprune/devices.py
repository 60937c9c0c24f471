"""Which devices there are and which really work; the only module that imports ONNX Runtime, kept from calling home."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import io
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import onnx

from onnxprune.errors import DeviceError, UsageError

# ONNX Runtime reports home as soon as it is imported; only a variable set before that stops it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
NVIDIA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
SOURCE_PLACE = re.compile(r"\S+\.(?:cc|cpp|cu|cuh|h|hpp):\d+\s+")


@dataclass(frozen=True)
class Device:
    """Where sessions run. `note` says why it is not the GPU, where there is one."""

    name: Literal["cpu", "cuda"]
    index: int
    provider: str
    note: str = ""

    @property
    def torch_device(self) -> str:
        """The same device for torch, whose CUDA build is independent of ONNX Runtime's."""
        if self.name == "cpu":
            return "cpu"
        import torch

        return f"cuda:{self.index}" if torch.cuda.is_available() and self.index < torch.cuda.device_count() else "cpu"


def choose_device(request: str = "auto") -> Device:
    """'auto', 'cpu', 'cuda' or 'cuda:N'. CUDA is tried only where the driver counts a GPU: asking in vain makes noise."""
    spelling = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", str(request).strip().lower())
    if spelling is None:
        raise UsageError(f"no device is called {request!r}", "use auto, cpu, cuda or cuda:N")
    index = int(spelling[1] or 0)
    asked = spelling[0].startswith("cuda")
    if spelling[0] == "cpu":
        return Device("cpu", 0, "CPUExecutionProvider")
    count = gpu_count()
    if count == 0 and not asked:
        return Device("cpu", 0, "CPUExecutionProvider")
    if count == 0:
        raise DeviceError("no NVIDIA GPU was found here", "use device 'cpu' or 'auto', or check that nvidia-smi lists a GPU")
    if index >= count:
        raise DeviceError(f"there is no device cuda:{index}", f"the driver counts {count}: use cuda:0 to cuda:{count - 1}")
    reason = cuda_failure(index)
    if not reason:
        return Device("cuda", index, "CUDAExecutionProvider")
    if asked:
        raise DeviceError(f"the GPU cannot be used: {reason}", "pip install 'onnxruntime-gpu[cuda,cudnn]' or use device 'cpu'")
    return Device("cpu", 0, "CPUExecutionProvider", f"running on the CPU although there is a GPU: {reason}")


@cache
def gpu_count() -> int:
    """NVIDIA GPUs the driver lets us use; 0 without a driver. Asks the driver itself, which prints nothing and costs little."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        works = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return 0
    return count.value if works else 0


@cache
def cuda_failure(index: int) -> str:
    """Why ONNX Runtime cannot compute on GPU `index`; empty where it can."""
    if "CUDAExecutionProvider" not in onnx_runtime().get_available_providers():
        return "the installed ONNX Runtime has no CUDA provider"
    printed = io.StringIO()
    preload = getattr(onnx_runtime(), "preload_dlls", None)
    with contextlib.redirect_stdout(printed):
        # Loads CUDA from the nvidia-* packages, which are not on the loader's path; prints what is missing, never raises.
        if preload is not None:
            preload()
    reason = _provider_failure("CUDAExecutionProvider", {"device_id": str(index), **CUDA_OPTIONS})
    missing = next((line for line in printed.getvalue().splitlines() if line.startswith("Failed to load")), "")
    return missing or reason if reason else ""


def _provider_failure(provider: str, options: Mapping[str, str]) -> str:
    """Run a small convolution on `provider`; why that did not work, or nothing."""
    ort = onnx_runtime()
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    image = np.ones((1, 1, 4, 4), np.float32)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chain = [(provider, dict(options))] + ([] if provider.startswith("CPU") else ["CPUExecutionProvider"])
            session = ort.InferenceSession(_probe_model(), settings, providers=chain, enable_fallback=0)
            if session.get_providers()[0] != provider:
                return f"{provider} does not start (its libraries are missing or of another version)"
            session.run(None, {"x": image, "w": image})
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        return one_line(error)
    return ""


def _probe_model() -> bytes:
    # A convolution, because a missing or mismatched cuDNN shows only there.
    ports = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 1, 4, 4]) for n in "xw"]
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1, 1, 1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Conv", ["x", "w"], ["y"])], "probe", ports, [result])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 13)])
    return bytes(model.SerializeToString())


@cache
def onnx_runtime() -> Any:
    """The onnxruntime module, imported on first use so that a missing or broken one is an error that says what to install."""
    names = "onnxruntime-gpu (NVIDIA GPUs) or onnxruntime, and only one of them"
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(f"ONNX Runtime cannot be imported: {error}", f"pip install {names}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        # Two of its wheels were installed and one removed: the folder is left without its files.
        raise UsageError("ONNX Runtime is installed but broken", f"pip install --force-reinstall --no-deps {names}")
    return onnxruntime


def one_line(error: Exception) -> str:
    """What ONNX Runtime has to say, without its error codes and without the C++ files and functions it names."""
    text = " ".join(str(error).split())
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    while place := SOURCE_PLACE.search(text):
        text = text[: place.start()] + _after_signature(text[place.end() :])
    text = re.sub(
        r"Non-zero status code returned while running (\w+) node\. Name:'([^']*)' Status Message: ", r"\1 node '\2': ", text
    )
    text = re.sub(r"\s*Please fix either the inputs/outputs or the model\.", "", text)
    return textwrap.shorten(text, 300, placeholder=" ...") or type(error).__name__


def _after_signature(text: str) -> str:
    # A place in the source is followed by a full C++ signature, "void ort::F(const T&) const ", or by a bare function name.
    start = text.find("(")
    if start < 0 or "::" not in text[:start]:
        return text.partition(" ")[2]
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return text[i + 1 :].removeprefix(" const").lstrip()
    return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    # Providers log through the default logger, which no session option silences, and Python's fall-back prints to stdout.
    ort = onnx_runtime()
    ort.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ort.set_default_logger_severity(2)


def providers_report() -> list[tuple[str, bool, str]]:
    """(provider, does it work, why or why not) for each one the installed ONNX Runtime lists; being listed proves nothing."""
    report = []
    for name in onnx_runtime().get_available_providers():
        if name in NVIDIA and gpu_count() == 0:
            reason = "no NVIDIA GPU was found here"
        elif name == "CUDAExecutionProvider":
            reason = cuda_failure(0)
        else:
            reason = _provider_failure(name, {})
        report.append((name, not reason, reason or "a trial convolution ran"))
    return report


def installed_runtimes() -> dict[str, str]:
    """Versions of the installed distributions that bring a module `onnxruntime`; more than one break each other."""
    flavours = ("", "-gpu", "-directml", "-openvino", "-rocm", "-migraphx", "-qnn", "-training", "-silicon", "-windowsml")
    found = {}
    for name in (f"onnxruntime{flavour}" for flavour in flavours):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
