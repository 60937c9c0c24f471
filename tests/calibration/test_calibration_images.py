"""Images arrive upright, at the model's size and layout, scaled as in training, in one order on every machine."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from onnxprune.calibration.sources import InputSpec, open_source, split
from onnxprune.errors import DataError, UsageError

F32 = np.dtype(np.float32)
NCHW = InputSpec("x", F32, (None, 3, 8, 8))


def take(source, size=4):
    return np.concatenate([batch["x"] for batch in source.batches(size)])


def paint(path, size=(8, 8), colour=(255, 0, 51), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_images_are_found_in_order_and_scaled_with_a_warning(tmp_path):
    paint(tmp_path / "b" / "1.png", colour=(0, 0, 255))
    paint(tmp_path / "a.JPG", colour=(255, 255, 255))
    paint(tmp_path / "c.bmp", size=(20, 8))
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(tmp_path, [NCHW])
    x = take(source, 2)
    assert (source.kind, source.real, source.count) == ("images", True, 3)
    assert "0..1" in source.warnings[0]
    np.testing.assert_allclose(x[:, :, 4, 4], [[1, 1, 1], [0, 0, 1], [1, 0, 0.2]], atol=1e-6)
    np.testing.assert_array_equal(take(source, 3), x)
    np.testing.assert_array_equal(take(split(source, 0.3)[1]), x[2:])


@pytest.mark.parametrize(
    ("mean", "std", "want"),
    [
        ((0.5, 0.5, 0.2), (0.5, 0.25, 0.1), (1, -2, 0)),
        ((127.5,), (127.5,), (1, -1, -0.6)),
        (0.0, 255.0, (1, 0, 0.2)),
        (0.0, 1.0, (1, 0, 0.2)),
        ((0, 0, 51), None, (255, 0, 0)),
    ],
)
def test_mean_and_std_may_be_given_for_0_to_1_or_0_to_255(tmp_path, mean, std, want):
    paint(tmp_path / "a.png")
    source = open_source(tmp_path, [NCHW], mean=mean, std=std)
    assert source.warnings == ()
    np.testing.assert_allclose(take(source)[0, :, 0, 0], want, atol=1e-5)


def test_mean_and_std_of_a_preprocessor_config_are_used(tmp_path):
    paint(tmp_path / "a.png")
    config = {"image_mean": [1, 0, 0.2], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    source = open_source(tmp_path / "a.png", [NCHW])
    assert source.warnings == ()
    np.testing.assert_allclose(take(source)[0, :, 0, 0], [0, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "layout", "want"),
    [
        ((None, 3, 8, 8), "auto", (1, 3, 8, 8)),
        ((None, 8, 8, 3), "auto", (1, 8, 8, 3)),
        ((None, 3, 8, 3), "nhwc", (1, 3, 8, 3)),
        ((None, 1, 8, 6), "auto", (1, 1, 8, 6)),
        ((1, 4, 8, 6), "auto", (1, 4, 8, 6)),
        ((None, None, None, None), "nchw", (1, 3, 224, 224)),
    ],
)
def test_layout_channels_and_size_follow_the_model(tmp_path, shape, layout, want):
    paint(tmp_path / "a.png", size=(30, 20))
    assert take(open_source(tmp_path, [InputSpec("x", F32, shape)], layout=layout)).shape == want


def test_open_sizes_come_from_the_trial_shape(tmp_path):
    paint(tmp_path / "a.png", size=(30, 20))
    spec = InputSpec("x", F32, (None, 3, None, None))
    assert take(open_source(tmp_path, [spec], shapes={"x": (1, 3, 10, 12)})).shape == (1, 3, 10, 12)


def test_images_are_cut_in_the_middle_not_squeezed(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert take(open_source(tmp_path, [NCHW])).min() == 1


def test_whole_numbers_are_raw_pixels(tmp_path):
    paint(tmp_path / "a.png")
    spec = InputSpec("x", np.dtype(np.uint8), (None, 8, 8, 3))
    assert take(open_source(tmp_path, [spec]))[0, 0, 0].tolist() == [255, 0, 51]
    with pytest.raises(UsageError, match="mean and std"):
        open_source(tmp_path, [spec], mean=0.5)


@pytest.mark.parametrize(
    ("specs", "options", "error", "words"),
    [
        ([NCHW, NCHW], {}, DataError, "one input"),
        ([InputSpec("x", F32, (None, 10))], {}, DataError, "rank 4"),
        ([InputSpec("x", F32, (None, 7, 8, 9))], {}, DataError, "7 channels"),
        ([NCHW], {"layout": "chwn"}, UsageError, "chwn"),
        ([NCHW], {"std": 0.0}, UsageError, "not positive"),
        ([NCHW], {"mean": (1, 2)}, UsageError, "3 channels"),
    ],
)
def test_images_that_cannot_be_used_are_refused(tmp_path, specs, options, error, words):
    paint(tmp_path / "a.png")
    with pytest.raises(error, match=words):
        open_source(tmp_path, specs, **options)


def test_a_broken_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"a\.png is no image"):
        take(open_source(tmp_path, [NCHW]))


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    paint(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"pip install onnxprune\[images\]"):
        open_source(tmp_path, [NCHW])


def test_photos_are_turned_upright(tmp_path):
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    Image.fromarray(upright).save(tmp_path / "a.png", exif=exif)
    x = take(open_source(tmp_path, [NCHW]))[0, 0]
    assert x[:4].max() == 0
    assert x[4:].min() == 1
