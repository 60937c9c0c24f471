"""Second moments of inputs: sums however rows come, reservoirs that are uniform samples, damping with inputs that are dead."""

from __future__ import annotations

import torch

from onnxprune.contract import Gram
from onnxprune.quadratic import Dense, Thin


def test_the_moments_are_those_of_all_rows_however_they_come():
    rows = torch.randn((50, 2, 600), generator=torch.Generator().manual_seed(0))
    whole, first, second = Gram(), Gram(), Gram()
    whole.add(rows)
    first.add(rows[:20])
    second.add(rows[20:])
    first.merge(second)
    first.merge(Gram())
    expected = torch.einsum("ngi,ngj->gij", rows.double(), rows.double()) / 50
    for found in (whole, first):
        form = found.damped(0.0)
        assert isinstance(form, Dense)
        assert torch.allclose(form.matrix, expected, atol=1e-5)
        assert torch.allclose(found.mean, rows.double().mean(0))


def test_a_wide_layer_keeps_a_uniform_sample_of_rows():
    rows = torch.arange(40.0)[:, None, None].expand(40, 1, 5)
    seen = torch.zeros(40)
    for seed in range(400):
        gram = Gram(widest=4, reservoir=10)
        gram._rng.manual_seed(seed)
        for part in rows.split(7):
            gram.add(part)
        assert gram.kept is not None
        assert gram.kept.shape == (10, 1, 5)
        seen[gram.kept[:, 0, 0].long()] += 1
    # 400 draws of 10 out of 40: 100 each, standard deviation 8.7.
    assert bool(((seen - 100).abs() < 45).all())


def test_reservoirs_merge_into_a_reservoir():
    first, second = Gram(widest=1, reservoir=6), Gram(widest=1, reservoir=6)
    first.add(torch.zeros(8, 1, 2))
    second._rng.manual_seed(1)
    second.add(torch.ones(8, 1, 2))
    first.merge(second)
    assert first.kept is not None
    assert first.count == 16
    assert len(first.kept) == 6
    assert float(first.mean[0, 0]) == 0.5


def test_few_rows_stand_for_the_matrix():
    rows = torch.randn((7, 2, 12), generator=torch.Generator().manual_seed(1)) * (torch.arange(12) != 3)
    whole, sampled = Gram(), Gram(widest=4)
    for gram in (whole, sampled):
        gram.add(rows)
    dense, thin = whole.damped(0.01), sampled.damped(0.01)
    assert isinstance(thin, Thin)
    values = torch.randn((2, 3, 12), generator=torch.Generator().manual_seed(2))
    assert torch.allclose(dense.times(values).float(), thin.times(values), atol=1e-5)
    mean = (rows.double() ** 2).mean(0).mean(1)
    assert torch.allclose(dense.diagonal[:, 3], 0.01 * mean, rtol=1e-6)


def test_where_nothing_was_ever_active_weights_are_judged_by_their_size():
    gram = Gram()
    gram.add(torch.zeros(5, 1, 3))
    assert torch.equal(gram.damped(0.01).times(torch.eye(3)[None]), torch.eye(3, dtype=torch.float64)[None])


def test_memory_is_told_beforehand():
    assert Gram().bytes(2, 100, 300) == 2 * 300 * 300 * 8
    assert Gram().bytes(1, 4096, 25088) == 1024 * 25088 * 4
    assert Gram().wanted(25088) == 1024
    assert (Gram().wanted(600) or 0) > 4096
