"""Noise looks like images where the model wants images, is valid elsewhere, and depends on seed and sample number alone."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.calibration.noise import channel_axis
from onnxprune.calibration.sources import InputSpec, open_source, split
from onnxprune.errors import DataError

IMAGE = InputSpec("x", np.dtype(np.float32), (None, 3, 32, 32))


def take(source, size=16):
    batches = list(source.batches(size))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def rough(images):
    """Energy of the steps between neighbours over that of the image: 2 for white noise."""
    return np.diff(images, axis=-1).var() / images.var()


def test_images_have_the_spread_of_standardised_ones():
    x = take(open_source(None, [IMAGE], samples=200))["x"]
    assert x.shape == (200, 3, 32, 32)
    assert x.dtype == np.float32
    assert abs(x.mean()) < 0.15
    assert 0.85 < x.std() < 1.15


def test_images_are_smooth_unlike_white_noise():
    x = take(open_source(None, [IMAGE], samples=20))["x"]
    assert rough(x) < 0.4
    assert 1.8 < rough(np.random.default_rng(0).standard_normal(x.shape)) < 2.2


def test_coarse_structure_outweighs_fine_structure():
    x = take(open_source(None, [IMAGE], samples=50))["x"][:, 0]
    power = (np.abs(np.fft.rfft(x - x.mean(axis=(1, 2), keepdims=True), axis=-1)) ** 2).mean(axis=(0, 1))
    assert power[1] > 8 * power[4] > 8 * 4 * power[10] > 8 * 4 * power[15]


def test_channels_go_together_but_are_not_equal():
    x = take(open_source(None, [IMAGE], samples=20))["x"]
    correlations = [np.corrcoef(sample.reshape(3, -1))[0, 1] for sample in x]
    assert 0.6 < np.mean(correlations) < 0.99


def test_contrast_and_brightness_differ_between_samples():
    x = take(open_source(None, [IMAGE], samples=50))["x"]
    assert x.std(axis=(1, 2, 3)).std() > 0.1
    assert x.mean(axis=(1, 2, 3)).std() > 0.3


@pytest.mark.parametrize("shape", [(None, 1, 16, 16), (None, 16, 24, 3), (None, 2, 40), (None, 1, 8, 9, 10), (2, 3, 8, 8)])
def test_every_image_like_shape_is_smooth(shape):
    spec = InputSpec("x", np.dtype(np.float32), shape)
    x = take(open_source(None, [spec], samples=4))["x"]
    assert x.shape[1:] == shape[1:]
    axis = 1 if channel_axis(shape[1:]) == 0 else len(shape) - 1
    assert rough(np.moveaxis(x, axis, 1)) < 1.2


@pytest.mark.parametrize("shape", [(None, 64), (None, 5, 32, 32), (None, 3, 4, 4), (None, 10, 20)])
def test_other_floats_are_white(shape):
    x = take(open_source(None, [InputSpec("x", np.dtype(np.float64), shape)], samples=64))["x"]
    assert x.shape == (64, *shape[1:])
    assert 1.7 < rough(x) < 2.3
    assert 0.8 < x.std() < 1.2


def test_whole_numbers_stay_below_the_number_of_ids():
    specs = [InputSpec(n, np.dtype(np.int64), (None, 50)) for n in ("ids", "types", "attention_mask")]
    x = take(open_source(None, specs, samples=20, int_high={"ids": 7}))
    assert x["ids"].dtype == np.int64
    assert set(np.unique(x["ids"])) == set(range(7))
    assert set(np.unique(x["types"])) == {0, 1}
    assert set(np.unique(x["attention_mask"])) == {1}


def test_booleans_are_both_values():
    x = take(open_source(None, [InputSpec("b", np.dtype(bool), (None, 50))], samples=4))["b"]
    assert x.dtype == bool
    assert x.any()
    assert not x.all()


def test_batch_size_changes_nothing_and_the_seed_everything():
    one, three = (take(open_source(None, [IMAGE], samples=7, seed=5), size)["x"] for size in (1, 3))
    np.testing.assert_array_equal(one, three)
    other = take(open_source(None, [IMAGE], samples=7, seed=6))["x"]
    assert np.abs(one - other).max() > 0.1
    assert len({sample.tobytes() for sample in one}) == 7


def test_fewer_samples_are_the_first_ones():
    few, many = (take(open_source(None, [IMAGE], samples=n))["x"] for n in (2, 5))
    np.testing.assert_array_equal(few, many[:2])


def test_noise_says_that_it_is_noise():
    source = open_source(None, [IMAGE], samples=4, seed=3)
    assert not source.real
    assert source.kind == "noise"
    assert source.count == 4
    assert "seed 3" in source.label
    assert "accuracy" in source.warnings[0]


def test_open_dimensions_come_from_the_trial_shape():
    spec = InputSpec("x", np.dtype(np.float16), (None, 3, None, None))
    x = take(open_source(None, [spec], samples=2, shapes={"x": (1, 3, 16, 24)}))["x"]
    assert x.shape == (2, 3, 16, 24)
    assert x.dtype == np.float16
    with pytest.raises(DataError, match="'x' is not known"):
        open_source(None, [spec], samples=2)


def test_noise_fills_a_fixed_batch_even_if_fewer_samples_were_asked_for():
    spec = InputSpec("x", np.dtype(np.float32), (8, 4))
    assert [b["x"].shape for b in open_source(None, [spec], samples=3).batches(1)] == [(8, 4)]


def test_an_input_without_a_batch_axis_is_the_same_in_every_batch():
    specs = [InputSpec("x", np.dtype(np.float32), (None, 4)), InputSpec("t", np.dtype(np.float32), ())]
    batches = list(open_source(None, specs, samples=6).batches(4))
    assert [b["x"].shape for b in batches] == [(4, 4), (2, 4)]
    assert batches[0]["t"].shape == ()
    assert batches[0]["t"] == batches[1]["t"]


def test_strings_are_refused():
    with pytest.raises(DataError, match="no noise"):
        take(open_source(None, [InputSpec("s", np.dtype(object), (None, 2))], samples=1))


def test_a_split_of_noise_shares_no_sample():
    rest, held = split(open_source(None, [IMAGE], samples=10), 0.3)
    a, b = ({sample.tobytes() for sample in take(part)["x"]} for part in (rest, held))
    assert (len(a), len(b), len(a & b)) == (7, 3, 0)
