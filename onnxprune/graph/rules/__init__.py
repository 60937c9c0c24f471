"""How channels flow through one operator: one function per operator, one file per family, no operator in two places."""

from onnxprune.graph.rules import (
    attention,
    contraction,
    elementwise,
    fused,
    movement,
    normalization,
    pooling,
    shaping,
)

__all__ = ["attention", "contraction", "elementwise", "fused", "movement", "normalization", "pooling", "shaping"]
