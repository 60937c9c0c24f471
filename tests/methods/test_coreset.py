"""The coreset methods against the paper: importances by loops, the sampler against literal draws, the reweighing."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from onnxprune.contract import Activation, ChannelView, Maker, MaxNorm, Reader
from onnxprune.errors import UsageError
from onnxprune.methods import create
from onnxprune.methods.coreset import clocks, coreset, draws_needed, epsilon_of, importances, reweigh

GRID = np.linspace(-1, 1, 20001)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# Each function as its operator defines it; what is no known name counts as the identity.
PHI = {
    Activation(): lambda z: z,
    Activation("Relu"): lambda z: np.maximum(z, 0),
    Activation("LeakyRelu", (0.1,)): lambda z: np.where(z > 0, z, 0.1 * z),
    Activation("PRelu", (2.5,)): lambda z: np.where(z > 0, z, 2.5 * z),
    Activation("Abs"): np.abs,
    Activation("Clip", (0.0, 6.0)): lambda z: np.clip(z, 0, 6),
    Activation("Clip", (-1.0, math.inf)): lambda z: np.maximum(z, -1),
    Activation("Clip", (-8.0, 2.0)): lambda z: np.clip(z, -8, 2),
    Activation("Clip", (1.0, 3.0)): lambda z: np.clip(z, 1, 3),
    Activation("Sigmoid"): sigmoid,
    Activation("HardSigmoid", (0.2, 0.5)): lambda z: np.clip(0.2 * z + 0.5, 0, 1),
    Activation("Tanh"): np.tanh,
    Activation("Softplus"): lambda z: np.log1p(np.exp(z)),
    Activation("Elu", (1.0,)): lambda z: np.where(z > 0, z, np.expm1(z)),
    Activation("Elu", (3.0,)): lambda z: np.where(z > 0, z, 3 * np.expm1(z)),
    Activation("HardSwish"): lambda z: z * np.clip(z + 3, 0, 6) / 6,
    Activation("Gelu"): lambda z: z * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2))),
    Activation("Silu"): lambda z: z * sigmoid(z),
    Activation("Binary"): lambda z: (z >= 0).astype(float),
    Activation("Gaussian"): lambda z: np.exp(-(z**2)),
    Activation("SoftClip", (0.5,)): lambda z: np.log((1 + np.exp(0.5 * z)) / (1 + np.exp(0.5 * (z - 1)))) / 0.5,
    Activation("SoftClip", (4.0,)): lambda z: np.log((1 + np.exp(4 * z)) / (1 + np.exp(4 * (z - 1)))) / 4,
}


def grid_supremum(activation, radius):
    return float(np.abs(PHI[activation](GRID * radius)).max())


@pytest.mark.parametrize("activation", PHI, ids=lambda a: f"{a.name}{a.bounds or ''}")
def test_suprema_by_grid_search(activation):
    radii = [0.0, 0.1, 0.5, 0.75, 1.0, 1.3, 2.0, 3.0, 5.0, 7.0, 10.0]
    found = activation.supremum(torch.tensor(radii, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), [grid_supremum(activation, r) for r in radii], atol=2e-6)


def test_every_activation_that_the_graph_half_names_is_among_them():
    from onnxprune.graph.surroundings import ACTIVATIONS

    # The last three are of the paper's Table I, and no operators.
    assert {*ACTIVATIONS, "Silu", "identity", "Binary", "Gaussian", "SoftClip"} == {a.name for a in PHI}


def test_what_is_never_negative():
    for activation, phi in PHI.items():
        assert activation.never_negative == bool((phi(np.linspace(-9, 9, 1801)) >= 0).all()), activation


def test_homogeneous_means_that_a_factor_comes_out():
    for activation, phi in PHI.items():
        z = np.linspace(-9, 9, 181)
        assert activation.homogeneous == np.allclose(phi(3 * z), 3 * phi(z)), activation


def view(activation, makers=1, readers=1, spread=1, channels=5, statistics=None, seed=0):
    rng = torch.Generator().manual_seed(makers + 10 * readers + 100 * spread + 1000 * seed)

    def draw(*shape):
        return torch.randn(shape, generator=rng)

    made = tuple(Maker(f"m{i}", draw(channels, 4), draw(channels)) for i in range(makers))
    where = torch.arange(channels)[:, None] + channels * torch.arange(spread)[None]
    read = tuple(Reader(f"r{i}", draw(channels * spread + 2, 3 * 4), where) for i in range(readers))
    return ChannelView("g", channels, made, read, activation, statistics or {})


def importance_by_loops(v, beta):
    """s(p) = max over consumers, their outputs and positions of |w| * phi(beta * ||(p, bias)||)."""
    found = []
    for c in range(v.channels):
        norm = 0.0
        for maker in v.makers:
            norm += math.sqrt(sum(float(w) ** 2 for w in maker.weight[c]) + float(maker.bias[c]) ** 2)
        peak = 0.0
        for reader in v.readers:
            for position in reader.positions[c].tolist():
                for w in reader.columns[position].tolist():
                    peak = max(peak, abs(w))
        found.append(peak * grid_supremum(v.activation, beta * norm))
    return found


@pytest.mark.parametrize("activation", PHI, ids=lambda a: f"{a.name}{a.bounds or ''}")
@pytest.mark.parametrize(("makers", "readers", "spread"), [(1, 1, 1), (2, 3, 1), (1, 2, 3)])
def test_importances_by_loops(activation, makers, readers, spread):
    v = view(activation, makers, readers, spread)
    for beta in (0.3, 1.0, 4.0):
        found = create("coreset-channel", beta=beta).score(v)
        np.testing.assert_allclose(found.numpy(), importance_by_loops(v, beta), rtol=1e-4, atol=1e-5)


def test_beta_is_the_option_else_the_largest_norm_seen_else_one():
    counted = MaxNorm()
    counted.add(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    assert counted.value == pytest.approx(math.sqrt(26))  # the query is (x, 1)
    other = MaxNorm()
    other.add(torch.tensor([[6.0, 8.0]]))
    counted.merge(other)
    assert counted.value == pytest.approx(math.sqrt(101))
    seen = view(Activation("Tanh"), statistics={("m0", MaxNorm): counted})
    assert create("coreset-channel").beta(seen) == counted.value
    assert create("coreset-channel", beta=2.0).beta(seen) == 2.0
    assert create("coreset-channel").beta(view(Activation("Tanh"))) == 1.0


def test_beta_is_measured_only_where_it_matters():
    method = create("coreset-channel")
    assert method.wants(Activation("Relu")) == ()
    assert method.wants(Activation("Sigmoid")) == (MaxNorm,)
    assert method.wants(None) == ()
    assert create("coreset-channel", beta=1.0).wants(Activation("Sigmoid")) == ()


def test_beta_cancels_out_of_the_probabilities_for_homogeneous_functions():
    v = view(Activation("Relu"), 2, 2)
    one, two = (create("coreset-channel", beta=b).score(v).double() for b in (1.0, 17.0))
    torch.testing.assert_close(one / one.sum(), two / two.sum())


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"beta": -1.0}, {"beta": math.nan}, {"draws": 0}, {"draws": 1.5}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        create("coreset-channel", **options)


# --- the sampler

PROBABILITIES = torch.tensor([0.35, 0.25, 0.15, 0.12, 0.08, 0.05], dtype=torch.float64)
WANTED, TRIALS = 3, 4000


def literal(seed):
    """The authors' loop: draw with replacement until the wanted number of distinct channels was seen."""
    rng = np.random.default_rng(seed)
    hits = Counter()
    while len(hits) < WANTED:
        hits[int(rng.choice(6, p=PROBABILITIES.numpy()))] += 1
    return hits


def by_clocks(seed):
    """The same as counts, recovered from the plan: scale = n / (N pr), so that scale * pr = n / N."""
    rng = torch.Generator().manual_seed(seed)
    times = clocks(PROBABILITIES, rng)
    keep = torch.sort(torch.argsort(times)[:WANTED]).values
    shares = reweigh(PROBABILITIES, times, keep, rng) * PROBABILITIES[keep]
    assert float(shares.sum()) == pytest.approx(1.0), "the shares of the draws add up to one: the weight is exactly n/(N pr)"
    draws = next(n for n in range(WANTED, 500) if bool(((shares * n).round() - shares * n).abs().max() < 1e-9))
    return Counter(dict(zip(keep.tolist(), (shares * draws).round().int().tolist(), strict=True)))


@pytest.fixture(scope="module")
def samples():
    return [literal(seed) for seed in range(TRIALS)], [by_clocks(seed) for seed in range(TRIALS)]


def agree(a, b):
    """p value of a chi-square test that two lists of outcomes have one distribution; rare outcomes are put together."""
    counts_a, counts_b = Counter(a), Counter(b)
    outcomes = sorted({*counts_a, *counts_b})
    common = [o for o in outcomes if counts_a[o] + counts_b[o] >= 20]
    table = [[c[o] for o in common] + [sum(c[o] for o in outcomes if o not in common)] for c in (counts_a, counts_b)]
    table = [[n for n, column in zip(row, zip(*table, strict=True), strict=True) if sum(column)] for row in table]
    return chi2_contingency(table).pvalue if len(table[0]) > 1 else 1.0


def test_the_same_sets_are_chosen_as_by_literal_draws(samples):
    slow, fast = ([tuple(sorted(hits)) for hits in part] for part in samples)
    assert agree(slow, fast) > 1e-3


def test_every_channel_is_hit_as_often_as_by_literal_draws(samples):
    for channel in range(6):
        # Common factors of all counts cannot be seen in n / N: compare shares instead.
        slow, fast = ([round(hits[channel] / sum(hits.values()), 6) for hits in part] for part in samples)
        assert agree(slow, fast) > 1e-3 / 6, channel


def test_multiplicities_have_the_law_of_the_literal_draws():
    """The number of draws itself, from the clocks that the plan is made of."""
    slow = [sum(literal(seed).values()) for seed in range(TRIALS)]
    fast = []
    for seed in range(TRIALS):
        rng = torch.Generator().manual_seed(seed)
        times = clocks(PROBABILITIES, rng)
        keep = torch.argsort(times)[:WANTED]
        fast.append(int(WANTED + torch.poisson(PROBABILITIES[keep] * (times[keep].max() - times[keep]), generator=rng).sum()))
    assert agree(slow, fast) > 1e-3


def test_reweighing_is_as_nearly_unbiased_as_the_literal_draws(samples):
    """E[n/(N pr)] = 1 for a fixed N; drawing until enough are distinct moves it, by the same amount in both."""
    means = []
    for part in samples:
        factors = np.array([[hits[c] / (sum(hits.values()) * float(PROBABILITIES[c])) for c in range(6)] for hits in part])
        means.append((factors.mean(0), factors.std(0) / math.sqrt(TRIALS)))
    (slow, slow_error), (fast, fast_error) = means
    assert (np.abs(slow - fast) < 5 * np.hypot(slow_error, fast_error)).all()
    assert (np.abs(fast - 1) < 0.35).all()


def test_a_literal_draw_of_fixed_length_is_unbiased_with_this_weight():
    rng, total = np.random.default_rng(0), np.zeros(6)
    for _ in range(TRIALS):
        hits = np.bincount(rng.choice(6, 9, p=PROBABILITIES.numpy()), minlength=6)
        total += hits / (9 * PROBABILITIES.numpy())
    np.testing.assert_allclose(total / TRIALS, 1, atol=0.08)


def test_a_plan_holds_the_sampled_channels_with_these_weights():
    method, v = create("coreset-channel"), view(Activation("Relu"))
    scores = method.score(v)
    order = method.rank(v, scores, torch.Generator().manual_seed(3))
    plan = method.decide(v, scores, order, 3, torch.Generator().manual_seed(3))
    assert plan.keep.tolist() == sorted(order[:3].tolist())
    probabilities = scores.double() / scores.double().sum()
    assert float((plan.scale * probabilities[plan.keep]).sum()) == pytest.approx(1.0)
    assert method.decide(v, scores, order, v.channels, torch.Generator().manual_seed(3)).scale is None


def test_channels_that_cannot_be_drawn_come_last_and_always_end():
    method, v = create("coreset-channel"), view(Activation("Relu"))
    scores = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0])
    order = method.rank(v, scores, torch.Generator().manual_seed(0))
    assert set(order[:2].tolist()) == {1, 3}
    plan = method.decide(v, scores, order, 4, torch.Generator().manual_seed(0))
    assert {1, 3} < set(plan.keep.tolist())
    assert plan.scale.tolist() == [1.0] * 4


def test_uniform_draws_every_channel_alike():
    method, v = create("uniform-channel"), view(Activation("Relu"), channels=8)
    counts = torch.zeros(8)
    for seed in range(2000):
        scores = method.score(v)
        order = method.rank(v, scores, torch.Generator().manual_seed(seed))
        counts[method.decide(v, scores, order, 3, torch.Generator().manual_seed(seed)).keep] += 1
    expected = 2000 * 3 / 8
    assert float(((counts - expected) ** 2 / expected).sum()) < 24.3  # chi-square with 7 degrees of freedom, 99.9 %


def test_algorithm_2_is_m_literal_draws_and_algorithm_1_is_its_case_of_one_neuron():
    norms, weights = torch.tensor([1.0, 2.0, 0.5, 3.0]), torch.tensor([[1.0, -2.0, 0.1, 0.0], [0.5, 1.0, -4.0, 0.0]])
    shared = importances(norms, weights, Activation("Relu"), 2.0)
    assert shared.tolist() == [max(abs(float(w)) for w in weights[:, p]) * 2 * float(norms[p]) for p in range(4)]
    assert importances(norms, weights[:1], Activation("Relu"), 2.0).tolist() == pytest.approx([2.0, 8.0, 0.1, 0.0])
    total = torch.zeros(4, dtype=torch.float64)
    for seed in range(TRIALS):
        keep, factors = coreset(shared, 5, torch.Generator().manual_seed(seed))
        hits = factors * 5 * shared[keep].double() / shared.double().sum()
        assert float(hits.sum()) == pytest.approx(5)
        assert bool((hits.round() - hits).abs().max() < 1e-9)
        total[keep] += factors
    np.testing.assert_allclose((total / TRIALS)[:3].numpy(), 1, atol=0.12)  # unbiased: E[u] = w
    assert float(total[3]) == 0.0


def test_the_sample_complexity_is_the_papers_and_its_inverse_agrees():
    t, d, eps, delta = 50.0, 7, 0.3, 0.1
    m = draws_needed(t, d, eps, delta, c=2.0)
    assert m == math.ceil(2 * t / eps**2 * (d * math.log(t) + math.log(1 / delta)))
    assert epsilon_of(t, d, m, delta, c=2.0) == pytest.approx(eps, rel=1e-4)
    assert draws_needed(0.0, d, eps, delta) == 1
    assert draws_needed(1e30, d, 1e-9, delta) == 1 << 62


@pytest.mark.parametrize(
    "activation", [Activation("Relu"), Activation("Tanh"), Activation("Silu"), Activation("Clip", (-8.0, 2.0))]
)
@pytest.mark.parametrize("spread", [1, 2])
def test_the_bound_of_what_was_drawn_is_never_violated(activation, spread):
    """Hundreds of draws; queries at random in the ball and along every neuron's own direction, where it is largest."""
    method = create("coreset-channel", beta=1.5)
    phi, tightest = PHI[activation], 0.0
    for seed in range(60):
        v = view(activation, spread=spread, channels=7, seed=seed)
        scores = method.score(v)
        order = method.rank(v, scores, torch.Generator().manual_seed(seed))
        plans = [method.decide(v, scores, order, keep, torch.Generator().manual_seed(seed)) for keep in (2, 4, 6)]
        plans += [method.within(v, scores, epsilon, torch.Generator().manual_seed(seed)) for epsilon in (5.0, 30.0)]
        maker, reader = v.makers[0], v.readers[0]
        points = torch.cat([maker.weight, maker.bias[:, None]], 1).double()
        queries = torch.randn(200, points.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        queries = torch.cat([queries, points, -points])
        queries = 1.5 * queries / torch.linalg.vector_norm(queries, dim=1, keepdim=True)
        values = torch.from_numpy(phi((queries @ points.T).numpy()))
        weights = reader.columns[reader.positions].double().sum(1)
        for plan in plans:
            kept = torch.zeros(7, dtype=torch.float64)
            kept[plan.keep] = 1.0 if plan.scale is None else plan.scale.double()
            moved = (values @ (weights * (1 - kept)[:, None])).abs().amax(0)
            bound = method.errors(v, plan)["r0"]
            assert bool((moved <= bound + 1e-9).all())
            tightest = max(tightest, float((moved / bound.clamp(min=1e-12)).max()))
    assert tightest > 0.3


def test_error_first_takes_as_many_draws_as_it_must_and_keeps_what_they_hit():
    method = create("coreset-channel", beta=2.0, delta=0.1, c=3.0)
    v = view(Activation("Relu"), channels=40)
    scores = method.score(v)
    for epsilon in (20.0, 60.0, 200.0):
        plan = method.within(v, scores, epsilon, torch.Generator().manual_seed(1))
        t = float(scores.double().sum())
        assert plan.draws == math.ceil(3 * t / epsilon**2 * (5 * math.log(t) + math.log(10)))
        assert plan.error == epsilon
        if plan.scale is None:
            assert len(plan.keep) == 40
            continue
        hits = plan.scale * plan.draws * scores[plan.keep].double() / t
        assert float(hits.sum()) == pytest.approx(plan.draws)
        assert bool((hits > 0.99).all())
    assert len(plan.keep) < 40


@pytest.mark.parametrize(("option", "value"), [("c", 0), ("delta", 0), ("delta", 1.0)])
def test_constants_out_of_range_are_refused(option, value):
    with pytest.raises(UsageError, match="give a number"):
        create("coreset-neuron", **{option: value})
