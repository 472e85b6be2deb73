"""ResNet-18 for ImageNet.

Source: He et al., Deep Residual Learning, arXiv 1512.03385, table 1, shortcut option B.
"""

from __future__ import annotations

from torch import Tensor, nn

from bench.models.initial_weights import init_weights
from bench.models.resnet import BasicBlock, make_shortcut

STAGE_CHANNELS = (64, 128, 256, 512)
BLOCKS_PER_STAGE = 2


class ImageNetResNet18(nn.Module):
    """ResNet-18 for images of 32x32 pixels or more (224x224 in the paper)."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        """Basic blocks, two a stage."""
        super().__init__()
        channels = STAGE_CHANNELS[0]
        self.conv1 = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks: list[nn.Module] = []
        for stage, width in enumerate(STAGE_CHANNELS):
            for index in range(BLOCKS_PER_STAGE):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(BasicBlock(channels, width, stride, make_shortcut("B", channels, width, stride)))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) float32 -> (N, num_classes) float32."""
        features = self.blocks(self.pool(self.relu(self.bn1(self.conv1(images)))))
        return self.fc(features.mean(dim=(2, 3)))
