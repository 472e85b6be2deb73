"""Crop with padding and mirroring, on the device, drawn as a pure function of (seed, epoch).

Source: He et al., arXiv 1512.03385, section 4.2 (pad, crop, flip). An epoch's draws are made at once on the CPU, so
that every device sees the same crops and a step draws nothing and waits for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.data.base import AugmentPolicy
from bench.seeding import torch_generator


@dataclass(frozen=True, slots=True, eq=False)
class Crops:
    """Draws for images in the order that they are trained in: (N,) int64 corners, (N,) bool mirrors."""

    rows: Tensor
    columns: Tensor
    flips: Tensor

    def __getitem__(self, index: slice) -> Crops:
        """The draws of some positions."""
        return Crops(self.rows[index], self.columns[index], self.flips[index])


def draw_crops(policy: AugmentPolicy, count: int, *, seed: int, epoch: int, device: torch.device | str) -> Crops:
    """Draw an epoch's crops.

    Args:
        policy: padding in pixels, mirroring or not.
        count: images in the epoch.
        seed: the run's seed.
        epoch: 0-based.
        device: where the draws are wanted; their values do not depend on it.
    """
    generator = torch_generator(seed, "augmentation", epoch)
    corners = torch.randint(0, 2 * policy.padding + 1, (2, count), generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5
    if not policy.flip:
        flips.zero_()
    return Crops(corners[0].to(device), corners[1].to(device), flips.to(device))


def crop_and_flip(images: Tensor, crops: Crops, *, padding: int, fill: Tensor) -> Tensor:
    """Pad with one colour, crop back to the size, mirror some.

    Args:
        images: (N, H, W, C).
        crops: one draw an image; corners from 0 to 2 * padding.
        padding: pixels on each side.
        fill: (C,) colour of the padding, on the images' device.

    Returns:
        (N, H, W, C), contiguous.
    """
    count, height, width, channels = images.shape
    padded = fill.expand(count, height + 2 * padding, width + 2 * padding, channels).clone()
    padded[:, padding : padding + height, padding : padding + width] = images
    return _windows(padded, crops, height, width)


def flip_windows(images: Tensor, crops: Crops, *, size: int) -> Tensor:
    """Cut a window out of each image, mirror some.

    Args:
        images: (N, H, W, C), larger than the window by at least the crops' largest corner.
        crops: one draw an image.
        size: height and width of the window, pixels.

    Returns:
        (N, size, size, C), contiguous.
    """
    return _windows(images, crops, size, size)


def _windows(images: Tensor, crops: Crops, height: int, width: int) -> Tensor:
    count = len(images)
    across = torch.arange(width, device=images.device).expand(count, width)
    across = torch.where(crops.flips[:, None], width - 1 - across, across) + crops.columns[:, None]
    down = torch.arange(height, device=images.device) + crops.rows[:, None]
    sample = torch.arange(count, device=images.device)
    return images[sample[:, None, None], down[:, :, None], across[:, None, :]]
