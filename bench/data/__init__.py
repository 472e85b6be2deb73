"""Data sets by name: the ``DATASETS`` table, ``check_data`` before a run, ``build_data`` in it.

The table reads without importing torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from bench.data.base import DataSet
    from bench.data.imagenet import ImageFolder
    from bench.data.loader import EvalStream, TrainStream

    AnyData = DataSet | ImageFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class DataEntry:
    """One line of the table, and what a model needs to know before anything is read."""

    summary: str
    source: str
    num_classes: int
    in_channels: int
    image_size: int  # pixels, unless data.image_size says otherwise
    check: Callable[[Path | None, bool], None]  # (root, download); writes and fetches nothing
    load: Callable[[Path | None, bool, int | None], AnyData]  # (root, download, image_size)
    can_download: bool = True  # what is missing can be fetched, where anything can be missing


def _check_digits(root: Path | None, download: bool) -> None:
    from bench.data.digits import load_digits

    load_digits()


def _load_digits(root: Path | None, download: bool, image_size: int | None) -> DataSet:
    from bench.data.digits import load_digits

    return load_digits()


def _check_fashion_mnist(root: Path | None, download: bool) -> None:
    from bench.data.fashion_mnist import check_fashion_mnist

    check_fashion_mnist(root, download)


def _load_fashion_mnist(root: Path | None, download: bool, image_size: int | None) -> DataSet:
    from bench.data.fashion_mnist import load_fashion_mnist

    return load_fashion_mnist(root, download)


def _check_cifar10(root: Path | None, download: bool) -> None:
    from bench.data.cifar import CIFAR10, check_cifar

    check_cifar(CIFAR10, root, download)


def _load_cifar10(root: Path | None, download: bool, image_size: int | None) -> DataSet:
    from bench.data.cifar import CIFAR10, load_cifar

    return load_cifar(CIFAR10, root, download)


def _check_cifar100(root: Path | None, download: bool) -> None:
    from bench.data.cifar import CIFAR100, check_cifar

    check_cifar(CIFAR100, root, download)


def _load_cifar100(root: Path | None, download: bool, image_size: int | None) -> DataSet:
    from bench.data.cifar import CIFAR100, load_cifar

    return load_cifar(CIFAR100, root, download)


def _check_imagenet(root: Path | None, download: bool) -> None:
    from bench.data.imagenet import check_imagenet

    check_imagenet(root)


def _load_imagenet(root: Path | None, download: bool, image_size: int | None) -> ImageFolder:
    from bench.data.imagenet import load_imagenet

    return load_imagenet(root, image_size)


def _check_synthetic(root: Path | None, download: bool) -> None:
    """Nothing can be missing."""


def _load_synthetic(root: Path | None, download: bool, image_size: int | None) -> DataSet:
    from bench.data.synthetic import make_synthetic

    return make_synthetic(image_size)


DATASETS: dict[str, DataEntry] = {
    "digits": DataEntry(
        summary="1,437 + 360 handwritten digits, 8x8x1, 10 classes; comes with scikit-learn",
        source="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI; scikit-learn load_digits",
        num_classes=10,
        in_channels=1,
        image_size=8,
        check=_check_digits,
        load=_load_digits,
    ),
    "fashion_mnist": DataEntry(
        summary="60,000 + 10,000 garments, 28x28x1, 10 classes; Debian's dataset-fashion-mnist, or downloaded (30 MB)",
        source="Xiao et al., Fashion-MNIST, arXiv 1708.07747",
        num_classes=10,
        in_channels=1,
        image_size=28,
        check=_check_fashion_mnist,
        load=_load_fashion_mnist,
    ),
    "cifar10": DataEntry(
        summary="50,000 + 10,000 photographs, 32x32x3, 10 classes; downloaded (162 MB)",
        source="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        num_classes=10,
        in_channels=3,
        image_size=32,
        check=_check_cifar10,
        load=_load_cifar10,
    ),
    "cifar100": DataEntry(
        summary="50,000 + 10,000 photographs, 32x32x3, 100 classes; downloaded (161 MB)",
        source="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        num_classes=100,
        in_channels=3,
        image_size=32,
        check=_check_cifar100,
        load=_load_cifar100,
    ),
    "imagenet": DataEntry(
        summary="1.28 million + 50,000 photographs, 224x224x3, 1,000 classes; your own folder, decoded while training",
        source="Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, arXiv 1409.0575",
        num_classes=1000,
        in_channels=3,
        image_size=224,
        check=_check_imagenet,
        load=_load_imagenet,
        can_download=False,
    ),
    "synthetic": DataEntry(
        summary="2,048 + 512 random images, 32x32x3, 10 classes; for timing, accuracy is not shown",
        source="random numbers",
        num_classes=10,
        in_channels=3,
        image_size=32,
        check=_check_synthetic,
        load=_load_synthetic,
    ),
}


def check_data(name: str, *, root: str | None = None, download: bool = True) -> None:
    """Refuse a data set that cannot be used, before anything is written; never fetches.

    Reads through what is there, so that a truncated file is found here (0.4 s for Fashion-MNIST). Where files are
    missing and may be fetched it is content.

    Args:
        name: a key of ``DATASETS``.
        root: ``data.root``, the folder of the data.
        download: ``data.download``, whether missing files may be fetched later.

    Raises:
        ConfigError: an unknown name.
        DataError: one sentence: which file is missing or damaged, and where it is wanted.
    """
    _entry(name).check(_path(root), download)


def build_data(
    name: str,
    *,
    root: str | None = None,
    download: bool = True,
    image_size: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
) -> AnyData:
    """Load a data set, fetching what is missing: into memory, or as a list of files. A run's seed changes nothing.

    Args:
        name: a key of ``DATASETS``.
        root: folder of the data; none: the usual places, then the user's cache.
        download: whether missing files are fetched.
        image_size: height and width in pixels, by bilinear interpolation; none: as stored.
        train_limit: at most so many training images, the first ones.
        test_limit: at most so many test images, the first ones.

    Returns:
        Images and labels on the CPU; a folder's images stay on the disk until they are trained on.

    Raises:
        ConfigError: an unknown name.
        DataError: one sentence: which file is missing or damaged, and where it is wanted.
    """
    entry = _entry(name)
    from bench.data.base import limited, resized
    from bench.data.imagenet import ImageFolder, limited_folder

    dataset = entry.load(_path(root), download, image_size)
    if isinstance(dataset, ImageFolder):
        return limited_folder(dataset, train_limit, test_limit)
    return resized(limited(dataset, train_limit, test_limit), image_size)


def train_batches(
    dataset: AnyData,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    augment: bool = False,
    workers: int | None = None,
) -> TrainStream:
    """Training batches from memory or from files; see ``loader.TrainBatches`` and ``stream.FolderTrainBatches``.

    Raises:
        ConfigError: there are fewer images than a batch holds.
    """
    from bench.data.imagenet import ImageFolder
    from bench.data.loader import TrainBatches
    from bench.data.stream import FolderTrainBatches

    if isinstance(dataset, ImageFolder):
        return FolderTrainBatches(
            dataset, batch_size=batch_size, seed=seed, device=device, augment=augment, workers=workers
        )
    return TrainBatches(dataset, batch_size=batch_size, seed=seed, device=device, augment=augment)


def eval_batches(
    dataset: AnyData, *, batch_size: int, device: torch.device | str, workers: int | None = None
) -> EvalStream:
    """The test images in order, from memory or from files."""
    from bench.data.imagenet import ImageFolder
    from bench.data.loader import EvalBatches
    from bench.data.stream import FolderEvalBatches

    if isinstance(dataset, ImageFolder):
        return FolderEvalBatches(dataset, batch_size=batch_size, device=device, workers=workers)
    return EvalBatches(dataset, batch_size=batch_size, device=device)


def _path(root: str | None) -> Path | None:
    return None if root is None else Path(root)


def _entry(name: str) -> DataEntry:
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"There is no data set named {name}: {hint}known are {', '.join(DATASETS)}.")
    return DATASETS[name]
