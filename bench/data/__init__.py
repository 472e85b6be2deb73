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
    from bench.data.base import DataSet


@dataclass(frozen=True, slots=True, kw_only=True)
class DataEntry:
    """One line of the table, and what a model needs to know before anything is read."""

    summary: str
    source: str
    num_classes: int
    in_channels: int
    image_size: int  # pixels, unless data.image_size says otherwise
    check: Callable[[Path | None, bool], None]  # (root, download); writes and fetches nothing
    load: Callable[[Path | None, bool, int | None], DataSet]  # (root, download, image_size)


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
) -> DataSet:
    """Load a data set into memory, fetching what is missing. The content does not depend on a run's seed.

    Args:
        name: a key of ``DATASETS``.
        root: folder of the data; none: the usual places, then the user's cache.
        download: whether missing files are fetched.
        image_size: height and width in pixels, by bilinear interpolation; none: as stored.
        train_limit: at most so many training images, the first ones.
        test_limit: at most so many test images, the first ones.

    Returns:
        Images and labels on the CPU.

    Raises:
        ConfigError: an unknown name.
        DataError: one sentence: which file is missing or damaged, and where it is wanted.
    """
    entry = _entry(name)
    from bench.data.base import limited, resized

    dataset = entry.load(_path(root), download, image_size)
    return resized(limited(dataset, train_limit, test_limit), image_size)


def _path(root: str | None) -> Path | None:
    return None if root is None else Path(root)


def _entry(name: str) -> DataEntry:
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"There is no data set named {name}: {hint}known are {', '.join(DATASETS)}.")
    return DATASETS[name]
