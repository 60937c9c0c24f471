"""Pins by reason: twelve LayerNorms are one line, a reason of one node names it."""

from __future__ import annotations

from onnxprune.report.essentials import PinnedReason, pinned_reasons


def pin(reason: str, channels: int) -> dict[str, object]:
    return {"tensor": "t", "reason": reason, "channels": channels}


def test_the_same_reason_of_several_nodes_is_one_line():
    norms = [pin(f"'/layer.{i}/norm' normalises over these channels", 96) for i in range(12)]
    found = pinned_reasons([pin("graph output 'y'", 10), *norms])
    assert found == [PinnedReason("normalises over these channels", 12, 1152), PinnedReason("graph output 'y'", 1, 10)]


def test_a_reason_of_one_node_keeps_its_name():
    alone = "'/head/Softmax' normalises over these channels (Softmax)"
    assert pinned_reasons([pin(alone, 5), pin(alone, 6)]) == [PinnedReason(alone, 2, 11)]
