"""SEE and DECIDE: what a method may look at, and what it may answer. Tensors only; a method never sees ONNX."""

from onnxprune.contract.activation import Activation
from onnxprune.contract.channels import ChannelMethod, ChannelPlan, ChannelView, Maker, Reader, check_scores
from onnxprune.contract.contributions import Contributions
from onnxprune.contract.gram import Gram
from onnxprune.contract.method import METHODS, TARGETS, Method, Option, Target, method
from onnxprune.contract.ranks import Factors, RankMethod, RankView, check_energies
from onnxprune.contract.reading import Reading, readings
from onnxprune.contract.statistics import InputMoments, MaxNorm, Moments, PatchMoments, Statistic, Zeros
from onnxprune.contract.weights import LayerPlan, LayerView, Quota, Scope, WeightMethod, check_weight_scores

__all__ = [
    "METHODS", "TARGETS", "Activation", "ChannelMethod", "ChannelPlan", "ChannelView", "Contributions", "Factors", "Gram",
    "InputMoments", "LayerPlan", "LayerView", "Maker", "MaxNorm", "Method", "Moments", "Option", "PatchMoments", "Quota",
    "RankMethod", "RankView", "Reader", "Reading", "Scope", "Statistic", "Target", "WeightMethod", "Zeros", "check_energies",
    "check_scores", "check_weight_scores", "method", "readings",
]  # fmt: skip
