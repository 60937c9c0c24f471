"""How channels flow through one operator: one function per operator, one file per family, no operator in two places."""

from onnxprune.graph.rules import (
    attention,
    closed,
    contraction,
    elementwise,
    fused,
    movement,
    normalization,
    pooling,
    ranking,
    sampling,
    shaping,
)

__all__ = [
    "attention",
    "closed",
    "contraction",
    "elementwise",
    "fused",
    "movement",
    "normalization",
    "pooling",
    "ranking",
    "sampling",
    "shaping",
]
