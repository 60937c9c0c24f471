"""A reader as a linear problem: its weights and moments are those of the layer, and no more is believed than was seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper
from tiny_nets import NETS, Net, inputs_for

from onnxprune.calibration.samples import open_samples
from onnxprune.contract import Activation, ChannelView, Maker, Moments, PatchMoments, Reader, readings
from onnxprune.contract.reading import damped_inverse
from onnxprune.contract.statistics import shrink
from onnxprune.decide import channels as decide
from onnxprune.devices import choose_device
from onnxprune.graph import find, load
from onnxprune.methods import create
from onnxprune.runtime import Session

CPU = choose_device("cpu")


def transposed_wide(groups=1):
    """A transposed convolution whose kernel positions overlap: it matters which is which."""
    net = Net(12)
    x = net.relu(net.conv("x", 3, 8))
    w = net.weight(8, 6 // groups, 3, 3, fan_in=8)
    y = net.relu(net.node("ConvTranspose", x, w, net.bias(6), pads=[1, 0, 0, 1], group=groups))
    return net.model((3, 6, 6), net.conv(y, 6, 3))


OURS = NETS | {"transposed_wide": transposed_wide, "transposed_grouped": lambda: transposed_wide(2)}


def seen(name):
    """Per group the view with statistics, and the model's activations on the very samples that were counted."""
    model = OURS[name]()
    options = {"samples": 8, "held_out": 0.5, "seed": 0, "input_shapes": None, "mean": None, "std": None, "layout": "auto"}
    graph, samples = open_samples(load(model), inputs_for(model, 16), None, **options)
    network = find(graph)
    groups = decide.select(network, create("obs-channel"), (), ())
    fields = {"batch": 4, "device": CPU, "seed": 0, "progress": lambda stage, share: None}
    evidence = decide.gather(graph, network, groups, create("obs-channel"), samples.calibration, weigh=True, **fields)
    views = [d.view for d in decide.judge(graph, network, groups, create("obs-channel"), evidence, align=1, seed=0, device=CPU)]
    outputs = sorted({network.layer[r.layer].output for v in views for r in v.readers})
    wide = type(model)()
    wide.CopyFrom(graph.model)
    known = {o.name for o in wide.graph.output}
    wide.graph.output.extend(helper.make_tensor_value_info(n, 1, None) for n in outputs if n not in known)
    session = Session(wide, CPU)
    found = [session.run(feeds) for feeds in samples.calibration.batches(4)]
    return network, views, {n: np.concatenate([f[n] for f in found]) for n in outputs}


@pytest.mark.parametrize("name", sorted(OURS))
def test_weights_and_moments_give_the_variance_of_what_the_layer_makes(name):
    """Convolutions, strided, transposed, grouped; fully connected: both sides have channels and kernel positions in one order."""
    network, views, made = seen(name)
    assert views
    for view in views:
        for reader, reading in zip(view.readers, readings(view), strict=True):
            layer = network.layer[reader.layer]
            value = made[layer.output].astype(np.float64)
            axis = 1 if layer.op.startswith("Conv") else value.ndim - 1
            rows = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
            covariance, mean = reading.products.clone(), mean_of(view, reader.layer)
            size = len(covariance) // layer.groups
            for g in range(layer.groups):
                part = slice(g * size, (g + 1) * size)
                covariance[part, part] -= torch.outer(mean[part], mean[part])
            told = float(torch.einsum("io,ij,jo->", reading.weights, covariance, reading.weights))
            assert told == pytest.approx(rows.var(0).sum(), rel=1e-4)
            assert reading.gain == view.gains[reader.layer] > 0


def mean_of(view, layer):
    patches = view.statistic(layer, PatchMoments)
    counted = view.statistic(layer, Moments) if patches is None or patches.total is None else patches
    return (counted.total / counted.count).flatten()


def view(*kinds, widest=None):
    rng = torch.Generator().manual_seed(0)
    reader = Reader("r", torch.randn((5, 2 * 9), generator=rng), torch.arange(5)[:, None])
    counted = {("r", kind): kind() for kind in kinds}
    for (_, kind), found in counted.items():
        found.add(torch.randn((30, 1, 45) if kind is PatchMoments else (30, 5), generator=rng))
    return ChannelView("g", 5, (Maker("m", torch.ones(5, 2), torch.zeros(5)),), (reader,), Activation(), counted)


def test_patches_come_before_channels_and_channels_before_nothing():
    assert readings(view(Moments, PatchMoments))[0].positions.shape == (5, 9)
    assert readings(view(Moments))[0].positions.shape == (5, 1)
    (unseen,) = readings(view())
    assert torch.equal(unseen.covariance, torch.eye(5, dtype=torch.float64))


def test_what_is_too_wide_is_seen_by_channels(monkeypatch):
    monkeypatch.setattr(PatchMoments, "WIDEST", 44)
    wide = view(Moments, PatchMoments)
    assert wide.statistic("r", PatchMoments).total is None
    assert PatchMoments().bytes(1, 2, 45) == 0
    assert readings(wide)[0].positions.shape == (5, 1)


def test_readers_that_were_not_looked_at_have_no_say_beside_those_that_were():
    seen_one = view(Moments)
    other = Reader("other", torch.ones(5, 3), torch.arange(5)[:, None])
    both = ChannelView("g", 5, seen_one.makers, (*seen_one.readers, other), Activation(), seen_one.statistics)
    assert len(readings(both)) == 1


def test_counting_in_parts_is_counting_once():
    rows = torch.randn((60, 3, 8), generator=torch.Generator().manual_seed(1))
    whole, parts, rest = PatchMoments(), PatchMoments(), PatchMoments()
    whole.add(rows)
    parts.add(rows[:10])
    parts.add(rows[10:25])
    rest.add(rows[25:])
    empty = PatchMoments()
    parts.merge(rest)
    parts.merge(empty)
    empty.merge(parts)
    for found in (parts, empty):
        assert found.count == 60
        torch.testing.assert_close(found.total, whole.total)
        torch.testing.assert_close(found.products, whole.products, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(whole.products, torch.einsum("ngi,ngj->gij", rows, rows).double(), rtol=1e-5, atol=1e-4)
    assert whole.bytes(3, 2, 8) == whole.products.numel() * 8


def test_moments_are_shrunk_by_the_same_share_as_ever():
    counted = Moments()
    counted.add(torch.randn((20, 6), generator=torch.Generator().manual_seed(2)))
    torch.testing.assert_close(counted.shrunk(), shrink(counted.covariance, 20))
    plain = counted.covariance
    few, many = (shrink(plain, count) - plain for count in (20, 2000))
    assert float(few.diagonal().abs().max()) == 0
    assert float(few.abs().max()) > 5 * float(many.abs().max()) > 0


def test_the_damped_inverse_of_what_has_none():
    constant = torch.zeros((4, 4), dtype=torch.float64)
    assert bool(torch.isfinite(damped_inverse(constant)).all())
    negative = torch.tensor([[1.0, 1.2], [1.2, 1.0]], dtype=torch.float64)
    inverse = damped_inverse(negative)
    assert bool((torch.linalg.eigvalsh(inverse) > 0).all())
    sound = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(damped_inverse(sound), torch.linalg.inv(sound + 0.015 * torch.eye(2)).double())
