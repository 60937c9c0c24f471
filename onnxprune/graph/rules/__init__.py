"""How channels flow through one operator: one function per operator, one file per family. An operator is known in one place only."""

from onnxprune.graph.rules import contraction, elementwise, movement, normalization, pooling

__all__ = ["contraction", "elementwise", "movement", "normalization", "pooling"]
