"""Sample inputs from image files: found, opened, fitted to the model's size and scaled as in training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxprune.calibration.fitting import Array, Block, InputSpec, cast, show
from onnxprune.errors import DataError, UsageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
Layout = Literal["nchw", "nhwc"]
Colour = float | Sequence[float] | None


def image_files(folder: Path) -> list[Path]:
    """All images below `folder`, in one order on every machine."""
    return sorted((p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()), key=lambda p: p.as_posix())


@dataclass(frozen=True)
class Frame:
    """What the model wants an image to be; `scale` and `shift` make its numbers of pixels 0 to 255."""

    spec: InputSpec
    layout: Layout
    channels: int
    height: int
    width: int
    scale: Array
    shift: Array


def image_maker(paths: Sequence[Path], frame: Frame) -> Callable[[int], Block]:
    """A function from sample number to that image, as a batch of one."""
    opener = _pillow()

    def make(index: int) -> Block:
        path = paths[index]
        pixels = _open(opener, path, frame).reshape(frame.height, frame.width, frame.channels)
        values = pixels if frame.spec.dtype.kind in "iu" else pixels * frame.scale + frame.shift
        values = np.moveaxis(values, -1, 0) if frame.layout == "nchw" else values
        return {frame.spec.name: np.ascontiguousarray(cast(str(path), values, frame.spec, None)[None])}

    return make


def _pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise UsageError("reading images needs Pillow, which is not installed", "pip install onnxprune[images]") from error
    return PIL


def _open(pil: Any, path: Path, frame: Frame) -> Array:
    """Turned upright, shrunk until it just covers the frame, and cut in the middle: nothing is squeezed."""
    try:
        with pil.Image.open(path) as raw:
            upright = pil.ImageOps.exif_transpose(raw).convert(MODES[frame.channels])
            fitted = pil.ImageOps.fit(upright, (frame.width, frame.height), pil.Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, pil.Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no image that can be read: {error}", "remove or replace it") from error
    return np.asarray(fitted)


def frame_for(
    inputs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]], layout: str, mean: Colour, std: Colour, folder: Path
) -> tuple[Frame, tuple[str, ...]]:
    """The frame, and warnings about what had to be guessed."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or not inputs[0].batched:
        listed = ", ".join(f"{spec.name} {show(spec.shape)}" for spec in inputs)
        raise DataError(f"images feed one input of rank 4; this model has {listed}", "give an .npz file with an array per input")
    spec = inputs[0]
    shape = tuple(s if s is not None else t for s, t in zip(spec.shape, shapes.get(spec.name, spec.shape), strict=True))[1:]
    chosen = _layout(shape, layout)
    channels, height, width = shape if chosen == "nchw" else (shape[2], shape[0], shape[1])
    if (channels or 3) not in MODES:
        raise DataError(
            f"model input {spec.name!r} {show(spec.shape)} has {channels} channels", "images give 1, 3 or 4; check the layout"
        )
    raw = spec.dtype.kind in "iu"
    if raw and (mean is not None or std is not None):
        raise UsageError(f"model input {spec.name!r} takes whole numbers, so mean and std cannot be applied", "leave them out")
    warnings: tuple[str, ...] = ()
    if mean is None and std is None:
        mean, std = preprocessing(folder)
        if mean is None and std is None and not raw:
            warnings = ("no mean and std were given: pixels are scaled to 0..1; give those of the training",)
    scale, shift = _scaling(mean, std, channels or 3)
    return Frame(spec, chosen, channels or 3, height or 224, width or 224, scale, shift), warnings


def _layout(shape: Sequence[int | None], layout: str) -> Layout:
    if layout == "nchw" or layout == "nhwc":
        return "nchw" if layout == "nchw" else "nhwc"
    if layout != "auto":
        raise UsageError(f"no layout is called {layout!r}", "use auto, nchw or nhwc")
    return "nhwc" if shape[0] not in MODES and shape[-1] in MODES else "nchw"


def preprocessing(folder: Path) -> tuple[Colour, Colour]:
    """Mean and std of a Hugging Face preprocessor_config.json in `folder`, if there is one."""
    path = folder / "preprocessor_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", "repair or remove it") from error
    return (config.get("image_mean"), config.get("image_std")) if config.get("do_normalize", True) else (0.0, 1.0)


def _scaling(mean: Colour, std: Colour, channels: int) -> tuple[Array, Array]:
    """(pixel / 255 - mean) / std as one product and one sum; numbers above 1 can only be meant for pixels 0 to 255."""
    centre, spread = (_per_channel(v, default, channels) for v, default in ((mean, 0.0), (std, 1.0)))
    if not (spread > 0).all():
        raise UsageError(f"std {spread.tolist()} is not positive", "give the spread of the training images")
    unit = 1.0 if max(centre.max(), spread.max()) > 1 else 255.0
    return (1 / (unit * spread)).astype(np.float32), (-centre / spread).astype(np.float32)


def _per_channel(value: Colour, default: float, channels: int) -> Array:
    numbers = np.atleast_1d(np.asarray(default if value is None else value, np.float64))
    if numbers.ndim != 1 or len(numbers) not in (1, channels) or not np.isfinite(numbers).all():
        raise UsageError(f"mean or std {numbers.tolist()} does not suit {channels} channels", f"give one number or {channels}")
    return np.broadcast_to(numbers, (channels,))
