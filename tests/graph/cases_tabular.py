"""Operators of classic machine learning (ai.onnx.ml) around a network."""

from __future__ import annotations

from tests.graph.cases import CASES, Case
from tests.graph.nets import net, node, values

WEIGHTS = {"w1": values(5, 7), "w2": values(7, 6, seed=1), "w3": values(6, 4, seed=2)}
ONE, TWO = node("Gemm", "a w1", "h", name="one"), node("Gemm", "g w2", "b", name="two")
RELU, LAST = node("Relu", "h", "g"), node("Gemm", "c w3", "y", name="three")


def ml(op: str, inputs: str, outputs: str, **attributes):
    return node(op, inputs, outputs, domain="ai.onnx.ml", **attributes)


def tabular(name, nodes, groups, pins=(), shape=("N", 4), weights=WEIGHTS) -> None:
    def build() -> Case:
        model = net(nodes, weights, {"x": ["N", 5]}, imports={"ai.onnx.ml": 3}, output_shape=list(shape))
        return Case(model, groups, tuple(pins))

    CASES[f"tabular_{name}"] = build


for front in (
    ml("Scaler", "x", "a", offset=[0.1] * 5, scale=[0.5] * 5),
    ml("Normalizer", "x", "a", norm="L2"),
    ml("Imputer", "x", "a", imputed_value_floats=[0.0] * 5, replaced_value_float=float("nan")),
    ml("FeatureVectorizer", "x", "a", inputdimensions=[5]),
):  # a pipeline of scikit-learn: all behind its first step could not be followed once
    tabular(f"{front.op_type}_in_front", [front, ONE, RELU, TWO, node("Relu", "b", "c"), LAST], {"one": 7, "two": 6})
SAME = node("Identity", "x", "a")
BINARY = ml("Binarizer", "h", "g", threshold=0.1)
tabular("Binarizer", [SAME, ONE, BINARY, TWO, node("Relu", "b", "c"), LAST], {"one": 7, "two": 6})
for behind, words in (
    (ml("Normalizer", "b", "y", norm="L1"), "looks at all of these channels"),
    (ml("Scaler", "b", "y", offset=[0.1] * 6, scale=[0.5] * 6), "holds a number for each of these channels"),
    (ml("LinearRegressor", "b", "y", coefficients=[0.5] * 6, targets=1), "operator LinearRegressor has no rule"),
):
    own = {k: WEIGHTS[k] for k in ("w1", "w2")}
    tabular(f"{behind.op_type}_behind", [SAME, ONE, RELU, TWO, behind], {"one": 7}, (("b", words),),
            ("N", 6 if words[0] != "o" else 1), own)  # fmt: skip
