"""FIND alone: what a model is made of and what holds its channels, without running it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import onnx

from onnxprune.graph import find, load, prepare, why
from onnxprune.graph.why import Explanation
from onnxprune.network import Network
from onnxprune.request import as_kinds, prefers_width


def inspect(
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    kinds: str | Sequence[str] = (),
    through_norms: bool = False,
) -> Network:
    """Layers, groups of channels and pins of a model, without running it.

    kinds: those that pruning is to be asked for; 'head-width' alone finds the width of attention heads in place of the heads.
    """
    graph, _ = prepare(load(model).model, input_shapes)
    return find(graph, inner=prefers_width(as_kinds(kinds)), through_norms=through_norms)


def explain(
    model: str | os.PathLike[str] | onnx.ModelProto,
    tensor: str,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    kinds: str | Sequence[str] = (),
    through_norms: bool = False,
) -> Explanation:
    """Which channels of a tensor (an activation, a weight or the weight of a layer) can go, and what holds the others."""
    graph, _ = prepare(load(model).model, input_shapes)
    return why.explain(graph, find(graph, inner=prefers_width(as_kinds(kinds)), through_norms=through_norms), tensor)
