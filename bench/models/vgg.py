"""VGG-16 with batch-norm for small images, one linear layer.

Source: Simonyan and Zisserman, arXiv 1409.1556, configuration D. As is usual on CIFAR: batch-norm after each
convolution, no convolution bias, one 512 -> classes layer. We differ below 32x32: a pooling that would leave no pixel
is left out (the last one at 16x16 to 31x31, the last two at 8x8 to 15x15), so that all 13 convolutions stay.
"""

from __future__ import annotations

from torch import Tensor, nn

from bench.models.initial_weights import init_weights

POOL = "pool"
LAYERS: tuple[int | str, ...] = (
    64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512, POOL, 512, 512, 512, POOL,
)  # fmt: skip


class Vgg16(nn.Module):
    """VGG-16-BN for images of 8x8 pixels or more."""

    def __init__(self, *, num_classes: int, in_channels: int, image_size: int) -> None:
        """``image_size`` decides which poolings stay."""
        super().__init__()
        layers: list[nn.Module] = []
        channels, size = in_channels, image_size
        for layer in LAYERS:
            if isinstance(layer, int):
                conv = nn.Conv2d(channels, layer, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(layer), nn.ReLU(inplace=True)]
                channels = layer
            elif size >= 2:
                layers.append(nn.MaxPool2d(2))
                size //= 2
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) float32 -> (N, num_classes) float32."""
        return self.fc(self.features(images).mean(dim=(2, 3)))
