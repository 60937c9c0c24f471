"""Made-up inputs for a model without data: smooth noise where it looks at images, as white noise excites nothing it learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from onnxprune.calibration.fitting import Array, Block, InputSpec
from onnxprune.errors import DataError

Floats = NDArray[np.float64]

WARNING = "the inputs are made-up noise: deviations measured on them say nothing about accuracy; give real samples"
UNFITTED = "calibrated on made-up noise, not on what the model sees in use; give real samples with --data"
COARSEST = 2
FALL = 0.7
"""Amplitude of an octave over that of the next coarser one: details of natural images are weaker than their outlines."""
COLOUR = 0.3
"""Share of a channel that is its own; the rest is common to all, as the brightness of a natural image is."""


def noise_maker(
    inputs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]], int_high: Mapping[str, int], seed: int
) -> Callable[[int], Block]:
    """A function from sample number to that sample. Each sample has its own generator, so that batch size changes nothing."""
    targets = [_sample_shape(spec, shapes) for spec in inputs]

    def make(index: int) -> Block:
        block = {}
        for place, (spec, shape) in enumerate(zip(inputs, targets, strict=True)):
            # An input without a batch axis is shared by the samples of a batch, so it is the same for all.
            rng = np.random.default_rng([seed % 2**64, index if spec.batched else 0, place])
            sample = _sample(spec, shape, int_high.get(spec.name, 2), rng).astype(spec.dtype)
            block[spec.name] = sample[None] if spec.batched else sample
        return block

    return make


def _sample_shape(spec: InputSpec, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    trial = shapes.get(spec.name)
    shape = spec.sample_shape if trial is None else trial[1:] if spec.batched else trial
    if any(n is None for n in shape):
        raise DataError(f"the shape of model input {spec.name!r} is not known", "give its shape, or sample inputs")
    return tuple(n for n in shape if n is not None)


def _sample(spec: InputSpec, shape: tuple[int, ...], high: int, rng: np.random.Generator) -> Array:
    if spec.dtype.kind == "b":
        return rng.integers(0, 2, shape)
    if spec.dtype.kind in "iu":
        # A random mask hides random tokens, sometimes all of them; what a user feeds is mostly ones.
        return np.ones(shape) if "mask" in spec.name.lower() else rng.integers(0, max(1, high), shape)
    if spec.dtype.hasobject or spec.dtype.kind in "SUc":
        raise DataError(f"no noise can be made for model input {spec.name!r} of type {spec.dtype}", "give sample inputs")
    axis = channel_axis(shape) if spec.batched else None
    if axis is None:
        return rng.standard_normal(shape)
    spatial = tuple(n for i, n in enumerate(shape) if i != axis)
    return np.moveaxis(image(shape[axis], spatial, rng), 0, axis)


def channel_axis(shape: Sequence[int]) -> int | None:
    """Where the channels of an image-like sample lie: 1 to 4 of them, first or last, and every other axis at least 8 long."""
    if not 2 <= len(shape) <= 4:
        return None
    if 1 <= shape[0] <= 4 and min(shape[1:]) >= 8:
        return 0
    return len(shape) - 1 if 1 <= shape[-1] <= 4 and min(shape[:-1]) >= 8 else None


def image(channels: int, spatial: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """(channels, *spatial), over many samples of mean 0 and spread about 1, as natural images are after standardisation.

    Brightness and contrast differ from image to image: a set of equal spreads would show a network less than it has seen.
    """
    common = _field(spatial, rng)
    own = np.stack([_field(spatial, rng) for _ in range(channels)]) if channels > 1 else common[None]
    brightness = 0.5 * rng.standard_normal()
    contrast = rng.uniform(0.5, 1.2)
    mixed: Floats = brightness + contrast * (np.sqrt(1 - COLOUR**2) * common + COLOUR * own)
    return mixed if channels > 1 else brightness + contrast * common[None]


def _field(spatial: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Grids of random numbers from coarse to half the resolution, each drawn out to full size, in sum of mean 0 and spread 1."""
    total = np.zeros(spatial)
    size, amplitude = COARSEST, 1.0
    while size <= min(spatial) // 2:
        grid: Any = rng.standard_normal([size] * len(spatial))
        for axis, length in enumerate(spatial):
            grid = np.moveaxis(np.tensordot(_stretch(size, length), grid, (1, axis)), 0, axis)
        total += amplitude * grid / grid.std()
        size, amplitude = 2 * size, FALL * amplitude
    total -= total.mean()
    total /= total.std()
    return total


@cache
def _stretch(size: int, length: int) -> Floats:
    """The matrix (length, size) of cubic interpolation along one axis."""
    matrix: Floats = zoom(np.eye(size), (length / size, 1), order=3, mode="nearest", grid_mode=True)
    return matrix
