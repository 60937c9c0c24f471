"""removed == masked in random graphs, with random channels of every group gone; hypothesis draws the same ones every time."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.graph.nets import check, pruned
from tests.graph.random_nets import ACTIVATIONS, random_nets

EXAMPLES = 500
# All that the steps can add; each must have been in a net that lost channels.
LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
MOVEMENT = {"Concat", "Split", "Reshape", "Transpose", "Flatten", "Pad", "Resize"}
POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"}
OPERATORS = {*LAYERS, *MOVEMENT, *POOLS, *ACTIVATIONS, "BatchNormalization", "Add", "Sub", "Mul", "Softmax", "LayerNormalization"}
SETTINGS = settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def test_removed_is_masked_in_random_graphs():
    seen: Counter[str] = Counter()

    @SETTINGS
    @given(random_nets(), st.integers(0, 99), st.sampled_from([0.25, 0.5, 0.75]))
    def holds(drawn, seed, share):
        model, grown = drawn
        note(repr(grown))
        graph, _, made = pruned(model, seed, share=share)
        seen["nets"] += 1
        if not made.removed:
            return
        check(model, made)
        seen["pruned"] += 1
        seen["grouped"] += any(graph.attribute(i, "group", 1) > 1 for i in range(len(graph.nodes)))
        seen["shared"] += any(len(graph.end_users(name)) > 1 for name in made.removed if name in graph.parameters)
        seen.update({n.op_type for n in graph.nodes})

    holds()
    assert seen["pruned"] >= seen["nets"] / 2 >= EXAMPLES / 2
    assert min(seen["grouped"], seen["shared"]) >= 20
    assert seen.keys() >= OPERATORS
