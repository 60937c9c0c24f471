"""How channels flow through one operator: one function per operator, one file per family, no operator in two places."""

from onnxprune.graph.rules import (
    attention,
    closed,
    contraction,
    elementwise,
    filling,
    fused,
    movement,
    normalization,
    pooling,
    quantized,
    ranking,
    recurrent,
    sampling,
    selection,
    shaping,
    tabular,
)

__all__ = [
    "attention",
    "closed",
    "contraction",
    "elementwise",
    "filling",
    "fused",
    "movement",
    "normalization",
    "pooling",
    "quantized",
    "ranking",
    "recurrent",
    "sampling",
    "selection",
    "shaping",
    "tabular",
]
