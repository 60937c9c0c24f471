"""The benchmark nets as torch modules, for the peer that cannot read an ONNX file; weights come from the ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional


class _Block(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.wider = planes // 4 if planes != inputs else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.wider:  # "option A": every other pixel, and zeros for the channels that are new
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.wider, self.wider))
        return functional.relu(x + y)


class CifarResNet(nn.Module):
    """He et al.'s CIFAR ResNet of depth 6 n + 2 with parameter-free shortcuts."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks)
        self.layer2 = self._stage(16, 32, blocks)
        self.layer3 = self._stage(32, 64, blocks)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, planes: int, blocks: int) -> nn.Sequential:
        first = _Block(inputs, planes, planes // inputs)
        return nn.Sequential(first, *(_Block(planes, planes, 1) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))

    def kept_whole(self) -> list[nn.Module]:
        """Torch-Pruning takes the shortcut's channel padding for element-wise, so the residual stream must be ignored."""
        return [self.conv1, self.linear, *(m.conv2 for m in self.modules() if isinstance(m, _Block))]


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    padding = kernel // 2 if stride == 1 else 0  # the strided ones are padded on the right and the bottom only
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=1e-3))


class _Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        hidden = inputs * factor
        self.expand = _conv_norm(inputs, hidden, 1) if factor > 1 else None
        self.dw = _conv_norm(hidden, hidden, 3, stride, groups=hidden)
        self.project = _conv_norm(hidden, outputs, 1)
        self.strided, self.residual = stride == 2, stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else functional.relu6(self.expand(x))
        if self.strided:
            y = functional.pad(y, (0, 1, 0, 1))
        y = self.project(functional.relu6(self.dw(y)))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Width 1, as Keras pads it: TensorFlow's "same" padding is one-sided at stride 2."""

    PLAN = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self) -> None:
        super().__init__()
        self.c1 = _conv_norm(3, 32, 3, 2)
        blocks, width = [], 32
        for factor, outputs, repeats, stride in self.PLAN:
            for i in range(repeats):
                blocks.append(_Inverted(width, outputs, stride if i == 0 else 1, factor))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv_norm(width, 1280, 1)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self.c1(functional.pad(x, (0, 1, 0, 1))))
        x = functional.relu6(self.head(self.blocks(x)))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))

    def kept_whole(self) -> list[nn.Module]:
        return [self.fc]

    def residual_stream(self) -> list[nn.Module]:
        """The projections: ignoring them too leaves only the hidden channels of the blocks, the stem and the head."""
        return [block.project[0] for block in self.blocks]


def load(net: str, path: Path) -> nn.Module:
    """The net with the file's weights, which bear the names of the module's own state."""
    module = MobileNetV2() if net == "mobilenetv2" else CifarResNet(int(net.removeprefix("resnet")))
    file = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in onnx.load(path).graph.initializer}
    state = {k: file.get(k, v) for k, v in module.state_dict().items()}
    missing = sorted(k for k in state if k not in file and not k.endswith("num_batches_tracked"))
    if missing:
        raise SystemExit(f"{path}: no initializers {missing[:5]}")
    module.load_state_dict(state)
    return module.eval()


def macs(module: nn.Module, example: torch.Tensor) -> int:
    """Multiply-accumulates of the convolutions and linear layers for this one example (for the search only)."""
    total = 0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    return total


def outputs(module: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def export(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    torch.onnx.export(
        module, (example,), str(path), dynamo=False, opset_version=13,
        input_names=["input"], output_names=["logits"], dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
    )  # fmt: skip
