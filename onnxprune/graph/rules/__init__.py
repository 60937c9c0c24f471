"""How channels flow through one operator: one function per operator, one file per family, no operator in two places."""

from onnxprune.graph.rules import (
    contraction,
    elementwise,
    filling,
    movement,
    normalization,
    pooling,
    quantized,
    recurrent,
    selection,
    shaping,
)

__all__ = [
    "contraction", "elementwise", "filling", "movement", "normalization", "pooling", "quantized", "recurrent", "selection",
    "shaping",
]  # fmt: skip
