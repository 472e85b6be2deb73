"""Fashion-MNIST: 60,000 and 10,000 images of 28x28 pixels, from idx files that are there or are fetched.

Source: Xiao, Rasul and Vollgraf, arXiv 1708.07747. Looked for in this order: ``data.root`` and its ``fashion_mnist``
(else the user's cache), where Debian's package dataset-fashion-mnist puts them, the network. Debian's files are packed
anew, with the same content; so files are known by the hash of what they hold, and downloads by that of the archive.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data.base import AugmentPolicy, DataSet, content_fingerprint
from bench.data.idx import read_idx
from bench.data.place import check_writable, fetch, own_folders, reason
from bench.errors import DataError

NAME = "fashion_mnist"
NUM_CLASSES = 10
IMAGE_SIZE = 28
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
ADDRESSES = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
# Of the training part, pixels from 0 to 1.
MEAN, STD = (0.2860,), (0.3530,)
# Garments are centred and upright, shoes point left: shifts keep them, and mirroring is left out.
AUGMENTATION = AugmentPolicy(padding=2, flip=False)
SOURCE = "Fashion-MNIST, Xiao et al., arXiv 1708.07747"


@dataclass(frozen=True, slots=True)
class Part:
    """One of the four files."""

    name: str  # without .gz
    item_shape: tuple[int, ...]
    archive_sha256: str  # of the official .gz
    content_sha256: str  # of what it unpacks to


IMAGE = (IMAGE_SIZE, IMAGE_SIZE)
PARTS = (
    Part(
        "train-images-idx3-ubyte",
        IMAGE,
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    Part(
        "train-labels-idx1-ubyte",
        (),
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    Part(
        "t10k-images-idx3-ubyte",
        IMAGE,
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    Part(
        "t10k-labels-idx1-ubyte",
        (),
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)
Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


def check_fashion_mnist(root: Path | None, download: bool, *, debian_folder: Path = DEBIAN_FOLDER) -> None:
    """Refuse what ``load_fashion_mnist`` would refuse, without fetching or writing anything.

    Reads the files that are there through (0.3 s for the gzipped originals).

    Raises:
        DataError: files are missing and may not be fetched, or one of them is damaged.
    """
    folder = _folder(root, download, debian_folder)
    if all(_find(folder, part) for part in PARTS):
        _read_all(folder)
    else:
        check_writable(folder)


def load_fashion_mnist(
    root: Path | None,
    download: bool,
    *,
    debian_folder: Path = DEBIAN_FOLDER,
    addresses: tuple[str, ...] = ADDRESSES,
    parts: tuple[Part, ...] = PARTS,
) -> DataSet:
    """Fashion-MNIST, fetched first if need be.

    Args:
        root: ``data.root``; none: the user's cache is looked in and fetched to.
        download: whether missing files are fetched.
        debian_folder: where Debian's package puts the files.
        addresses: folders on the network, tried in turn.
        parts: the four files with their checksums.

    Returns:
        A data set with (60000, 1, 28, 28) training and (10000, 1, 28, 28) test images, uint8 from 0 to 255.

    Raises:
        DataError: one sentence with the file that is missing or damaged and where it is wanted.
    """
    folder = _folder(root, download, debian_folder)
    for part in parts:
        if _find(folder, part) is None:
            archive = f"{part.name}.gz"
            fetch([address + archive for address in addresses], folder / archive, f"sha256:{part.archive_sha256}")
    arrays = _read_all(folder)
    official = all(_content_sha256(array) == part.content_sha256 for array, part in zip(arrays, parts, strict=True))
    tensors = [_as_tensor(array) for array in arrays]
    return DataSet(
        name=NAME,
        train_images=tensors[0],
        train_labels=tensors[1],
        test_images=tensors[2],
        test_labels=tensors[3],
        num_classes=NUM_CLASSES,
        full_scale=255.0,
        mean=MEAN,
        std=STD,
        augmentation=AUGMENTATION,
        synthetic=False,
        source=f"{SOURCE} ({'official' if official else 'not the official'} content)",
        fingerprint=content_fingerprint(NAME, *tensors),
    )


def _folder(root: Path | None, download: bool, debian_folder: Path) -> Path:
    """The folder that holds the files, or that the missing ones are to be fetched into."""
    own = own_folders(root, NAME)
    if root is not None and not download and not own[0].is_dir():
        raise DataError(f"data.root={root} does not exist: {_wanted(own[0])}.")
    target = own[-1]
    for folder in (*own, debian_folder):
        found = [part for part in PARTS if _find(folder, part)]
        if len(found) == len(PARTS):
            return folder
        if found and folder in own:
            if not download:
                missing = next(part.name for part in PARTS if part not in found)
                raise DataError(f"{folder / missing}.gz is missing: put it there or set data.download=true.")
            target = folder
            break
    if not download:
        raise DataError(f"Fashion-MNIST is not there: {_wanted(target)}.")
    return target


def _wanted(folder: Path) -> str:
    names = ", ".join(f"{part.name}.gz" for part in PARTS)
    return f"put {names} into {folder}, install Debian's dataset-fashion-mnist, or set data.download=true"


def _find(folder: Path, part: Part) -> Path | None:
    """The file of one part, unpacked or packed, if it is there."""
    try:
        return next((path for path in (folder / part.name, folder / f"{part.name}.gz") if path.exists()), None)
    except OSError as error:
        raise DataError(f"{folder} cannot be looked into: {reason(error)}.") from error


def _read_all(folder: Path) -> Arrays:
    """The four parts, each consistent with the other."""
    arrays: list[NDArray[np.uint8]] = []
    for part in PARTS:
        path = _find(folder, part)
        if path is None:
            raise DataError(f"{folder / part.name}.gz is missing.")
        array = read_idx(path, part.item_shape)
        if not part.item_shape:
            if len(array) != len(arrays[-1]):
                raise DataError(f"{path} holds {len(array)} labels for {len(arrays[-1])} images; replace it.")
            if int(array.max()) >= NUM_CLASSES:
                raise DataError(f"{path} holds the label {int(array.max())}, and labels go from 0 to 9; replace it.")
        arrays.append(array)
    train_images, train_labels, test_images, test_labels = arrays
    return train_images, train_labels, test_images, test_labels


def _content_sha256(array: NDArray[np.uint8]) -> str:
    """SHA-256 of the idx file that holds this array."""
    digest = hashlib.sha256(bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape))
    digest.update(array.data)
    return digest.hexdigest()


def _as_tensor(array: NDArray[np.uint8]) -> Tensor:
    """Images get a channel, labels become int64."""
    tensor = torch.from_numpy(array)
    return tensor.unsqueeze(1) if array.ndim == 3 else tensor.to(torch.int64)
