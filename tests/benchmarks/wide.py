"""What second-order pruning of one very wide layer costs: seconds and peak memory of `obs` on a synthetic 4096 x 25088 layer.

    python tests/benchmarks/wide.py [METHOD] [OUT] [INPUTS] [RATIO]

The layer's inputs are correlated and partly zero, as those of the first fully connected layer of a VGG are.
"""

from __future__ import annotations

import resource
import sys
import time

import torch

from onnxprune.contract import Gram, LayerView, Quota
from onnxprune.methods import create

SAMPLES, FACTORS = 1536, 512


def wide_layer(out: int, inputs: int) -> LayerView:
    """Inputs: mixtures of a few hundred factors and noise, behind a ReLU."""
    rng = torch.Generator().manual_seed(0)
    mixing = torch.randn((FACTORS, inputs), generator=rng)
    gram = Gram()
    for _ in range(SAMPLES // 128):
        hidden = torch.randn((128, FACTORS), generator=rng)
        noise = torch.randn((128, inputs), generator=rng)
        gram.add((hidden @ mixing / FACTORS**0.5 + 0.5 * noise - 0.5).relu()[:, None])
    matrix = torch.randn((1, out, inputs), generator=rng) / inputs**0.5
    return LayerView("fc6", matrix, torch.zeros(1, out), statistics={Gram: gram})


def main(name: str = "obs", out: str = "4096", inputs: str = "25088", ratio: str = "0.9") -> None:
    view = wide_layer(int(out), int(inputs))
    quota = Quota(round((1 - float(ratio)) * view.matrix.numel()))
    quadratic = view.statistic(Gram).damped(0.01)
    whole = quadratic.error(view.matrix) ** 0.5
    method = create(name)
    wall, processor = time.perf_counter(), time.process_time()
    plan = method.decide(view, method.score(view), quota, torch.Generator())
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    plan.check(view, quota)
    error = quadratic.error(plan.weights(view) - view.matrix) ** 0.5 / whole
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    told = f"{wall:.0f} s ({processor:.0f} s of processor), {peak:.1f} GiB, error {error:.4f}"
    sys.stdout.write(f"{name} {out} x {inputs} at {ratio}: {told}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
