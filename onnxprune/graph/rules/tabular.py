"""Operators of classic machine learning (ai.onnx.ml) that prepare columns: what they read stays, what is behind them may go."""

from __future__ import annotations

from onnxprune.graph.labels import Flow, rule
from onnxprune.graph.rules import elementwise, stand_ins

TABULAR = "ai.onnx.ml"

rule("Binarizer", domain=TABULAR, shape=stand_ins.like())(elementwise.unary)


def held(flow: Flow, index: int) -> None:
    node = flow.graph.nodes[index]
    for name in node.input:
        flow.pin_all(name, f"{flow.graph.label(index)!r} holds a number for each of these channels ({node.op_type})")


def looked_at(flow: Flow, index: int) -> None:
    node = flow.graph.nodes[index]
    for name in node.input:
        flow.pin_all(name, f"{flow.graph.label(index)!r} looks at all of these channels at once ({node.op_type})")


PER_COLUMN = "pinned: holds a number for each column"
ALL_AT_ONCE = "pinned: looks at all columns at once"
rule("Imputer", domain=TABULAR, shape=stand_ins.like(), note=PER_COLUMN)(held)
rule("Scaler", domain=TABULAR, shape=stand_ins.floats, note=PER_COLUMN)(held)
rule("Normalizer", domain=TABULAR, shape=stand_ins.floats, note=ALL_AT_ONCE)(looked_at)
rule("FeatureVectorizer", domain=TABULAR, shape=stand_ins.columns, note=ALL_AT_ONCE)(looked_at)
