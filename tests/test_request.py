"""What Python callers may ask for: arguments out of range or of the wrong type are refused in words, before any work is done."""

import numpy as np
import pytest

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.methods import METHODS
from onnxprune.testing import tiny_network

MODEL = tiny_network()
IMAGES = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)


def prune(**fields):
    return onnxprune.prune(fields.pop("model", MODEL), **({"ratio": 0.5, "data": IMAGES, "latency": False} | fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seed": -1}, "seed=-1; give a whole number, 0 to"),
        ({"seed": 2**63}, "seed=9223372036854775808"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": None}, "seed=None"),
        ({"samples": 0}, "samples=0; give a whole number, 1 or more"),
        ({"batch": 0}, "batch=0"),
        ({"threads": 0}, "threads=0"),
        ({"threads": True}, "threads=True"),
        ({"held_out": 1.0}, "held-out share of 1.0"),
        ({"held_out": "0.2"}, "held_out='0.2'; give a number"),
        ({"ratio": "0.5"}, "ratio='0.5'; give a number"),
        ({"ratio": None, "epsilon": "0.5"}, "epsilon='0.5'; give a number"),
        ({"ratio": None, "target": 0.5}, "target=0.5; give a string"),
        ({"ratio": None, "pattern": 24, "method": "magnitude"}, "a pattern of 24"),
        ({"method": 3}, "method=3; give a string"),
        ({"only": 3}, "only=3; give a string, or a list of them"),
        ({"gates": [3]}, r"gates=\[3\]; give a string"),
        ({"kinds": [3]}, r"kinds=\[3\]; give a string"),
        ({"options": "draws"}, "options='draws'; give a dictionary"),
        ({"device": 0}, "no device is called 0"),
        ({"labels": ["cat"] * 24}, "labels are not whole numbers"),
        ({"model": b"onnx"}, "an object of type bytes is no model; give the path"),
        ({"model": 3}, "an object of type int is no model"),
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


def test_one_name_is_not_its_letters():
    """A string alone is one glob and one gate, as `kinds` takes it."""
    touched = [g["name"] for g in prune(only="layer1").report["groups"] if g["kept"] < g["channels"]]
    assert touched == ["layer1"]
    assert prune(skip="layer*1", gates="top1_agreement<0").report["gates"][0]["expression"] == "top1_agreement<0"


class Unnamed(onnxprune.ChannelMethod):
    paper, target = "none", "channel"

    def score(self, view):
        return view.makers_norm


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Unnamed, "Unnamed does not say its name; write name"),
        (type("Aimless", (Unnamed,), {"name": "aimless-channel", "target": "chanel"}), "did you mean 'channel'"),
        (print, "is no method; derive it from ChannelMethod"),
    ],
    ids=["no name", "no such target", "no class"],
)
def test_a_class_that_is_no_whole_method_is_not_registered(cls, words):
    with pytest.raises(UsageError, match=words):
        onnxprune.method(cls)


@pytest.mark.parametrize("base", ["channel", "weight", "rank"])
def test_scores_of_numpy_are_refused_with_what_to_return(base, monkeypatch):
    def numpy(self, view):
        return np.ones(3)

    target, member = {"channel": ("l2-channel", "score"), "weight": ("magnitude", "score"), "rank": ("svd", "energies")}[base]
    monkeypatch.setattr(METHODS[target], member, numpy)
    with pytest.raises(UsageError, match=r"gave a ndarray as .* return a torch.Tensor"):
        prune(method=target, repair="none")
