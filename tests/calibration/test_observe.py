"""Tapped tensors are counted batch by batch, in as many passes as memory asks for, and forgotten."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_nets import NETS, Net, inputs_for

from onnxprune.calibration import observe as module
from onnxprune.calibration.observe import Tap, observe
from onnxprune.calibration.samples import input_specs
from onnxprune.calibration.sources import open_source
from onnxprune.contract import Moments, Statistic
from onnxprune.devices import choose_device
from onnxprune.errors import DataError
from onnxprune.graph import load, prepare
from onnxprune.runtime import Session

CPU = choose_device("cpu")


def setup(model, count=50):
    data = inputs_for(model, count)
    graph, _ = prepare(load(model).model, {"x": (1, *data.shape[1:])})
    return graph, data, open_source(data, input_specs(graph))


def pixels(x, rng):
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def see(graph, source, taps, **more):
    fields = {"batch": 8, "device": CPU, "seed": 0, "progress": lambda stage, share: None} | more
    return observe(graph, taps, source, **fields)


def tensors(graph):
    return [o for n in graph.nodes for o in n.output if o not in graph.constants and o not in graph.outputs]


def test_moments_are_those_of_the_whole_activations():
    graph, data, source = setup(NETS["chain"]())
    names = ["x", *tensors(graph)]
    taps = [Tap(name, pixels, Moments()) for name in names]
    assert see(graph, source, taps) == 50
    model = graph.model
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(n, 1, None) for n in tensors(graph))
    whole = {"x": data} | Session(copy, CPU).run({"x": data})
    for tap in taps:
        rows = np.moveaxis(whole[tap.tensor], 1, -1).reshape(-1, whole[tap.tensor].shape[1]).astype(np.float64)
        assert tap.statistic.count == len(rows)
        np.testing.assert_allclose(tap.statistic.mean.numpy(), rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(tap.statistic.covariance.numpy(), np.cov(rows.T, bias=True), atol=1e-4)


def test_passes_are_made_where_one_would_not_fit(monkeypatch):
    graph, _, source = setup(NETS["residual"]())
    results, sessions = [], []
    real = module.Session
    monkeypatch.setattr(module, "Session", lambda *a: sessions.append(a) or real(*a))
    for budget in (1 << 30, 1):
        monkeypatch.setattr(module, "TAP_BUDGET", budget)
        sessions.clear()
        taps = [Tap(name, pixels, Moments()) for name in tensors(graph)]
        assert see(graph, source, taps) == 50
        results.append([t.statistic.mean for t in taps])
        assert len(sessions) == (1 if budget > 1 else len(taps))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_the_inputs_alone_need_no_session(monkeypatch):
    graph, data, source = setup(NETS["chain"]())
    monkeypatch.setattr(module, "Session", None)
    tap = Tap("x", pixels, Moments())
    see(graph, source, [tap])
    np.testing.assert_allclose(tap.statistic.mean.numpy(), data.mean((0, 2, 3)), atol=1e-6)


def test_nothing_to_look_at_is_not_run():
    graph, _, source = setup(NETS["chain"]())
    assert see(graph, source, []) == 0


@pytest.mark.parametrize("bad", ["Log", "Sqrt"])
def test_what_is_no_number_is_an_error_that_names_the_tensor(bad):
    net = Net()
    x = net.node(bad, net.conv("x", 3, 4))
    graph, _, source = setup(net.model((3, 8, 8), net.conv(x, 4, 2)))
    with pytest.raises(DataError, match="NaN or infinity in 't1'"):
        see(graph, source, [Tap("t1", pixels, Moments())])


def test_a_statistic_of_ones_own_sees_every_row_once():
    class Rows(Statistic):
        def __init__(self):
            self.count, self.largest = 0, 0

        def add(self, rows):
            self.count += len(rows)
            self.largest = max(self.largest, len(rows))

        def merge(self, other):
            self.count += other.count

    graph, _, source = setup(NETS["chain"]())
    tap = Tap(tensors(graph)[0], pixels, Rows())
    see(graph, source, [tap])
    assert tap.statistic.count == 50 * 64
    assert tap.statistic.largest == 8 * 64


def test_progress_ends_at_one_and_never_goes_back(monkeypatch):
    monkeypatch.setattr(module, "TAP_BUDGET", 1)
    graph, _, source = setup(NETS["chain"]())
    shares = []
    see(graph, source, [Tap(n, pixels, Moments()) for n in tensors(graph)], progress=lambda stage, share: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_shards_counted_apart_add_up():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    whole, first, second = Moments(), Moments(), Moments()
    whole.add(x)
    first.add(x[:25])
    second.add(x[25:])
    first.merge(second)
    first.merge(Moments())
    torch.testing.assert_close(first.covariance, whole.covariance)
    empty = Moments()
    empty.merge(whole)
    torch.testing.assert_close(empty.mean, whole.mean)


def test_a_shrunk_covariance_lies_between_the_plain_one_and_its_diagonal():
    for count in (5, 50, 5000):
        moments = Moments()
        mix = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
        moments.add(torch.randn(count, 8, generator=torch.Generator().manual_seed(1)) @ mix)
        plain, shrunk = moments.covariance, moments.shrunk()
        torch.testing.assert_close(shrunk.diagonal(), plain.diagonal())
        off = ~torch.eye(8, dtype=torch.bool)
        share = float((shrunk[off] / plain[off]).mean())
        assert 0 <= share <= 1
        assert share > 0.99 or count < 5000
        assert float(torch.linalg.eigvalsh(shrunk).min()) > -1e-9
