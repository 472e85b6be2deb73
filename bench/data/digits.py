"""scikit-learn's digits: 1,797 images of 8x8 pixels, 16 grey levels, in the package itself.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI (its test part), as scikit-learn ships it.
We read the file that ``sklearn.datasets.load_digits`` reads, without importing scikit-learn, which takes longer than
all the rest of loading.

The split is ours, fixed for good and independent of a run's seed: of each digit, the 36 images whose index hashes
lowest are test images (360), the other 1,437 train; both stay in the file's order. Writers are on both sides.
"""

from __future__ import annotations

import hashlib
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.data.base import AugmentPolicy, DataSet, content_fingerprint
from bench.data.place import reason
from bench.errors import DataError

NAME = "digits"
NUM_CLASSES = 10
IMAGES, IMAGE_SIZE = 1797, 8
FULL_SCALE = 16.0
TEST_IMAGES_PER_CLASS = 36
SPLIT_SALT = "digits split 1"
# Of the training part, pixels from 0 to 1.
MEAN, STD = (0.3055,), (0.3761,)
# A shift by one pixel keeps a digit; a mirror image is another sign.
AUGMENTATION = AugmentPolicy(padding=1, flip=False)
SOURCE = "scikit-learn load_digits (Alpaydin and Kaynak, UCI), split 1437/360 by index"


def digits_file() -> Path:
    """Where scikit-learn keeps the digits.

    Raises:
        DataError: scikit-learn or its file is missing.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("The digits come with scikit-learn, which is not installed: pip install scikit-learn.")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise DataError(f"{path} is missing: reinstall scikit-learn.")
    return path


def load_digits() -> DataSet:
    """The digits with our split.

    Returns:
        A data set with (1437, 1, 8, 8) training and (360, 1, 8, 8) test images, uint8 from 0 to 16.

    Raises:
        DataError: the file is missing or is not the one that scikit-learn ships.
    """
    images, labels = _read(digits_file())
    is_test = choose_test_images(labels)
    tensors = [
        torch.from_numpy(part) for part in (images[~is_test], labels[~is_test], images[is_test], labels[is_test])
    ]
    return DataSet(
        name=NAME,
        train_images=tensors[0],
        train_labels=tensors[1],
        test_images=tensors[2],
        test_labels=tensors[3],
        num_classes=NUM_CLASSES,
        full_scale=FULL_SCALE,
        mean=MEAN,
        std=STD,
        augmentation=AUGMENTATION,
        synthetic=False,
        source=SOURCE,
        fingerprint=content_fingerprint(NAME, *tensors),
    )


def choose_test_images(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which images are test images: of each class the 36 whose index hashes lowest.

    Args:
        labels: (N,) int64.

    Returns:
        (N,) bool.
    """
    rank = [hashlib.sha256(f"{SPLIT_SALT}:{index}".encode()).digest() for index in range(len(labels))]
    mask = np.zeros(len(labels), dtype=bool)
    for label in range(NUM_CLASSES):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=rank.__getitem__)
        mask[members[:TEST_IMAGES_PER_CLASS]] = True
    return mask


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(1797, 1, 8, 8) uint8 and (1797,) int64 from a gzipped CSV of 64 pixels and a label a line."""
    try:
        table = np.loadtxt(path, delimiter=",")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}; reinstall scikit-learn.") from error
    if table.shape != (IMAGES, IMAGE_SIZE**2 + 1):
        raise DataError(f"{path} is not scikit-learn's file of {IMAGES} digits; reinstall scikit-learn.")
    images = table[:, :-1].astype(np.uint8).reshape(IMAGES, 1, IMAGE_SIZE, IMAGE_SIZE)
    return images, table[:, -1].astype(np.int64)
