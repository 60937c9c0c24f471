"""Operators that no channel passes, each with its reason: what they read stays whole, what they make carries no channels."""

from __future__ import annotations

from onnxprune.graph.labels import Flow, rule

CLOSED: dict[str, tuple[str, ...]] = {
    "runs a subgraph on these channels": ("If", "Loop", "Scan", "SequenceMap"),
    "keeps these channels in a sequence or an optional value": (
        "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt", "SequenceConstruct",
        "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence",
    ),
    "draws random numbers, which are others for fewer channels": (
        "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    ),
    "lists what it finds among all of these channels": ("Compress", "NonMaxSuppression", "NonZero", "Unique"),
    "makes a tensor by the size of these channels": (
        "AffineGrid", "BlackmanWindow", "EyeLike", "HammingWindow", "HannWindow", "MelWeightMatrix",
    ),
    "computes with all of these channels at once": (
        "Det", "NegativeLogLikelihoodLoss", "STFT", "SoftmaxCrossEntropyLoss", "TfIdfVectorizer",
    ),
    "keeps these channels from step to step": ("CausalConvWithState", "LinearAttention", "TensorScatter"),
    "reads text or pictures": ("ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"),
}  # fmt: skip
REASONS = {name: reason for reason, names in CLOSED.items() for name in names}


def closed(flow: Flow, index: int) -> None:
    node = flow.graph.nodes[index]
    for name in node.input:
        flow.pin_all(name, f"{flow.graph.label(index)!r} {REASONS[node.op_type]} ({node.op_type})")


for _reason, _names in CLOSED.items():
    rule(*_names, note=f"pinned: {_reason.replace('these channels', 'them')}", blind=True)(closed)
