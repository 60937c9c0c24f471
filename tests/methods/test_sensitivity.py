"""Empirical sensitivities against loops over the paper's definition; shares of a sum; scaling; groups; streaming; sampling."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

from onnxprune.contract import LayerView, WeightMethod
from onnxprune.errors import UsageError
from onnxprune.methods.sensitivity import SMALLEST, Sensitivity, max_product
from onnxprune.testing import tiny_network


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_loops(matrix, samples, reduce):
    """samples: list of (patches, groups, in). Definition 1, one weight at a time."""
    groups, out, inputs = matrix.shape
    found = np.zeros(matrix.shape)
    for g in range(groups):
        for i in range(out):
            for j in range(inputs):
                per_sample = []
                for rows in samples:
                    per_patch = []
                    for a in rows[:, g].double():
                        ratios = [0.0]
                        for tau in (1, -1):
                            w = (matrix[g, i].double() * torch.sign(matrix[g, i, j])).clamp(min=0)
                            part = (tau * a).clamp(min=0)
                            z = float(w @ part)
                            if z > SMALLEST:
                                ratios.append(float(w[j] * part[j]) / z)
                        per_patch.append(max(ratios))
                    per_sample.append(max(per_patch) if reduce == "max" else sum(per_patch) / len(per_patch))
                found[g, i, j] = max(per_sample)
    return found


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("signs", ["ReLU", "both"])
@pytest.mark.parametrize("groups", [1, 3])
def test_they_are_the_papers(reduce, signs, groups):
    matrix = drawn(groups, 4, 6) * (drawn(groups, 4, 6, seed=1) > -1)
    samples = [drawn(5, groups, 6, seed=s) for s in (2, 3, 4)]
    samples = [s.relu() if signs == "ReLU" else s for s in samples]
    counted = Sensitivity(matrix, reduce=reduce)
    for rows in samples:
        counted.add(rows)
    expected = by_loops(matrix, samples, reduce)
    assert np.allclose(counted.value.numpy(), expected, rtol=1e-5, atol=1e-7)
    assert expected.max() <= 1
    assert counted.count == 15


def test_one_patch_of_one_sample_is_shared_out_per_sign():
    matrix, rows = drawn(1, 6, 9), drawn(1, 1, 9, seed=1).abs()
    counted = Sensitivity(matrix)
    counted.add(rows)
    for sign in (1, -1):
        shares = (counted.value * (sign * matrix > 0)).sum(2)
        assert torch.allclose(shares[(sign * matrix > 0).any(2)], torch.ones(()), atol=1e-6)


def test_scaling_rows_or_samples_changes_nothing():
    matrix, rows = drawn(2, 5, 7), drawn(11, 2, 7, seed=1)
    plain, scaled = Sensitivity(matrix), Sensitivity(matrix * torch.tensor([0.01, 3, 500, 1, 7])[:, None])
    plain.add(rows)
    scaled.add(rows * torch.linspace(0.5, 20, 11)[:, None, None])
    assert torch.allclose(plain.value, scaled.value, rtol=1e-4)


def test_what_is_never_active_and_sums_of_next_to_nothing_count_as_zero():
    matrix = torch.ones(1, 2, 4)
    counted = Sensitivity(matrix)
    counted.add(torch.tensor([[[1.0, 0, 0, 2]], [[0, 1e-8, 0, 0]], [[0, 0, 0, 0]]]))
    assert torch.allclose(counted.value, torch.tensor([1 / 3, 0, 0, 2 / 3]).expand(1, 2, 4))


def test_streaming_in_parts_is_the_same_as_at_once():
    matrix, rows = drawn(2, 5, 7), drawn(30, 2, 7, seed=1)
    whole, first, second = Sensitivity(matrix), Sensitivity(matrix), Sensitivity(matrix)
    whole.add(rows)
    first.add(rows[:11])
    second.add(rows[11:20])
    second.add(rows[20:])
    first.merge(second)
    assert torch.allclose(whole.value, first.value, rtol=1e-5)
    assert first.count == whole.count
    assert first.bytes(2, 5, 7) == 4 * 70


@pytest.mark.parametrize("shape", [(7, 1, 300, 1100), (300, 1, 3, 5), (5, 40, 2, 9), (3, 2, 600, 700), (1, 1, 1, 1)])
def test_tiles_make_no_difference(shape):
    patches, groups, out, inputs = shape
    left, right = drawn(patches, groups, out).abs(), drawn(patches, groups, inputs, seed=1).abs()
    expected = (left[..., None] * right[:, :, None]).amax(0)
    assert torch.equal(max_product(left, right), expected)


@pytest.mark.parametrize("options", [{"reduce": "median"}, {"patches": -1}, {"patches": 1.5}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(UsageError):
        Sensitivity(torch.ones(1, 1, 1), **options)


class Watched(WeightMethod):
    """Keeps what it was given."""

    name, paper, target, needs = "watched", "test", "weight", (Sensitivity,)
    made: ClassVar[list[Sensitivity]] = []
    reduce, patches = "max", 2

    def counter(self, kind, matrix):
        found = Sensitivity(matrix, self.patches, self.reduce)
        sizes = found.sizes = []
        plain = found.add

        def add(rows):
            sizes.append(len(rows))
            plain(rows)

        found.add = add
        self.made.append(found)
        return found

    def score(self, view: LayerView):
        return view.statistic(Sensitivity).value


@pytest.mark.parametrize(("reduce", "batch"), [("max", 4), ("mean", 1)])
def test_a_mean_over_patches_is_of_one_sample_and_positions_are_limited(reduce, batch, monkeypatch):
    from onnxprune.contract import METHODS
    from onnxprune.pipeline import prune

    made = []
    monkeypatch.setattr(Watched, "made", made)
    monkeypatch.setattr(Watched, "reduce", reduce)
    monkeypatch.setitem(METHODS, "watched", Watched)
    prune(tiny_network(), "watched", 0.5, samples=48, batch=4, repair="none", budget="uniform", device="cpu", latency=False)
    counted = [found for found in made if found.count]
    assert counted
    for found in counted:
        assert set(found.sizes) <= {2 * batch, batch}, "2 positions of every sample, 1 where there is no more"
        assert bool((found.value >= 0).all())
        assert bool((found.value <= 1).all())
        assert bool((found.value > 0).any())
    assert any(2 * batch in found.sizes for found in counted)
