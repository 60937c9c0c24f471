"""Makes every model and array of samples/: trains on scikit-learn's bundled digits, exports to ONNX, measures on ONNX Runtime.

    python samples/models/train.py [FOLDER]        a minute and a half on one core; FOLDER defaults to samples/

    models/digits_cnn.onnx            residual blocks, depthwise-separable blocks with squeeze-and-excite; batch norm folded
    models/digits_lenet300.onnx       LeNet-300-100 (256-300-100-10)
    data/digits_calibration.npz       300 images, no labels
    data/digits_test.npz              500 images, their labels in digits_test_labels.npy

The 1797 digits are split before anything is drawn from them, so that no writing is seen on two sides. The same machine and the
same torch give the same files; elsewhere the last bits, and so an image or two of the accuracy, may differ.
"""
# ruff: noqa: T201

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

SEED = 20
CALIBRATION, TEST = 300, 500
SIZE = 16  # pixels per side, twice the digits' own 8
STEP = 1 / 16  # the digits have 17 grey levels; keeping to them keeps the arrays small
BATCH = 64


# ---------------------------------------------------------------------------------------------------------------- the images


def split() -> dict[str, tuple[Tensor, Tensor]]:
    """The 8 x 8 digits in [0, 1] with their labels, as three disjoint parts."""
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    parts = np.split(order, [CALIBRATION, CALIBRATION + TEST])
    images, labels = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    return {
        name: (images[torch.tensor(part)], labels[torch.tensor(part)])
        for name, part in zip(("calibration", "test", "train"), parts, strict=True)
    }


def draw(images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """(n, 1, 16, 16): each digit enlarged, turned by up to 12 degrees, scaled by up to 10 % and moved by up to 1.6 pixels."""

    def uniform(limit: float, *shape: int) -> Tensor:
        return (2 * torch.rand(len(images), *shape, generator=rng) - 1) * limit * strength

    angle, scale, shift = uniform(math.radians(12)), 1 + uniform(0.1), uniform(0.2, 2)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2) * scale[:, None, None]
    grid = functional.affine_grid(torch.cat([turn, shift[:, :, None]], 2), [len(images), 1, SIZE, SIZE], align_corners=False)
    drawn = functional.grid_sample(images, grid, align_corners=False)
    return (drawn / STEP).round() * STEP


# ---------------------------------------------------------------------------------------------------------------- the models


class Convolution(nn.Module):
    """Conv, batch norm and, unless it is linear, ReLU."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if self.linear else functional.relu(x)

    def fold(self) -> None:
        assert isinstance(self.norm, nn.BatchNorm2d)
        self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: the identity, or a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = Convolution(channels_in, channels, 3, stride)
        self.second = Convolution(channels, channels, 3, linear=True)
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else Convolution(channels_in, channels, 1, stride, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(self.first(x)) + self.shortcut(x))


class SqueezeExcite(nn.Module):
    """Each channel times a gate in [0, 1] that is computed from the means of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * functional.hardsigmoid(self.expand(functional.relu(self.reduce(self.pool(x)))))


class Separable(nn.Module):
    """1 x 1 expansion, 3 x 3 depthwise convolution, squeeze-and-excite, linear 1 x 1 projection; a shortcut where it fits."""

    def __init__(self, channels_in: int, expanded: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.expand = Convolution(channels_in, expanded, 1)
        self.depthwise = Convolution(expanded, expanded, 3, stride, groups=expanded)
        self.excite = SqueezeExcite(expanded, 16)
        self.project = Convolution(expanded, channels, 1, linear=True)
        self.same = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.excite(self.depthwise(self.expand(x))))
        return x + y if self.same else y


class DigitsCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(1, 32, 3)
        self.stage1 = Residual(32, 32)
        self.stage2 = Residual(32, 64, stride=2)
        self.stage3 = Separable(64, 128, 128, stride=2)
        self.stage4 = Separable(128, 256, 128)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(image)))))
        return self.classify(self.pool(x).flatten(1))


class LeNet300(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(SIZE * SIZE, 300), nn.Linear(300, 100), nn.Linear(100, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc3(functional.relu(self.fc2(functional.relu(self.fc1(image.flatten(1))))))


# ------------------------------------------------------------------------------------------------------------ train and export


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float) -> nn.Module:
    """AdamW, one cycle of the learning rate, label smoothing, a new drawing of every digit in every epoch."""
    rng = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    steps = math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs=epochs, steps_per_epoch=steps)
    model.train()
    for _ in range(epochs):
        drawn = draw(images, 1.0, rng)
        for rows in torch.randperm(len(images), generator=rng).split(BATCH):
            loss = functional.cross_entropy(model(drawn[rows]), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: nn.Module, path: Path, description: str) -> None:
    """Opset 17 with a free batch axis; batch norm folded here, so that the initializers keep the names of their layers."""
    for module in model.modules():
        if isinstance(module, Convolution):
            module.fold()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, SIZE, SIZE),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )
    proto = onnx.load(path)
    proto.graph.name, proto.doc_string = path.stem, description
    onnx.helper.set_model_props(
        proto,
        {"task": "image classification", "dataset": "scikit-learn digits (UCI optdigits)", "made_by": "samples/models/train.py"},
    )
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return float((session.run(["logits"], {"image": images})[0].argmax(1) == labels).mean())


def main(folder: Path) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models, data = folder / "models", folder / "data"
    models.mkdir(parents=True, exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)

    parts = split()
    fixed = torch.Generator().manual_seed(SEED)
    calibration = draw(parts["calibration"][0], 0.5, fixed).numpy()
    test, labels = draw(parts["test"][0], 0.5, fixed).numpy(), parts["test"][1].numpy()
    np.savez_compressed(data / "digits_calibration.npz", image=calibration)
    np.savez_compressed(data / "digits_test.npz", image=test)
    np.save(data / "digits_test_labels.npy", labels)

    cnn = train(DigitsCNN(), *parts["train"], epochs=60, rate=3e-3)
    export(cnn, models / "digits_cnn.onnx", "Handwritten digits, 16 x 16, with residual and depthwise-separable blocks")
    lenet = train(LeNet300(), *parts["train"], epochs=120, rate=3e-3)
    export(lenet, models / "digits_lenet300.onnx", "Handwritten digits, 16 x 16: LeNet-300-100")
    for path in sorted(models.glob("*.onnx")):
        print(f"{path.name:24} {path.stat().st_size / 1e3:6.0f} kB   accuracy {accuracy(path, test, labels):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
