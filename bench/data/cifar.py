"""CIFAR-10 and CIFAR-100 from the official binary archives: checksummed, read member by member, never unpickled.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; format of
https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version": one byte a label (two in CIFAR-100, coarse and fine; we
take the fine one), then 3,072 bytes of red, green and blue planes, row by row. Nothing is unpacked to the disk.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.data.base import AugmentPolicy, DataSet, content_fingerprint
from bench.data.place import check_regular, check_writable, fetch, own_folders, reason
from bench.errors import DataError

IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3 * 32 * 32
LARGEST_BYTES = 2**28  # of a member: CIFAR-100's training images have 154 MB
ADDRESS = "https://www.cs.toronto.edu/~kriz/"
# He et al., arXiv 1512.03385, section 4.2.
AUGMENTATION = AugmentPolicy(padding=4, flip=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cifar:
    """What distinguishes the two archives."""

    name: str
    title: str
    archive: str
    checksum: str  # of the official archive
    train_members: tuple[str, ...]
    test_members: tuple[str, ...]
    label_bytes: int
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    archive="cifar-10-binary.tar.gz",
    checksum="md5:c32a1d4ab5d03f1284b67883e8d87530",
    train_members=tuple(f"cifar-10-batches-bin/data_batch_{index}.bin" for index in range(1, 6)),
    test_members=("cifar-10-batches-bin/test_batch.bin",),
    label_bytes=1,
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),  # docs/method.md section 6
    std=(0.2023, 0.1994, 0.2010),
)
CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    archive="cifar-100-binary.tar.gz",
    checksum="md5:03b5dce01913d631647c71ecec9e9cb8",
    train_members=("cifar-100-binary/train.bin",),
    test_members=("cifar-100-binary/test.bin",),
    label_bytes=2,
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def check_cifar(cifar: Cifar, root: Path | None, download: bool, *, checksum: str | None = None) -> None:
    """Refuse what ``load_cifar`` would refuse of the archive as a whole, without fetching or writing anything.

    Raises:
        DataError: the archive is missing and may not be fetched, cannot be read, or has another checksum.
    """
    archive = _archive(cifar, root, download)
    if archive.exists():
        _check_sum(archive, checksum or cifar.checksum)
    else:
        check_writable(archive.parent)


def load_cifar(cifar: Cifar, root: Path | None, download: bool, *, checksum: str | None = None) -> DataSet:
    """One of the two, fetched first if need be.

    Args:
        cifar: ``CIFAR10`` or ``CIFAR100``.
        root: ``data.root``, which holds the archive; none: the user's cache.
        download: whether a missing archive is fetched.
        checksum: ``md5:...`` or ``sha256:...`` of the archive; none: the official one.

    Returns:
        A data set with (50000, 3, 32, 32) training and (10000, 3, 32, 32) test images, uint8 from 0 to 255.

    Raises:
        DataError: one sentence with the archive or the member in it that is missing or damaged.
    """
    archive = _archive(cifar, root, download)
    checksum = checksum or cifar.checksum
    if not archive.exists():
        fetch([ADDRESS + cifar.archive], archive, checksum)
    _check_sum(archive, checksum)
    members = _read_members(archive, {*cifar.train_members, *cifar.test_members})
    tensors = []
    for names in (cifar.train_members, cifar.test_members):
        parts = [_decode(members[name], f"{name} in {archive}", cifar) for name in names]
        tensors.append(torch.from_numpy(np.concatenate([images for images, _ in parts])))
        tensors.append(torch.from_numpy(np.concatenate([labels for _, labels in parts])))
    return DataSet(
        name=cifar.name,
        train_images=tensors[0],
        train_labels=tensors[1],
        test_images=tensors[2],
        test_labels=tensors[3],
        num_classes=cifar.num_classes,
        full_scale=255.0,
        mean=cifar.mean,
        std=cifar.std,
        augmentation=AUGMENTATION,
        synthetic=False,
        source=f"{cifar.title}, Krizhevsky 2009, {cifar.archive} ({checksum})",
        fingerprint=content_fingerprint(cifar.name, *tensors),
    )


def _archive(cifar: Cifar, root: Path | None, download: bool) -> Path:
    """Where the archive lies, or is to be fetched to."""
    folders = own_folders(root, cifar.name)
    try:
        found = next((folder / cifar.archive for folder in folders if (folder / cifar.archive).exists()), None)
    except OSError as error:
        raise DataError(f"{folders[0]} cannot be looked into: {reason(error)}.") from error
    if found is None and not download:
        raise DataError(
            f"{cifar.title} is not there: put {cifar.archive} from {ADDRESS} into {folders[0]}, "
            "or set data.download=true."
        )
    return found or folders[-1] / cifar.archive


def _check_sum(archive: Path, checksum: str) -> None:
    """Compare a file with ``algorithm:hex``."""
    algorithm, _, expected = checksum.partition(":")
    check_regular(archive)
    try:
        with archive.open("rb") as file:
            actual = hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise DataError(f"{archive} cannot be read: {reason(error)}.") from error
    if actual != expected:
        raise DataError(f"{archive} is damaged or not the official one: its {algorithm} is {actual}, not {expected}.")


def _read_members(archive: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted members' bytes; only regular files are read, and nothing is written."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name in wanted and member.isfile():
                    if member.size > LARGEST_BYTES:
                        raise DataError(f"{archive} says that {member.name} has {member.size} bytes: it is damaged.")
                    file = tar.extractfile(member)
                    assert file is not None, "a regular member can be read"
                    members[member.name] = file.read()
                    if len(members) == len(wanted):
                        break
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive} is not a gzipped tar archive that can be read: {reason(error)}.") from error
    missing = sorted(wanted - members.keys())
    if missing:
        raise DataError(f"{archive} holds no file {missing[0]}.")
    return members


def _decode(content: bytes, place: str, cifar: Cifar) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(N, 3, 32, 32) uint8 and (N,) int64 from the records of one member."""
    record_bytes = cifar.label_bytes + IMAGE_BYTES
    if not content or len(content) % record_bytes:
        raise DataError(f"{place} is truncated: {len(content)} bytes are no multiple of {record_bytes}.")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record_bytes)
    labels = records[:, cifar.label_bytes - 1].astype(np.int64)
    if int(labels.max()) >= cifar.num_classes:
        raise DataError(f"{place} holds the label {int(labels.max())}, and there are {cifar.num_classes} classes.")
    return records[:, cifar.label_bytes :].reshape(-1, *IMAGE_SHAPE), labels
