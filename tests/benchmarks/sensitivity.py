"""What empirical sensitivities cost: processor time of looking at the samples, in plain ONNX Runtime passes over the same images.

    python tests/benchmarks/sensitivity.py [--net resnet50] [--samples 32] [--patches 32]

Limit aimed at: 10 passes for ResNet-50's topology on 32 images. --patches 0 looks at all output positions, as the paper does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import onnx
from cost import Meter, noise, peak, plain_pass
from topologies import NETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=sorted(NETS), default="resnet50")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--patches", type=int, default=None)
    given = parser.parse_args()
    from torch import Tensor

    import onnxprune
    from onnxprune.contract import METHODS, LayerView, Statistic, WeightMethod
    from onnxprune.decide import weights as decide
    from onnxprune.methods.sensitivity import PATCHES, Sensitivity

    patches = PATCHES if given.patches is None else given.patches

    class Measured(WeightMethod):
        """Nothing but the sensitivities."""

        name, paper, target, needs = "measured-sensitivity", "benchmark", "weight", (Sensitivity,)

        def counter(self, kind: type[Statistic], matrix: Tensor | None) -> Statistic:
            assert matrix is not None
            return Sensitivity(matrix, patches)

        def score(self, view: LayerView) -> Tensor:
            return view.statistic(Sensitivity).value

    METHODS[Measured.name] = Measured
    meter, images = Meter(), noise(given.samples)
    meter.watch(decide.Views, "_look", "looking")
    meter.watch(Sensitivity, "add", "adding up")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(NETS[given.net](), path)
        before = peak()
        onnxprune.prune(
            path, Measured.name, 0.5, data=images, test_data=images[:2], batch=given.batch, samples=given.samples, repair="none",
            latency=False, budget="uniform", device="cpu",
        )  # fmt: skip
        grown = peak() - before
        plain_pass(path, "image", images, given.batch, meter)
    plain = meter.cpu["plain"]
    sys.stdout.write(
        f"{given.net}, {given.samples} images, {patches or 'all'} positions each: {meter.cpu['looking']:.1f} s are "
        f"{meter.cpu['looking'] / plain:.1f} plain passes of {plain:.2f} s (processor time; the sensitivities themselves "
        f"{meter.cpu['adding up'] / plain:.1f}); {grown / 1e6:.0f} MB on top\n"
    )


if __name__ == "__main__":
    main()
