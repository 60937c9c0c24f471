"""FIND: an ONNX file becomes a Network. Read only: nothing in here changes a model's weights."""

from onnxprune.graph.find import find
from onnxprune.graph.load import ModelFile, load
from onnxprune.graph.prepare import prepare
from onnxprune.graph.structure import Graph, trace

__all__ = ["Graph", "ModelFile", "find", "load", "prepare", "trace"]
