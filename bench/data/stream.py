"""Batches from files: threads decode ahead of the training, order and augmentation are those of the in-memory loader.

Ours. Pillow decodes outside Python's lock, so threads share the cores; a batch crosses to the device as uint8.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from bench.data.augment import Crops, draw_crops, flip_windows
from bench.data.imagenet import ImageFolder, Split, central_window, decode_square
from bench.data.loader import Batch, check_batch_size, training_order

BATCHES_AHEAD = 2


class _Decoder:
    """Decodes and moves batches of one split; keeps a few in the making."""

    def __init__(self, dataset: ImageFolder, split: Split, device: torch.device, workers: int | None) -> None:
        self.dataset, self.split, self.device = dataset, split, device
        self.workers = workers or len(os.sched_getaffinity(0))
        self.mean, self.std = (torch.tensor(values, device=device) for values in (dataset.mean, dataset.std))

    def squares(self, batches: Iterator[Sequence[int]]) -> Iterator[Tensor]:
        """Each batch's images (N, S, S, C) uint8 on the device, in order; whoever stops early stops the threads."""
        ahead: deque[list[Future[Tensor]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        try:
            for batch in batches:
                ahead.append([pool.submit(decode_square, self.split.paths[i], self.dataset.square) for i in batch])
                if len(ahead) > BATCHES_AHEAD:
                    yield self._joined(ahead.popleft())
            while ahead:
                yield self._joined(ahead.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def normalised(self, windows: Tensor) -> Tensor:
        """(N, H, H, C) uint8 -> (N, C, H, H) float32, channels-last."""
        floats = windows.to(torch.float32, memory_format=torch.contiguous_format)
        return floats.div_(self.dataset.full_scale).sub_(self.mean).div_(self.std).permute(0, 3, 1, 2)

    def _joined(self, futures: list[Future[Tensor]]) -> Tensor:
        return torch.stack([future.result() for future in futures]).to(self.device)


class FolderTrainBatches:
    """Training batches of one size from files; what does not fill a batch is left out, another part each epoch."""

    def __init__(
        self,
        dataset: ImageFolder,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        augment: bool = False,
        workers: int | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            dataset: what to train on.
            batch_size: images a batch.
            seed: the run's seed: order and augmentation follow from it.
            device: where batches are wanted.
            augment: random window and mirror image; without it the central window.
            workers: threads that decode; none: one per core that this process may use.

        Raises:
            ConfigError: there are fewer images than a batch holds.
        """
        check_batch_size(batch_size, dataset.num_train, dataset.name)
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self.steps_per_epoch = dataset.num_train // batch_size
        self._dataset, self._augment = dataset, augment
        self._decoder = _Decoder(dataset, dataset.train, self.device, workers)

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch at one position, whatever was drawn before; see ``loader.TrainBatches.batch``."""
        assert 0 <= step < self.steps_per_epoch, f"step {step} is outside an epoch of {self.steps_per_epoch}"
        return next(self.epoch(epoch, step))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from a step on, which is where a resumed run goes on.

        Raises:
            DataError: an image cannot be decoded; the sentence names it.
        """
        order = training_order(self._dataset.num_train, seed=self.seed, epoch=epoch)
        crops: Crops | None = None
        if self._augment:
            policy = self._dataset.augmentation
            crops = draw_crops(policy, self._dataset.num_train, seed=self.seed, epoch=epoch, device=self.device)
        size = self.batch_size
        positions = [slice(step * size, (step + 1) * size) for step in range(first_step, self.steps_per_epoch)]
        squares = self._decoder.squares(order[position].tolist() for position in positions)
        for position, images in zip(positions, squares, strict=True):
            if crops is None:
                windows = central_window(images, self._dataset.image_size)
            else:
                windows = flip_windows(images, crops[position], size=self._dataset.image_size)
            labels = self._dataset.train.labels[order[position]].to(self.device)
            yield self._decoder.normalised(windows), labels


class FolderEvalBatches:
    """The test images in order at their central window, the last batch as small as it comes."""

    def __init__(
        self, dataset: ImageFolder, *, batch_size: int, device: torch.device | str, workers: int | None = None
    ) -> None:
        """Read nothing yet."""
        self.batch_size = batch_size
        self.num_images = dataset.num_test
        self._dataset = dataset
        self._decoder = _Decoder(dataset, dataset.test, torch.device(device), workers)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Images (N, C, H, H) float32 channels-last and labels (N,) int64, on the device."""
        starts = range(0, self.num_images, self.batch_size)
        batches = [range(start, min(start + self.batch_size, self.num_images)) for start in starts]
        for batch, images in zip(batches, self._decoder.squares(iter(batches)), strict=True):
            labels = self._dataset.test.labels[batch.start : batch.stop].to(self._decoder.device)
            yield self._decoder.normalised(central_window(images, self._dataset.image_size)), labels
