"""CIFAR ResNets of 6n + 2 layers with shortcut options A and B.

Source: He et al., Deep Residual Learning, arXiv 1512.03385, section 4.2. Option A (``bench.layers.shortcut``)
subsamples and pads channels with zeros, half before and half after, so that it has no weights and no product.
"""

from __future__ import annotations

from torch import Tensor, nn

from bench.layers.join import AddReLU
from bench.layers.shortcut import PadShortcut
from bench.models.initial_weights import init_weights

STAGE_CHANNELS = (16, 32, 64)


class ConvShortcut(nn.Sequential):
    """Option B: 1x1 convolution and batch-norm."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        """The projection of He et al., equation 2."""
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        self.bn = nn.BatchNorm2d(channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch-norm beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: nn.Module) -> None:
        """``shortcut`` maps the block's input to its output's shape."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = shortcut
        self.relu2 = AddReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride))."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out, self.shortcut(x))


def make_shortcut(option: str, in_channels: int, channels: int, stride: int) -> nn.Module:
    """The shortcut of one block: nothing where shapes agree, else option A or B."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    if option == "A":
        return PadShortcut(channels - in_channels, stride)
    return ConvShortcut(in_channels, channels, stride)


class CifarResNet(nn.Module):
    """ResNet of ``depth`` = 6n + 2 layers for images of 8x8 pixels or more."""

    def __init__(self, depth: int, *, num_classes: int, in_channels: int, shortcut: str) -> None:
        """``shortcut`` is ``A`` or ``B``."""
        super().__init__()
        assert (depth - 2) % 6 == 0, f"a CIFAR ResNet has 6n + 2 layers, not {depth}"
        channels = STAGE_CHANNELS[0]
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        blocks: list[nn.Module] = []
        for stage, width in enumerate(STAGE_CHANNELS):
            for index in range((depth - 2) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(BasicBlock(channels, width, stride, make_shortcut(shortcut, channels, width, stride)))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) float32 -> (N, num_classes) float32."""
        features = self.blocks(self.relu(self.bn1(self.conv1(images))))
        return self.fc(features.mean(dim=(2, 3)))
