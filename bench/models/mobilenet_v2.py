"""MobileNetV2 for small images: stride 1 in the stem and in the second stage.

Source: Sandler et al., arXiv 1801.04381, table 2. The two strides are as is usual on CIFAR; no dropout, so that a step
draws no random number of its own. Inputs of an expansion follow a linear bottleneck: they have both signs.
"""

from __future__ import annotations

from torch import Tensor, nn

from bench.models.initial_weights import init_weights

# expansion t, channels c, repeats n, stride s of the first; the second stage has s = 2 in the paper
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280


def conv_bn_relu6(in_channels: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, batch-norm, ReLU6."""
    conv = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear bottleneck; a shortcut where shapes agree."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, expansion: int) -> None:
        """An ``expansion`` of 1 has no expanding convolution."""
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_bn_relu6(in_channels, hidden, 1))
        layers.append(conv_bn_relu6(hidden, hidden, 3, stride=stride, groups=hidden))
        layers += [nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.layers = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride))."""
        out = self.layers(x)
        if self.has_shortcut:
            out += x  # batch-norm saves its input, not its output: adding in place is safe
        return out


class MobileNetV2(nn.Module):
    """MobileNetV2 (width 1) for images of 8x8 pixels or more."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        """The network of table 2 up to the two strides."""
        super().__init__()
        self.stem = conv_bn_relu6(in_channels, STEM_CHANNELS, 3)
        blocks: list[nn.Module] = []
        channels = STEM_CHANNELS
        for expansion, width, repeats, first_stride in STAGES:
            for index in range(repeats):
                stride = first_stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, width, stride=stride, expansion=expansion))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = conv_bn_relu6(channels, HEAD_CHANNELS, 1)
        self.fc = nn.Linear(HEAD_CHANNELS, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) float32 -> (N, num_classes) float32."""
        return self.fc(self.head(self.blocks(self.stem(images))).mean(dim=(2, 3)))
