from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.data import check_data
from bench.data.cifar import CIFAR10, CIFAR100, Cifar, check_cifar, load_cifar
from bench.errors import DataError

RECORDS = 3
Members = dict[str, bytes]
BOTH = pytest.mark.parametrize("cifar", [CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])


def records(cifar: Cifar, seed: int) -> NDArray[np.uint8]:
    """(RECORDS, label bytes + 3072): labels at the start, the last of them the one that counts."""
    generator = np.random.default_rng(seed)
    table = generator.integers(0, 256, (RECORDS, cifar.label_bytes + 3072), dtype=np.uint8)
    table[:, : cifar.label_bytes] = generator.integers(0, 10, (RECORDS, cifar.label_bytes))
    return table


def members_of(cifar: Cifar) -> Members:
    names = (*cifar.train_members, *cifar.test_members)
    return {name: records(cifar, seed).tobytes() for seed, name in enumerate(names)}


@pytest.fixture
def write_archive(tmp_path: Path) -> Callable[[Cifar, Members], str]:
    """Write an archive in the official format into tmp_path; its checksum is the answer."""

    def write(cifar: Cifar, members: Members) -> str:
        path = tmp_path / cifar.archive
        with tarfile.open(path, "w:gz") as tar:
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for name, content in {"folder/readme.html": b"<html>", **members}.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"

    return write


def refusal(cifar: Cifar, root: Path, checksum: str | None = None, download: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        load_cifar(cifar, root, download, checksum=checksum)
    message = str(caught.value)
    assert "\n" not in message
    return message


@BOTH
def test_a_small_archive_in_the_true_format_is_decoded(
    cifar: Cifar, tmp_path: Path, write_archive: Callable[[Cifar, Members], str]
) -> None:
    checksum = write_archive(cifar, members_of(cifar))
    check_cifar(cifar, tmp_path, False, checksum=checksum)
    data = load_cifar(cifar, tmp_path, False, checksum=checksum)
    train = np.concatenate([records(cifar, seed) for seed in range(len(cifar.train_members))])
    test = records(cifar, len(cifar.train_members))
    for table, images, labels in ((train, data.train_images, data.train_labels), (test, data.test_images, data.test_labels)):  # fmt: skip  # noqa: E501
        assert images.shape == (len(table), 3, 32, 32)
        assert labels.tolist() == table[:, cifar.label_bytes - 1].tolist()
        first = table[0, cifar.label_bytes :]
        assert int(images[0, 0, 0, 1]) == int(first[1])
        assert int(images[0, 1, 2, 3]) == int(first[1024 + 2 * 32 + 3])
        assert int(images[0, 2, 31, 31]) == int(first[-1])
    assert data.num_classes == cifar.num_classes
    assert checksum in data.source
    assert data.train_images.dtype == torch.uint8


@BOTH
def test_an_archive_with_another_checksum_is_refused_at_the_check(
    cifar: Cifar, tmp_path: Path, write_archive: Callable[[Cifar, Members], str]
) -> None:
    write_archive(cifar, members_of(cifar))
    assert cifar.checksum.removeprefix("md5:") in refusal(cifar, tmp_path)
    with pytest.raises(DataError, match="damaged or not the official one"):
        check_data(cifar.name, root=str(tmp_path), download=False)


def test_a_truncated_archive_is_refused_whether_or_not_its_checksum_is_known(
    tmp_path: Path, write_archive: Callable[[Cifar, Members], str]
) -> None:
    checksum = write_archive(CIFAR10, members_of(CIFAR10))
    path = tmp_path / CIFAR10.archive
    path.write_bytes(path.read_bytes()[:5000])
    assert "damaged" in refusal(CIFAR10, tmp_path, checksum)
    cut = f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
    assert "gzipped tar archive" in refusal(CIFAR10, tmp_path, cut)
    path.write_bytes(b"<html>")
    assert "gzipped tar archive" in refusal(CIFAR10, tmp_path, f"md5:{hashlib.md5(b'<html>').hexdigest()}")


def test_members_that_are_missing_short_or_out_of_range_are_named(
    tmp_path: Path, write_archive: Callable[[Cifar, Members], str]
) -> None:
    members = members_of(CIFAR10)
    name = CIFAR10.train_members[2]
    missing = {key: value for key, value in members.items() if key != name}
    assert f"no file {name}" in refusal(CIFAR10, tmp_path, write_archive(CIFAR10, missing))
    short = {**members, name: members[name][:-1]}
    assert f"{name} in" in refusal(CIFAR10, tmp_path, write_archive(CIFAR10, short))
    wrong = {**members, name: b"\x0a" + members[name][1:]}
    assert "the label 10" in refusal(CIFAR10, tmp_path, write_archive(CIFAR10, wrong))


def test_a_link_in_place_of_a_member_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x00" * 3073)
    path = tmp_path / CIFAR10.archive
    with tarfile.open(path, "w:gz") as tar:
        for name in (*CIFAR10.train_members, *CIFAR10.test_members):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, str(secret)
            tar.addfile(link)
    checksum = f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
    assert "holds no file" in refusal(CIFAR10, tmp_path, checksum)


def test_a_member_that_says_it_is_larger_than_any_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / CIFAR10.archive
    huge = tarfile.TarInfo(CIFAR10.train_members[0])
    huge.size = 2**40
    path.write_bytes(gzip.compress(huge.tobuf() + b"x" * 512))
    message = refusal(CIFAR10, tmp_path, f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}")
    assert f"{huge.name} has {huge.size} bytes" in message


def test_a_missing_archive_says_what_to_put_where(tmp_path: Path) -> None:
    message = refusal(CIFAR100, tmp_path)
    for part in ("cifar-100-binary.tar.gz", str(tmp_path), "cs.toronto.edu", "data.download=true"):
        assert part in message


def test_the_check_neither_fetches_nor_writes(tmp_path: Path) -> None:
    check_cifar(CIFAR10, tmp_path / "new", True)
    assert not list(tmp_path.iterdir())
