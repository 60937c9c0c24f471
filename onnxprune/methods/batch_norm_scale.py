"""Liu et al.: "Learning Efficient Convolutional Networks through Network Slimming" (ICCV 2017), the batch-norm scale."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.contract import ChannelMethod, ChannelView, method
from onnxprune.errors import UsageError


@method
class BatchNormScaleChannel(ChannelMethod):
    """score = sum over makers of |gamma|, the scale of the BatchNormalization behind each.

    The paper trains with an L1 penalty on gamma first; a finished file had none: the ranking is as good as its gammas.
    """

    name = "bn-scale-channel"
    target = "channel"
    paper = "Liu et al., Network Slimming (ICCV 2017)"

    def score(self, view: ChannelView) -> Tensor:
        scales = [maker.batch_norm_scale.abs() for maker in view.makers if maker.batch_norm_scale is not None]
        if not scales:
            raise UsageError(
                f"bn-scale-channel needs batch norm behind the layers of {view.name!r}, and there is none (exporters fold it)",
                "use l1-channel or coreset-channel, or --skip this group",
            )
        return torch.stack(scales).sum(0)
