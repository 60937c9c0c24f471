"""How channels flow through one operator: one function per operator, one file per family, no operator in two places."""

from onnxprune.graph.rules import contraction, elementwise, movement, normalization, pooling, quantized, recurrent, shaping

__all__ = ["contraction", "elementwise", "movement", "normalization", "pooling", "quantized", "recurrent", "shaping"]
