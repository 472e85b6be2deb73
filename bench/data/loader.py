"""Batches from memory, normalised once on the device; training order is a pure function of (seed, epoch, step).

Ours. Images lie as (N, H, W, C) float32, so that a batch is one gather and comes out channels-last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from bench.data.augment import Crops, crop_and_flip, draw_crops
from bench.data.base import DataSet
from bench.errors import ConfigError
from bench.seeding import torch_generator

Batch = tuple[Tensor, Tensor]  # (N, C, H, W) float32 channels-last, (N,) int64


class Scaling(Protocol):
    """What normalising needs to know of a data set."""

    @property
    def full_scale(self) -> float:
        """The largest value of a pixel."""

    @property
    def mean(self) -> tuple[float, ...]:
        """By channel, of pixels from 0 to 1."""

    @property
    def std(self) -> tuple[float, ...]:
        """By channel, of pixels from 0 to 1."""


def normalise(images: Tensor, dataset: Scaling, device: torch.device | str) -> Tensor:
    """Pixels -> (pixel / full_scale - mean) / std.

    Args:
        images: (N, C, H, W) of ``dataset``, uint8 or float32.
        dataset: whose scale, mean and std count.
        device: where the result is wanted.

    Returns:
        (N, H, W, C) float32, contiguous.
    """
    floats = images.to(device).permute(0, 2, 3, 1).to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    mean, std = (torch.tensor(values, device=device) for values in (dataset.mean, dataset.std))
    return floats.contiguous().div_(dataset.full_scale).sub_(mean).div_(std)


def check_batch_size(batch_size: int, num_images: int, name: str) -> None:
    """Refuse a batch that no epoch could fill.

    Raises:
        ConfigError: there are fewer images than a batch holds.
    """
    if batch_size > num_images:
        raise ConfigError(
            f"protocol.batch_size={batch_size} is more than the {num_images} training images of {name}: set it to "
            f"{num_images} or less."
        )


def training_order(num_images: int, *, seed: int, epoch: int) -> Tensor:
    """(N,) int64: which image comes when in an epoch."""
    return torch.randperm(num_images, generator=torch_generator(seed, "loader_order", epoch))


class TrainStream(Protocol):
    """Training batches, wherever they come from; a pure function of (seed, epoch, step)."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch at one position."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from a step on."""


class EvalStream(Protocol):
    """The test images in order."""

    @property
    def num_images(self) -> int:
        """Images in all."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches, the last as small as it comes."""


class TrainBatches:
    """Training batches of one size; what does not fill a batch is left out, another part each epoch."""

    def __init__(
        self, dataset: DataSet, *, batch_size: int, seed: int, device: torch.device | str, augment: bool = False
    ) -> None:
        """Move and normalise the training images.

        Args:
            dataset: what to train on.
            batch_size: images a batch.
            seed: the run's seed: order and augmentation follow from it.
            device: where batches are wanted.
            augment: crop and mirror as ``dataset.augmentation`` says.

        Raises:
            ConfigError: there are fewer images than a batch holds.
        """
        self._num_images = dataset.num_train
        check_batch_size(batch_size, self._num_images, dataset.name)
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self.steps_per_epoch = self._num_images // batch_size
        self._images = normalise(dataset.train_images, dataset, device)
        self._labels = dataset.train_labels.to(device)
        self._policy = dataset.augmentation if augment else None
        mean, std = torch.tensor(dataset.mean), torch.tensor(dataset.std)
        self._black = (-mean / std).to(device)
        self._plans: dict[int, tuple[Tensor, Crops | None]] = {}

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch at one position, whatever was drawn before.

        Args:
            epoch: 0-based.
            step: 0-based, below ``steps_per_epoch``.

        Returns:
            Images (batch_size, C, H, W) float32 channels-last, labels (batch_size,) int64, on the device.
        """
        assert 0 <= step < self.steps_per_epoch, f"step {step} is outside an epoch of {self.steps_per_epoch}"
        order, crops = self._plan(epoch)
        position = slice(step * self.batch_size, (step + 1) * self.batch_size)
        chosen = order[position]
        images = self._images.index_select(0, chosen)
        if self._policy is not None and crops is not None:
            images = crop_and_flip(images, crops[position], padding=self._policy.padding, fill=self._black)
        return images.permute(0, 3, 1, 2), self._labels.index_select(0, chosen)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from a step on, which is where a resumed run goes on."""
        for step in range(first_step, self.steps_per_epoch):
            yield self.batch(epoch, step)

    def _plan(self, epoch: int) -> tuple[Tensor, Crops | None]:
        """Order and crops of an epoch; those of the last one asked for are kept."""
        if epoch not in self._plans:
            order = training_order(self._num_images, seed=self.seed, epoch=epoch).to(self.device)
            crops = None
            if self._policy is not None:
                crops = draw_crops(self._policy, self._num_images, seed=self.seed, epoch=epoch, device=self.device)
            self._plans = {epoch: (order, crops)}
        return self._plans[epoch]


class EvalBatches:
    """The test images in order, the last batch as small as it comes."""

    def __init__(self, dataset: DataSet, *, batch_size: int, device: torch.device | str) -> None:
        """Move and normalise the test images."""
        self.batch_size = batch_size
        self.num_images = len(dataset.test_labels)
        self._images = normalise(dataset.test_images, dataset, device)
        self._labels = dataset.test_labels.to(device)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Images (N, C, H, W) float32 channels-last and labels (N,) int64, on the device."""
        for images, labels in zip(
            self._images.split(self.batch_size), self._labels.split(self.batch_size), strict=True
        ):
            yield images.permute(0, 3, 1, 2), labels
