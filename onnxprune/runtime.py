"""ONNX Runtime sessions: models of any size, on the device that was chosen, with short errors and nothing on the terminal."""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.devices import (
    CUDA_OPTIONS,
    Device,
    choose_device,
    installed_runtimes,
    one_line,
    onnx_runtime,
    providers_report,
    quiet,
)
from onnxprune.errors import DataError, DeviceError, ModelError, OnnxpruneError, UnknownNameError, UsageError

__all__ = ["Device", "Port", "Session", "choose_device", "installed_runtimes", "providers_report"]

# A protocol buffer ends at 2 GiB; the rest of the graph needs some of that too.
LARGEST_PROTO = 1_900_000_000
SMALL_TENSOR = 1024
SHAPE_TROUBLE = re.compile(r"dimension|shape|\brank\b|broadcast|mismatch|out of (range|bounds)|input data type", re.IGNORECASE)
MEMORY_TROUBLE = re.compile(r"allocate memory|out of memory|bad allocation|bad_alloc", re.IGNORECASE)


class Port(NamedTuple):
    """One input or output of a model; a dynamic dimension is its name, or None where it has none."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


class Session:
    """One loaded model. `inputs` and `outputs` are tuples of (name, dtype, shape).

    `spinning`: idle threads stay awake, as ONNX Runtime does by default; for timing alone.
    A ModelProto or bytes whose weights lie in other files need `weights_folder`, the folder of those files.
    """

    def __init__(
        self,
        model: onnx.ModelProto | Path | bytes,
        device: Device,
        *,
        threads: int = 0,
        optimise: bool = True,
        spinning: bool = False,
        weights_folder: Path | None = None,
    ) -> None:
        if threads < 0:
            raise UsageError(f"{threads} threads", "use 0 (ONNX Runtime decides) or more")
        self.device = device
        folder = Path(tempfile.mkdtemp(prefix="onnxprune-"))
        # Windows keeps mapped files: what cannot be deleted after loading goes when the session does.
        self._tidy = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        try:
            content, weights = _loadable(model, weights_folder, folder)
            self._session: Any = _create(content, device, _options(threads, optimise, spinning, weights))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.inputs = tuple(_port(p) for p in self._session.get_inputs())
        self.outputs = tuple(_port(p) for p in self._session.get_outputs())

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Outputs by name (all, or those asked for); feeds that are no input of the model are ignored."""
        if self._session is None:
            raise UsageError("this session was freed", "open a new one")
        known = [port.name for port in self.outputs]
        names = known if outputs is None else list(outputs)
        for name in names:
            if name not in known:
                raise UnknownNameError("model output", name, known)
        missing = [port.name for port in self.inputs if port.name not in feeds]
        if missing:
            raise DataError(
                f"no data for model input {missing[0]!r}", f"the model needs {', '.join(p.name for p in self.inputs)}"
            )
        try:
            return self._run({port.name: feeds[port.name] for port in self.inputs}, names)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise _run_error(error) from error

    def _run(self, feeds: dict[str, NDArray[Any]], names: list[str]) -> dict[str, NDArray[Any]]:
        ort = onnx_runtime()
        quiet = ort.RunOptions()
        quiet.log_severity_level = 4  # whatever it would log comes as an exception too
        if all(port.dtype.name != "bfloat16" for port in self.inputs + self.outputs):
            return dict(zip(names, self._session.run(names, feeds, quiet), strict=True))
        values = {name: _to_ort(array) for name, array in feeds.items()}
        return dict(zip(names, map(_from_ort, self._session.run_with_ort_values(names, values, quiet)), strict=True))

    def free(self) -> None:
        """Give the memory back now rather than when Python gets to it."""
        self._session = None
        self._tidy()


def _options(threads: int, optimise: bool, spinning: bool, weights_folder: Path | None) -> Any:
    ort = onnx_runtime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    # Idle threads that spin take the cores away from the numerics between two runs (measured: 4 times the time on 2 cores).
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if weights_folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights_folder))
    return options


def _create(model: bytes | str, device: Device, options: Any) -> Any:
    ort = onnx_runtime()
    try:
        if device.name == "cpu":
            return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        with quiet():
            chain = [("CUDAExecutionProvider", {"device_id": str(device.index), **CUDA_OPTIONS}), "CPUExecutionProvider"]
            session = ort.InferenceSession(model, options, providers=chain, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise _load_error(error) from error
    if session.get_providers()[0] != device.provider:
        raise DeviceError(
            f"the session does not run on cuda:{device.index}", "use device 'cpu', or see what `onnxprune doctor` says"
        )
    return session


def _load_error(error: Exception) -> OnnxpruneError:
    problem = one_line(error)
    if version := re.search(r"IR version: (\d+), max supported IR version: (\d+)", problem):
        remedy = f"upgrade ONNX Runtime, or save the model with ir_version {version[2]} or lower"
        return ModelError(f"the model has IR version {version[1]}, this ONNX Runtime reads up to {version[2]}", remedy)
    if MEMORY_TROUBLE.search(problem):
        return DeviceError(f"the model does not fit into memory: {problem}", "free memory, or use another device")
    return ModelError(f"ONNX Runtime refuses the model: {problem}", "see whether onnx.checker.check_model accepts it")


def _run_error(error: Exception) -> OnnxpruneError:
    problem = one_line(error)
    if MEMORY_TROUBLE.search(problem):
        return DeviceError(f"the model ran out of memory: {problem}", "use a smaller batch")
    if SHAPE_TROUBLE.search(problem):
        return DataError(f"the inputs do not fit the model: {problem}", "compare their shapes and types with the model's inputs")
    return ModelError(f"ONNX Runtime cannot run the model: {problem}")


def _loadable(
    model: onnx.ModelProto | Path | bytes, weights_folder: Path | None, scratch: Path
) -> tuple[bytes | str, Path | None]:
    """What ONNX Runtime is given: a path, the serialised model, or (too large for that) the path of a copy in `scratch`.

    With it comes the folder of the weights, where that is not the folder of the path.
    """
    if isinstance(model, Path):
        if not model.is_file():
            raise ModelError(f"there is no model file {str(model)!r}", "check the path")
        return str(model), weights_folder
    if isinstance(model, bytes):
        return model, weights_folder
    weights = model.graph.initializer
    # ONNX Runtime follows links out of the folder when it reads a file, but not when it reads bytes.
    linked = weights_folder is not None and any(_weight_file(w, weights_folder).is_symlink() for w in weights if w.external_data)
    if linked or sum(len(w.raw_data) for w in weights) > LARGEST_PROTO:
        return str(_spill(model, weights_folder, scratch)), None
    return model.SerializeToString(), weights_folder


def _weight_file(tensor: onnx.TensorProto, folder: Path | None) -> Path:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    return (folder or Path.cwd()) / location


def _spill(model: onnx.ModelProto, weights_folder: Path | None, scratch: Path) -> Path:
    """Write the model with its weights in a file beside it; `model` itself is left as it is, unlike by onnx.save."""
    light = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _copy_field(light, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _copy_field(light.graph, field.name, value)
    with (scratch / "weights").open("wb") as file:
        for tensor in model.graph.initializer:
            content = _content(tensor, weights_folder)
            if len(content) < SMALL_TENSOR and not tensor.external_data:
                light.graph.initializer.add().CopyFrom(tensor)
                continue
            place = {"location": "weights", "offset": str(file.tell()), "length": str(len(content))}
            header = light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            header.data_location = onnx.TensorProto.EXTERNAL
            for key, value in place.items():
                header.external_data.add(key=key, value=value)
            file.write(content)
    path = scratch / "model.onnx"
    path.write_bytes(light.SerializeToString())
    return path


def _copy_field(target: Any, name: str, value: Any) -> None:
    if hasattr(value, "extend") or hasattr(value, "append"):
        getattr(target, name).extend(value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)


def _content(tensor: onnx.TensorProto, weights_folder: Path | None) -> bytes:
    """The bytes of a weight, from inside the model or from its file; none for one held as a list of numbers."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return bytes(tensor.raw_data)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        with _weight_file(tensor, weights_folder).open("rb") as file:
            file.seek(int(entries.get("offset", 0)))
            return file.read(int(entries.get("length", -1)))
    except OSError as error:
        raise ModelError(
            f"the weights of {tensor.name!r} cannot be read: {error}", "keep the weight files beside the model"
        ) from error


def _port(port: Any) -> Port:
    return Port(port.name, _dtype(port.type), tuple(port.shape) if isinstance(port.shape, list) else ())


def _dtype(spelling: str) -> np.dtype[Any]:
    # ONNX Runtime spells "tensor(float)"; what is no tensor of numbers (strings, sequences) is an object to numpy.
    name = spelling.removeprefix("tensor(").removesuffix(")")
    if name == "bfloat16":
        import ml_dtypes

        brain: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return brain
    try:
        known: np.dtype[Any] = np.dtype({"float": "float32", "double": "float64"}.get(name, name))
    except (TypeError, ValueError):
        return np.dtype(object)
    return known


def _to_ort(array: NDArray[Any]) -> Any:
    # numpy knows no bfloat16, so ONNX Runtime is handed its bits.
    value = onnx_runtime().OrtValue
    if array.dtype.name == "bfloat16":
        return value.ortvalue_from_numpy_with_onnx_type(
            np.ascontiguousarray(array).view(np.uint16), int(onnx.TensorProto.BFLOAT16)
        )
    return value.ortvalue_from_numpy(array)


def _from_ort(value: Any) -> NDArray[Any]:
    if value.data_type() != "tensor(bfloat16)":
        array: NDArray[Any] = value.numpy()
        return array
    shape = tuple(value.shape())
    bits = (ctypes.c_uint16 * math.prod(shape)).from_address(value.data_ptr())
    return np.frombuffer(bits, np.uint16).copy().reshape(shape).view(_dtype("tensor(bfloat16)"))
