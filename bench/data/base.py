"""What every data set is once loaded: images and labels in memory, how to normalise them, and what they are."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AugmentPolicy:
    """How training images of a data set may be varied without changing what they show."""

    padding: int  # pixels of black around the image before it is cropped back to its size
    flip: bool  # mirror left and right half of the time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataSet:
    """Images and labels in memory, on the CPU.

    Images are (N, C, H, H), uint8 from 0 to ``full_scale`` or float32 from 0 to 1 with ``full_scale`` 1; labels are
    (N,) int64 below ``num_classes``. ``mean`` and ``std`` have one value a channel, of pixels from 0 to 1.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    full_scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: AugmentPolicy
    synthetic: bool  # random pixels: accuracy means nothing and is not shown
    source: str
    fingerprint: str  # SHA-256 of the content as stored, before resizing, with the size

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.train_images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of an image, pixels."""
        return self.train_images.shape[-1]

    @property
    def num_train(self) -> int:
        """Training images."""
        return len(self.train_labels)

    @property
    def num_test(self) -> int:
        """Test images."""
        return len(self.test_labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return tuple(self.train_images.shape[1:])

    def sample(self, count: int) -> Tensor:
        """The first training images, (n, C, H, W)."""
        return self.train_images[:count]


def content_fingerprint(name: str, *tensors: Tensor) -> str:
    """SHA-256 over the data set's name and each tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(name.encode())
    for tensor in tensors:
        digest.update(f"|{tensor.dtype}{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def limited(dataset: DataSet, train_limit: int | None, test_limit: int | None) -> DataSet:
    """The first images only: at most ``train_limit`` and ``test_limit``; none: all."""
    if train_limit is None and test_limit is None:
        return dataset
    train, test = slice(train_limit), slice(test_limit)
    parts = (
        dataset.train_images[train],
        dataset.train_labels[train],
        dataset.test_images[test],
        dataset.test_labels[test],
    )
    return dataclasses.replace(
        dataset,
        train_images=parts[0],
        train_labels=parts[1],
        test_images=parts[2],
        test_labels=parts[3],
        fingerprint=content_fingerprint(dataset.name, *parts),
    )


def resized(dataset: DataSet, image_size: int | None) -> DataSet:
    """Images of another size: bilinear, antialiased where they shrink, float32 from 0 to 1; none: as they are."""
    if image_size is None or image_size == dataset.image_size:
        return dataset

    def resize(images: Tensor) -> Tensor:
        size = (image_size, image_size)
        floats = images.to(torch.float32).div_(dataset.full_scale)
        return F.interpolate(floats, size=size, mode="bilinear", antialias=True)

    # The fingerprint follows the stored pixels: interpolated ones may differ in their last bit between machines.
    text = f"{dataset.fingerprint}|bilinear {image_size}"
    return dataclasses.replace(
        dataset,
        train_images=resize(dataset.train_images),
        test_images=resize(dataset.test_images),
        full_scale=1.0,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
    )
