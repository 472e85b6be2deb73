"""A small network with every layer kind that conversion meets, and a watcher of floating-point products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Block(nn.Module):
    """Two convolutions with a shortcut; a stride brings a 1×1 convolution into it."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(channels, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Stem, two residual blocks, a depthwise convolution, a classifier with bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.block1 = Block(16, 16, 1)
        self.block2 = Block(16, 24, 2)
        self.depthwise = nn.Conv2d(24, 24, 3, 1, 1, groups=24)
        self.classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn(self.stem(x)))
        y = torch.relu(self.depthwise(self.block2(self.block1(y))))
        return self.classifier(y.mean((2, 3)))


@pytest.fixture
def small_resnet() -> Callable[[], SmallResNet]:
    """Builds the same network each time."""

    def build() -> SmallResNet:
        torch.manual_seed(0)
        return SmallResNet()

    return build


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(0, 10, (4,), generator=torch.Generator().manual_seed(2))


class FloatProducts(TorchDispatchMode):
    """Names of the floating-point convolutions and matrix products that ran."""

    WATCHED = ("convolution", "conv", "mm", "addmm", "bmm", "baddbmm", "dot", "mv", "linear", "matmul", "einsum")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name != "_int_mm" and any(word in name for word in self.WATCHED):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def float_products() -> type[FloatProducts]:
    return FloatProducts
