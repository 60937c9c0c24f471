"""Every operator: removed == masked on ONNX Runtime, the groups that are found, and the pins with their reasons."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.graph.labels import OPERATORS
from onnxprune.graph.prepare import prepare
from onnxprune.graph.rules import closed
from onnxprune.graph.walk import walk
from onnxprune.rewrite.mask import masked_twin
from tests.graph import (  # noqa: F401
    cases_attention,
    cases_contraction,
    cases_elementwise,
    cases_fused,
    cases_integers,
    cases_movement,
    cases_normalization,
    cases_pooling,
    cases_quantized,
    cases_recurrent,
    cases_sampling,
    cases_selection,
    cases_tabular,
)
from tests.graph.cases import CASES
from tests.graph.nets import check, conv_net, feeds, half, node, pruned, run


def pins_of(network) -> list[tuple[str, str]]:
    return [(p.tensor, p.reason) for p in network.pins if not p.reason.startswith("graph output")]


@pytest.mark.parametrize("name", CASES)
def test_groups_pins_and_removed_equals_masked(name):
    case = CASES[name]()
    _, network, _ = pruned(case.model)
    assert {g.name: g.size for g in network.groups} == case.groups
    found = pins_of(network)
    for tensor, words in case.pins:
        assert any(t == tensor and words in reason for t, reason in found), (tensor, words, found)
    assert case.pins or not found, found
    for seed in (0, 1):
        _, network, made = pruned(case.model, seed)
        if case.groups:
            check(case.model, made, batches=(case_batch(case.model),) if case_batch(case.model) else (1, 3))
        else:
            assert made.removed == {}
            assert made.model.SerializeToString() == case.model.SerializeToString()


@pytest.mark.parametrize("name", ["attention_heads", "attention_of_one_head_loses_width", "one_matrix_for_attention_of_one_head"])
def test_the_twin_of_attention_is_silent_where_the_cut_has_nothing(name):
    model = CASES[name]().model
    graph, network, made = pruned(model)
    alive = network.alive(half(network, 0))
    twin = masked_twin(graph, network, alive)
    given = feeds(model, 2)
    np.testing.assert_allclose(run(made.model, given)[0], run(twin, given)[0], rtol=1e-5, atol=1e-6)


def case_batch(model: onnx.ModelProto) -> int:
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_value


def test_every_operator_with_a_rule_has_a_net():
    used = {n.op_type for build in CASES.values() for n in build().model.graph.node}
    without = {name for _, name in OPERATORS} - used - set(closed.REASONS)
    assert without <= {"Swish", "ConstantOfShape", "Range", "SimplifiedLayerNormalization"}, (
        "Swish is too new for ONNX Runtime, the others are in test_topologies.py"
    )


@pytest.mark.parametrize("op", closed.REASONS)
def test_closed_operators_pin_what_they_read(op):
    graph, _ = prepare(conv_net([node("Relu", "a", "b"), node("Relu", "b", "shut")]))
    graph.nodes[2].op_type = op
    flow = walk(graph)
    assert any(pin.tensor == "b" and closed.REASONS[op] in pin.reason for pin in flow.pins)
    assert not flow.labels("shut")


def test_original_is_left_alone():
    model = CASES["conv_depthwise"]().model
    before = model.SerializeToString()
    _, _, made = pruned(model)
    assert model.SerializeToString() == before
    assert len(made.removed["w"]["0"]) == 3


def test_masks_are_not_idle():
    """The yardstick can fail: a wrong position in `removed` is seen."""
    model = CASES["conv_2d_strided_dilated"]().model
    _, _, made = pruned(model)
    gone = made.removed["w"]["1"]
    made.removed["w"]["1"] = [(g + 1) % 6 for g in gone][: len(gone)]
    with pytest.raises(AssertionError):
        check(model, made)


def test_depthwise_group_attribute_follows():
    _, _, made = pruned(CASES["conv_depthwise_multiplier"]().model)
    group = next(a.i for a in made.model.graph.node[1].attribute if a.name == "group")
    assert group == 3
    assert {t.name: list(t.dims) for t in made.model.graph.initializer}["w"] == [6, 1, 3, 3]


def test_pad_amounts_follow_the_channels_that_stay():
    model = CASES["option_a_shortcut_input"]().model
    _, _, made = pruned(model)
    amounts = next(numpy_helper.to_array(t) for t in made.model.graph.initializer if t.name == "p")
    assert amounts.tolist() != [0, 2, 0, 0, 0, 4, 0, 0]
    assert 0 <= amounts[1] <= 2
    assert 0 <= amounts[5] <= 4
    assert np.isfinite(run(made.model, feeds(made.model, 2))[0]).all()
