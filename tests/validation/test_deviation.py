"""The deviation meter against plain formulas, in one piece and streamed, and where figures are not defined."""

import json
import math

import numpy as np
import pytest

from onnxprune.errors import ProofError
from onnxprune.report.json import render
from onnxprune.validation.deviation import DeviationMeter, class_axis, measure


def deviation(original, pruned):
    meter = DeviationMeter("y")
    meter.add(np.asarray(original), np.asarray(pruned))
    return meter.result()


def test_figures_are_those_of_the_formulas():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 10)).astype(np.float32)
    b = a + 0.1 * rng.normal(size=a.shape).astype(np.float32)
    found = deviation(a, b)
    x, y = a.astype(float), b.astype(float)
    assert found["max_abs"] == pytest.approx(np.abs(y - x).max())
    assert found["mean_abs"] == pytest.approx(np.abs(y - x).mean())
    assert found["relative_l2"] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))
    assert found["cosine"] == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
    assert found["snr_db"] == pytest.approx(10 * np.log10((x**2).sum() / ((y - x) ** 2).sum()))
    assert found["top1_agreement"] == (a.argmax(1) == b.argmax(1)).mean()


def test_streaming_changes_nothing():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 33, 7)).astype(np.float16)
    meter = DeviationMeter()
    for start in range(0, 33, 8):
        meter.add(a[start : start + 8], b[start : start + 8])
    whole, streamed = deviation(a, b), meter.result()
    assert all(streamed[key] == pytest.approx(whole[key], rel=1e-12) for key in whole)


def test_float16_sums_do_not_overflow():
    a = np.full((4, 1000), 60000, np.float16)
    assert deviation(a, a * np.float16(0.5))["relative_l2"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("shape", "axis"), [((), None), ((8,), None), ((8, 10), 1), ((2, 5, 10), 2), ((2, 21, 4, 4), 1), ((2, 3, 4, 4, 4), 1)]
)
def test_class_axis(shape, axis):
    assert class_axis(shape) == axis


def test_agreement_runs_over_the_class_axis():
    a = np.zeros((1, 2, 2, 2), np.float32)
    b = a.copy()
    a[0, 1] = 1
    b[0, 1] = [[1, 1], [1, -1]]
    assert deviation(a, b)["top1_agreement"] == 0.75


@pytest.mark.parametrize("output", [np.ones((4, 1), np.float32), np.ones((4, 3), np.int64), np.ones(4, np.float32)])
def test_no_agreement_without_classes(output):
    assert deviation(output, output)["top1_agreement"] is None


def test_equal_outputs_have_no_noise():
    a = np.random.default_rng(0).normal(size=(3, 4))
    found = deviation(a, a)
    assert (found["max_abs"], found["relative_l2"], found["snr_db"], found["top1_agreement"]) == (0, 0, None, 1)
    assert found["cosine"] <= 1


def test_dead_outputs_never_look_good():
    ones, zeros = np.ones((2, 3)), np.zeros((2, 3))
    assert deviation(ones, zeros)["cosine"] is None
    assert deviation(zeros, ones)["relative_l2"] == 1
    assert deviation(zeros, ones)["snr_db"] is None
    assert deviation(zeros, zeros)["relative_l2"] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_new_nan_is_an_error(bad):
    a = np.ones((2, 3))
    b = a.copy()
    b[1, 1] = bad
    with pytest.raises(ProofError, match=r"'y' .* 1 position"):
        deviation(a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_of_two_models_that_are_compared_nobody_is_to_blame(bad):
    class Model:
        def __init__(self, value):
            self.value = value

        def run(self, feeds, outputs=None):
            return {"y": self.value}

    a, told = np.array([[1.0, 2, 3], [3, 2, 1]]), []
    b = a.copy()
    b[1, 1:] = bad
    found = measure(Model(a), Model(b), [{}, {}], told=told)["y"]
    assert told == ["the second model gives NaN or infinity where the first does not, at 4 positions of output 'y'"]
    assert math.isnan(found["relative_l2"])
    assert found["cosine"] is None
    assert found["top1_agreement"] == 0.5
    assert measure(Model(a), Model(a), [{}], told=told)["y"]["relative_l2"] == 0
    assert len(told) == 1


def test_nan_of_the_original_makes_figures_undefined_and_disagrees():
    a = np.array([[1.0, 2.0], [np.nan, 3.0]])
    found = deviation(a, a)
    assert math.isnan(found["max_abs"])
    assert found["cosine"] is None
    assert found["top1_agreement"] == 0.5
    assert json.loads(render(found))["max_abs"] is None


def test_same_infinity_is_no_difference():
    a = np.array([[1.0, -np.inf], [2.0, 3.0]])
    b = np.array([[1.5, -np.inf], [2.0, 3.0]])
    found = deviation(a, b)
    assert found["max_abs"] == 0.5
    assert found["top1_agreement"] == 1


def test_other_infinity_is_undefined():
    assert math.isnan(deviation(np.array([[np.inf, 1.0]]), np.array([[2.0, 1.0]]))["max_abs"])


def test_shapes_that_differ_and_no_samples_are_undefined():
    assert math.isnan(deviation(np.ones((3, 4)), np.ones((2, 4)))["mean_abs"])
    assert math.isnan(DeviationMeter().result()["max_abs"])


class Model:
    def __init__(self, factor):
        self.factor = factor

    def run(self, feeds, outputs=None):
        return {"y": feeds["x"] * self.factor, "names": np.array(["a", "b"], object), "sequence": [1, 2]}


def test_measure_meters_every_numeric_output():
    batches = ({"x": np.full((2, 3), i + 1.0)} for i in range(4))
    found = measure(Model(1.0), Model(0.5), batches)
    assert list(found) == ["y"]
    assert found["y"]["max_abs"] == 2
    assert found["y"]["relative_l2"] == pytest.approx(0.5)
