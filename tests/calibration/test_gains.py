"""How much an error in a layer's output matters at the end, on nets where that is known."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_nets import NETS, Net, inputs_for

from onnxprune.calibration.gains import measure_gains
from onnxprune.calibration.samples import input_specs
from onnxprune.calibration.sources import open_source
from onnxprune.devices import choose_device
from onnxprune.graph import find, load, prepare


def gains(model, count=40, seed=0):
    data = inputs_for(model, count)
    graph, _ = prepare(load(model).model, {"x": (1, *data.shape[1:])})
    source = open_source(data, input_specs(graph))
    fields = {"device": choose_device("cpu"), "seed": seed, "progress": lambda stage, share: None}
    return measure_gains(graph, find(graph).layers, source, **fields)


def linear(scale):
    """x -> layer 0 -> times `scale` -> + layer of its own -> y: what happens to layer 0's error is known."""
    net = Net(21)
    first = net.gemm("x", 4, 6)
    scaled = net.node("Mul", first, net.constant([scale], "scale"))
    return net.model((4,), net.node("Add", scaled, net.gemm("x", 4, 6)))


def test_a_layer_scaled_by_zero_downstream_has_no_gain():
    found = gains(linear(0.0))
    assert found["gemm0"] == 0.0
    assert found["gemm2"] > 0


def test_gains_grow_with_the_square_of_what_follows():
    one, three = gains(linear(1.0)), gains(linear(3.0))
    # The spread of the output, by which changes are divided, grows too: compare with the other layer, whose way is the same.
    assert one["gemm0"] / one["gemm2"] == pytest.approx(1.0, rel=0.2)
    assert three["gemm0"] / three["gemm2"] == pytest.approx(9.0, rel=0.2)


def test_the_last_layers_gain_is_one_over_the_spread():
    """Errors arrive as they are: gain * error energy = energy relative to the spread."""
    net = Net(22)
    model = net.model((4,), net.gemm("x", 4, 6))
    data = inputs_for(model, 40)[:16]
    from onnxprune.runtime import Session

    y = Session(model, choose_device("cpu")).run({"x": data})["t0"].astype(np.float64)
    spread = ((y - y.mean(0)) ** 2).sum()
    rows = len(y)  # the power is that of one position: its sum over channels, summed over positions, over their number
    assert gains(model)["gemm0"] == pytest.approx(rows / spread, rel=0.3)


@pytest.mark.parametrize("name", NETS)
def test_every_layer_of_every_net_has_a_finite_gain(name):
    found = gains(NETS[name]())
    assert found
    assert all(np.isfinite(v) and v >= 0 for v in found.values())
    assert sum(v > 0 for v in found.values()) == len(found)


def test_the_same_seed_measures_the_same():
    assert gains(NETS["chain"]()) == gains(NETS["chain"]())


def test_one_sample_is_enough_to_run():
    found = gains(NETS["chain"](), count=1)
    assert all(np.isfinite(v) for v in found.values())


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_outputs_that_are_no_numbers_say_nothing(value):
    """A masked entry, or a broken layer, of an output: the gain is that of the others."""
    found = {}
    for name, row in {"there": [0.0] * 6, "masked": [value] + [0.0] * 5, "all": [value] * 6}.items():
        net = Net(21)
        first = net.gemm("x", 4, 6)
        found[name] = gains(net.model((4,), net.node("Add", first, net.constant(row, "mask"))))["gemm0"]
    assert found["masked"] == pytest.approx(found["there"], rel=0.2)
    assert found["all"] == 0.0
