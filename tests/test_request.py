"""What Python callers may ask for: arguments out of range or of the wrong type are refused in words, before any work is done."""

import numpy as np
import pytest

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.testing import tiny_network

MODEL = tiny_network()
IMAGES = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)


def prune(**fields):
    return onnxprune.prune(fields.pop("model", MODEL), **({"ratio": 0.5, "data": IMAGES, "latency": False} | fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seed": -1}, "a seed of -1; give a whole number, 0 to"),
        ({"seed": 2**63}, "a seed of 9223372036854775808"),
        ({"seed": 1.5}, "a seed of 1.5"),
        ({"seed": None}, "a seed of None"),
    ],
    ids=str,
)
def test_refused_with_a_remedy(fields, words):
    with pytest.raises(UsageError, match=words) as caught:
        prune(**fields)
    assert caught.value.remedy


def test_the_largest_seed_and_numbers_of_numpy():
    assert prune(seed=2**63 - 1).report["seed"] == 2**63 - 1
    assert prune(seed=np.int64(3)).model == prune(seed=3).model
