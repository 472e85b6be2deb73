"""ImageNet from a folder in its usual layout, decoded when it is needed: train/<wnid>/*.JPEG and val/<wnid>/*.JPEG.

Source: Russakovsky et al., arXiv 1409.0575. Each image is decoded with Pillow, resized so that its shorter side is 8/7
of the wanted size (256 for 224) and cut to its central square; crop and flip happen on the device. Training takes a
random window of the wanted size or its mirror image (He et al., arXiv 1512.03385, section 3.4, without their varying
scale), evaluation the central one. Any number of classes is taken, as long as both parts have the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.data.base import AugmentPolicy
from bench.data.place import own_folders, reason
from bench.errors import DataError

NAME = "imagenet"
IMAGE_SIZE = 224
NUM_CLASSES = 1000
MARGIN = 8 / 7  # of the square that is kept over the window that is used
SUFFIXES = {".jpeg", ".jpg", ".png"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PARTS = ("train", "val")


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Files of one part of the data with their labels, (N,) int64; nothing is decoded yet."""

    paths: tuple[Path, ...]
    labels: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageFolder:
    """A data set that stays on the disk; what it offers beside its files is what `DataSet` offers."""

    name: str
    train: Split
    test: Split
    num_classes: int
    image_size: int  # pixels, of the window that a network sees
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    fingerprint: str  # SHA-256 of the files' names and sizes, with the image size: the pixels are too many to read

    full_scale: float = 255.0
    in_channels: int = 3
    synthetic: bool = False

    @property
    def square(self) -> int:
        """Height and width of a decoded image, pixels."""
        return round(self.image_size * MARGIN)

    @property
    def augmentation(self) -> AugmentPolicy:
        """Window and mirror image; the window's corner lies up to twice the padding from the square's."""
        return AugmentPolicy(padding=(self.square - self.image_size) // 2, flip=True)

    @property
    def num_train(self) -> int:
        """Training images."""
        return len(self.train.paths)

    @property
    def num_test(self) -> int:
        """Test images."""
        return len(self.test.paths)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image as a network sees it."""
        return (self.in_channels, self.image_size, self.image_size)

    def sample(self, count: int) -> Tensor:
        """The first training images, (n, C, H, W) uint8, at their central window."""
        squares = torch.stack([decode_square(path, self.square) for path in self.train.paths[:count]])
        return central_window(squares, self.image_size).permute(0, 3, 1, 2)


def check_imagenet(root: Path | None) -> None:
    """Refuse a folder that lacks a part, whose parts have other classes, or that has an empty one; opens no image.

    Raises:
        DataError: one sentence with the folder that is missing, the first class that is, or the empty one.
    """
    folder = _folder(root)
    for name in _classes(folder):
        for part in PARTS:
            if not any(True for _ in _images(folder / part / name)):
                raise _no_image(folder / part / name)


def classes_digest(root: Path | None) -> str:
    """SHA-256 of the classes' names: a folder of other classes is another data set under the same name.

    Raises:
        DataError: see `check_imagenet`.
    """
    return hashlib.sha256("/".join(_classes(_folder(root))).encode(errors="surrogateescape")).hexdigest()


def load_imagenet(root: Path | None, image_size: int | None) -> ImageFolder:
    """List the folder's images.

    Args:
        root: ``data.root``, the folder that holds ``train`` and ``val``, or one that holds it as ``imagenet``; none:
            the user's cache.
        image_size: of the window that a network sees, pixels; none: 224.

    Raises:
        DataError: one sentence with the folder that is missing, the first class that differs, or the empty one.
    """
    folder = _folder(root)
    classes = _classes(folder)
    size = IMAGE_SIZE if image_size is None else image_size
    digest = hashlib.sha256(f"{NAME}|{size}".encode())
    splits = [_list_split(folder / part, classes, digest) for part in PARTS]
    return ImageFolder(
        name=NAME,
        train=splits[0],
        test=splits[1],
        num_classes=len(classes),
        image_size=size,
        mean=MEAN,
        std=STD,
        source=f"ImageNet, Russakovsky et al., arXiv 1409.0575: a folder of {len(classes)} classes",
        fingerprint=digest.hexdigest(),
    )


def limited_folder(dataset: ImageFolder, train_limit: int | None, test_limit: int | None) -> ImageFolder:
    """At most so many images, one class after another in turn; none: all."""
    if train_limit is None and test_limit is None:
        return dataset
    train, test = (
        Split(split.paths[:limit], split.labels[:limit])
        for split, limit in ((dataset.train, train_limit), (dataset.test, test_limit))
    )
    text = f"{dataset.fingerprint}|{len(train.paths)}|{len(test.paths)}"
    return dataclasses.replace(dataset, train=train, test=test, fingerprint=hashlib.sha256(text.encode()).hexdigest())


def decode_square(path: Path, square: int) -> Tensor:
    """Decode an image, resize its shorter side and cut the central square.

    Args:
        path: any image that Pillow reads; other colour spaces become RGB.
        square: pixels.

    Returns:
        (square, square, 3) uint8.

    Raises:
        DataError: the file cannot be read, is truncated or is no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
            pixels = image.convert("RGB").resize((square, square), Image.Resampling.BILINEAR, box=box)
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{path} is no image that can be read: replace it, or remove it from the folder.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} cannot be decoded ({reason(error)}): replace it, or remove it from the folder."
        ) from error
    return torch.from_numpy(np.array(pixels))


def central_window(squares: Tensor, size: int) -> Tensor:
    """The middle of (N, H, H, C) as (N, size, size, C)."""
    first = (squares.shape[1] - size) // 2
    return squares[:, first : first + size, first : first + size]


def _folder(root: Path | None) -> Path:
    """The folder that holds both parts."""
    candidates = own_folders(root, NAME)
    found = next((folder for folder in candidates if all((folder / part).is_dir() for part in PARTS)), None)
    if found is not None:
        return found
    partly = next((folder for folder in candidates if any((folder / part).is_dir() for part in PARTS)), None)
    if partly is not None:
        missing = next(part for part in PARTS if not (partly / part).is_dir())
        raise DataError(f"{partly} has no folder {missing}: it must hold train/<class>/ and val/<class>/ with images.")
    raise DataError(
        f"ImageNet is not there, and may not be downloaded without an account: put its folders train and val into "
        f"{candidates[-1]}, or set data.root to the folder that holds them."
    )


def _classes(folder: Path) -> tuple[str, ...]:
    """Names of the classes, sorted; their positions are the labels."""
    try:
        found = [sorted(entry.name for entry in os.scandir(folder / part) if entry.is_dir()) for part in PARTS]
    except OSError as error:
        raise DataError(f"{folder} cannot be looked into: {reason(error)}.") from error
    train, val = found
    if len(train) < 2:
        raise DataError(f"{folder / 'train'} holds {len(train)} class folders: it must hold one for each class.")
    for names, others, has, lacks in ((train, val, "train", "val"), (val, train, "val", "train")):
        missing = sorted(set(names) - set(others))
        if missing:
            raise DataError(
                f"{folder / lacks} has no class {missing[0]}, which {folder / has} has ({len(missing)} in all): "
                "both need the same classes."
            )
    return tuple(train)


def _list_split(folder: Path, classes: Sequence[str], digest: hashlib._Hash) -> Split:
    """Images of one part, the classes in turn, so that the first ones are a bit of everything."""
    rows: list[tuple[int, int, Path]] = []  # position within the class, label, file
    for label, name in enumerate(classes):
        entries = sorted(_images(folder / name), key=lambda entry: entry.name)
        try:
            sizes = [entry.stat().st_size for entry in entries]
        except OSError as error:
            raise DataError(f"{folder / name} cannot be looked into: {reason(error)}.") from error
        if not entries:
            raise _no_image(folder / name)
        for position, (entry, size) in enumerate(zip(entries, sizes, strict=True)):
            digest.update(f"|{folder.name}/{name}/{entry.name} {size}".encode(errors="surrogateescape"))
            rows.append((position, label, Path(entry.path)))
    rows.sort(key=lambda row: row[:2])
    return Split(tuple(path for _, _, path in rows), torch.tensor([label for _, label, _ in rows]))


def _images(folder: Path) -> Iterator[os.DirEntry[str]]:
    """A class's files by their suffixes, in no order."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if Path(entry.name).suffix.lower() in SUFFIXES)
    except OSError as error:
        raise DataError(f"{folder} cannot be looked into: {reason(error)}.") from error


def _no_image(folder: Path) -> DataError:
    return DataError(f"{folder} holds no image: it must hold files ending in .JPEG, .jpg or .png.")
