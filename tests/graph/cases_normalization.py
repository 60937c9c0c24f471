"""Normalisations."""

from __future__ import annotations

from tests.graph.cases import simple
from tests.graph.nets import node, values

BN = {"g": values(6, low=0.5, high=2), "be": values(6), "mu": values(6), "var": values(6, low=0.5, high=2)}
for opset in (7, 9, 14, 15):
    simple(f"batch_norm_{opset}", [node("BatchNormalization", "a g be mu var", "b", epsilon=1e-3)], BN, opset=opset)
simple(
    "batch_norm_training",
    [node("BatchNormalization", "a g be mu var", "b m2 v2", training_mode=1)],
    BN,
    {},
    (("a", "statistics at run time"),),
    opset=15,
)
simple("lrn", [node("LRN", "a", "b", size=3)], {}, {}, (("a", "neighbours"),))
simple("lrn_of_itself", [node("LRN", "a", "b", size=1)])
simple("softmax_over_channels_13", [node("Softmax", "a", "b", axis=1)], {}, {}, (("a", "normalises over"),), opset=13)
simple("softmax_over_positions_13", [node("Softmax", "a", "b", axis=-1)], opset=13)
simple("softmax_11_flattens", [node("Softmax", "a", "b", axis=1)], {}, {}, (("a", "normalises over"),), opset=11)
simple("softmax_11_behind_the_channels", [node("Softmax", "a", "b", axis=2)], opset=11)
simple("log_softmax_over_channels", [node("LogSoftmax", "a", "b", axis=-3)], {}, {}, (("a", "LogSoftmax"),), opset=13)
simple("hardmax_over_positions", [node("Hardmax", "a", "b", axis=3)], opset=13)
simple("softmax_11_from_the_batch_on", [node("Softmax", "a", "b", axis=0)], {}, {}, (("a", "normalises over"),), opset=11)
