"""The figures of zeros: how many there are, where, and what they are worth on disk."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import onnx

from onnxprune.decide.weights import Site
from onnxprune.figures import Sparsity, WeightFigures
from onnxprune.graph.external import tensors
from onnxprune.graph.structure import Graph
from onnxprune.rewrite.save import raw
from onnxprune.rewrite.sparsify import stored_arrays

# Fast and still near the best: zeros are what deflate finds easiest, other weights hardly shrink at any level.
LEVEL = 1
# From this share of zeros on sparse tensors of single precision are smaller than dense ones.
WORTH_IT = 2 / 3
DENSE_AGAIN = "ONNX Runtime makes them dense on loading: no memory and no time is saved"


def weight_figures(
    graph: Graph, model: onnx.ModelProto, found: Sequence[Site], pruned: Set[str], left: Mapping[str, str]
) -> list[WeightFigures]:
    """One row per matrix, those left alone included."""
    after = stored_arrays(model)
    rows = []
    for site in found:
        before = graph.array(site.name)
        reasons = [left[layer.name] for layer in site.layers if layer.name in left]
        rows.append(
            WeightFigures(
                name=site.name,
                layers=[layer.name for layer in site.layers],
                weights=before.size,
                zeros_before=_zeros(before),
                zeros=_zeros(after[site.name]),
                reason=None if site.name in pruned else (reasons or ["not chosen"])[0],
            )
        )
    return rows


def _zeros(value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> int:
    return int(value.size - np.count_nonzero(value))


def sparsity_figures(
    before: onnx.ModelProto, after: onnx.ModelProto, rows: Sequence[WeightFigures], asked: float | None, *,
    pattern: tuple[int, int] | None = None, sparse: bool = False,
) -> Sparsity:  # fmt: skip
    """Shares are of all matrices that weight methods may prune, those left alone included. sparse: they are written that way."""
    weights = sum(row["weights"] for row in rows)
    share, share_before = (sum(row[key] for row in rows) / max(weights, 1) for key in ("zeros", "zeros_before"))
    sizes = compressed_bytes(before), compressed_bytes(after)
    were = f" ({100 * share_before:.1f} % were)" if share_before else ""
    gain = "make ONNX Runtime no faster" if sparse else "make the file no smaller and ONNX Runtime no faster"
    remedy = "; --sparse-storage makes the file smaller" if share >= WORTH_IT and not sparse else ""
    summary = (
        f"{100 * share:.1f} % of the weights are zero{were}: zeros {gain}{_kernels(pattern)}. Compressed (deflate) the weights "
        f"take {sizes[1] / max(sizes[0], 1):.2f} of what they took{remedy}"
    )
    return Sparsity(
        summary=summary, weights=weights, share_asked=asked, share_before=share_before, share=share,
        compressed_bytes_before=sizes[0], compressed_bytes=sizes[1],
    )  # fmt: skip


def _kernels(pattern: tuple[int, int] | None) -> str:
    """Who runs a pattern faster."""
    if pattern is None:
        return ""
    n, m = pattern
    return f" (it has no kernels for {n}:{m}; {'TensorRT has' if (n, m) == (2, 4) else 'TensorRT has them for 2:4 alone'})"


def storage_figures(sizes: Mapping[str, tuple[int, int]], left: Mapping[str, str]) -> dict[str, Any]:
    """Bytes of each weight that was written sparse, before and after, and why the others stay dense."""
    before, after = (sum(size[i] for size in sizes.values()) for i in (0, 1))
    reasons = "; ".join(f"{many} dense: {why}" for why, many in Counter(left.values()).most_common(3))
    if sizes:
        count = "1 matrix" if len(sizes) == 1 else f"{len(sizes)} matrices"
        told = f"{count} as sparse tensors, {before:,} bytes as {after:,}"
        summary = f"{told}{f' ({reasons})' if left else ''}; {DENSE_AGAIN}"
    else:
        summary = f"no matrix as a sparse tensor ({reasons})"
    return {
        "summary": summary, "sparse": {n: {"bytes_dense": a, "bytes": b} for n, (a, b) in sizes.items()}, "dense": dict(left),
    }  # fmt: skip


def compressed_bytes(model: onnx.ModelProto) -> int:
    """What all stored tensors shrink to, one deflate stream over their bytes; nothing is written."""
    packer = zlib.compressobj(LEVEL)
    total = 0
    for _, tensor in tensors(model):
        total += len(packer.compress(raw(tensor)))
    return total + len(packer.flush())
