"""SEE and DECIDE: what a method may look at, and what it may answer. Tensors only; a method never sees ONNX."""

from onnxprune.contract.activation import Activation
from onnxprune.contract.channels import ChannelMethod, ChannelPlan, ChannelView, Maker, Reader, check_scores
from onnxprune.contract.method import METHODS, Method, Option, Target, method
from onnxprune.contract.reading import Reading, readings
from onnxprune.contract.statistics import InputMoments, MaxNorm, Moments, PatchMoments, Statistic
from onnxprune.contract.weights import LayerPlan, LayerView, Quota, Scope, WeightMethod, check_weight_scores

__all__ = [
    "METHODS", "Activation", "ChannelMethod", "ChannelPlan", "ChannelView", "InputMoments", "LayerPlan", "LayerView", "Maker",
    "MaxNorm", "Method", "Moments", "Option", "PatchMoments", "Quota", "Reader", "Reading", "Scope", "Statistic", "Target",
    "WeightMethod", "check_scores", "check_weight_scores", "method", "readings",
]  # fmt: skip
