from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.data import build_data, check_data
from bench.data.fashion_mnist import DEBIAN_FOLDER, PARTS, Part, check_fashion_mnist, load_fashion_mnist
from bench.errors import DataError

WriteFashion = Callable[[Path, bool], None]
TRAIN_IMAGES = "train-images-idx3-ubyte"
has_debian_files = pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist")


def refusal(root: Path | None, download: bool = False, debian_folder: Path = Path("/nonexistent")) -> str:
    """What both the check and the loader say."""
    with pytest.raises(DataError) as checked:
        check_fashion_mnist(root, download, debian_folder=debian_folder)
    with pytest.raises(DataError) as loaded:
        load_fashion_mnist(root, download, debian_folder=debian_folder, addresses=())
    message = str(checked.value)
    assert "\n" not in message
    assert str(loaded.value) == message
    return message


@has_debian_files
def test_debians_files_are_the_official_content() -> None:
    check_data("fashion_mnist", download=False)
    data = load_fashion_mnist(DEBIAN_FOLDER, False)
    assert data.train_images.shape == (60_000, 1, 28, 28)
    assert data.test_images.shape == (10_000, 1, 28, 28)
    assert data.train_labels.bincount().tolist() == [6000] * 10
    assert data.test_labels.bincount().tolist() == [1000] * 10
    assert "(official content)" in data.source
    assert data.fingerprint == "d919b99b6a51cd022f993f6ea8f11fc768285e47d11a6facf32abc2da88391ad"
    pixels = data.train_images.float() / data.full_scale
    assert float(pixels.mean()) == pytest.approx(data.mean[0], abs=1e-4)
    assert float(pixels.std()) == pytest.approx(data.std[0], abs=1e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["", "fashion_mnist"])
def test_files_are_found_in_the_root_or_below_it(
    packed: bool,
    below: str,
    tmp_path: Path,
    write_fashion: WriteFashion,
    fashion_arrays: dict[str, NDArray[np.uint8]],
) -> None:
    write_fashion(tmp_path / below, packed)
    check_data("fashion_mnist", root=str(tmp_path), download=False)
    data = build_data("fashion_mnist", root=str(tmp_path), download=False)
    np.testing.assert_array_equal(data.train_images[:, 0].numpy(), fashion_arrays[TRAIN_IMAGES])
    np.testing.assert_array_equal(data.test_labels.numpy(), fashion_arrays["t10k-labels-idx1-ubyte"])
    assert data.train_labels.dtype == torch.int64
    assert "not the official content" in data.source
    assert str(tmp_path) not in data.source


def test_the_root_comes_before_debians_folder_and_debians_before_the_network(
    tmp_path: Path, write_fashion: WriteFashion
) -> None:
    root, debian = tmp_path / "root", tmp_path / "debian"
    root.mkdir()
    write_fashion(debian, True)
    assert len(load_fashion_mnist(root, True, debian_folder=debian, addresses=()).test_labels) == 5
    write_fashion(root, False)
    (debian / f"{TRAIN_IMAGES}.gz").write_bytes(b"damaged")
    load_fashion_mnist(root, True, debian_folder=debian, addresses=())


def test_missing_files_are_named_with_every_remedy(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert all(f"{part.name}.gz" in message for part in PARTS)
    for remedy in (str(tmp_path), "dataset-fashion-mnist", "data.download=true"):
        assert remedy in message


def test_a_root_that_does_not_exist_is_refused_even_where_debian_has_the_files(
    tmp_path: Path, write_fashion: WriteFashion
) -> None:
    write_fashion(tmp_path / "debian", True)
    absent = tmp_path / "absent"
    message = refusal(absent, debian_folder=tmp_path / "debian")
    assert f"data.root={absent} does not exist" in message
    assert not absent.exists()


def test_a_root_that_is_a_file_or_below_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file" in refusal(file, download=True)
    assert f"lies below the file {file}" in refusal(file / "a" / "b", download=True)


def test_an_incomplete_folder_names_the_missing_file(tmp_path: Path, write_fashion: WriteFashion) -> None:
    write_fashion(tmp_path, True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    assert "t10k-labels-idx1-ubyte.gz is missing" in refusal(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_truncated_file_is_found_by_the_check(
    packed: bool, part: Part, tmp_path: Path, write_fashion: WriteFashion
) -> None:
    write_fashion(tmp_path, packed)
    path = tmp_path / (f"{part.name}.gz" if packed else part.name)
    path.write_bytes(path.read_bytes()[:-4])
    message = refusal(tmp_path)
    assert str(path) in message
    assert "truncated" in message


def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path, write_fashion: WriteFashion, idx_bytes: Callable[[NDArray[np.uint8]], bytes]
) -> None:
    write_fashion(tmp_path, False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(11, np.uint8)))
    assert "11 labels for 12 images" in refusal(tmp_path)
    labels.write_bytes(idx_bytes(np.full(12, 10, np.uint8)))
    assert "the label 10" in refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_refused(tmp_path: Path, write_fashion: WriteFashion) -> None:
    write_fashion(tmp_path, False)
    (tmp_path / TRAIN_IMAGES).chmod(0)
    assert "cannot be read: permission denied" in refusal(tmp_path)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path, write_fashion: WriteFashion) -> None:
    write_fashion(tmp_path, False)
    (tmp_path / TRAIN_IMAGES).unlink()
    (tmp_path / TRAIN_IMAGES).mkdir()
    assert "is no regular file" in refusal(tmp_path)


def test_the_check_neither_fetches_nor_writes(tmp_path: Path) -> None:
    check_fashion_mnist(tmp_path / "new", True, debian_folder=Path("/nonexistent"))
    assert not list(tmp_path.iterdir())


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def address(tmp_path: Path, write_fashion: WriteFashion) -> Iterator[str]:
    """A server on this machine that offers the small files."""
    folder = tmp_path / "offered"
    write_fashion(folder, True)
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def offered_parts(tmp_path: Path, address: str) -> tuple[Part, ...]:
    """The four parts with the checksums of the small files."""

    def describe(part: Part) -> Part:
        archive = (tmp_path / "offered" / f"{part.name}.gz").read_bytes()
        return dataclasses.replace(
            part,
            archive_sha256=hashlib.sha256(archive).hexdigest(),
            content_sha256=hashlib.sha256(gzip.decompress(archive)).hexdigest(),
        )

    return tuple(describe(part) for part in PARTS)


def fetch_small(root: Path, addresses: tuple[str, ...], parts: tuple[Part, ...]) -> str:
    data = load_fashion_mnist(root, True, debian_folder=Path("/nonexistent"), addresses=addresses, parts=parts)
    return data.source


def test_what_is_missing_is_downloaded_and_found_again(
    tmp_path: Path, address: str, offered_parts: tuple[Part, ...]
) -> None:
    root = tmp_path / "root"
    nowhere = f"{address}nowhere/"  # the first address fails, the second serves
    assert "(official content)" in fetch_small(root, (nowhere, address), offered_parts)
    assert {path.name for path in (root / "fashion_mnist").glob("*.gz")} == {f"{part.name}.gz" for part in PARTS}
    (root / "fashion_mnist" / f"{TRAIN_IMAGES}.gz").unlink()
    fetch_small(root, (address,), offered_parts)
    check_data("fashion_mnist", root=str(root), download=False)


def test_a_download_with_another_checksum_is_refused_and_not_kept(
    tmp_path: Path, address: str, offered_parts: tuple[Part, ...]
) -> None:
    with pytest.raises(DataError, match="not the file with sha256") as caught:
        fetch_small(tmp_path / "root", (address,), PARTS)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "root").rglob("*.gz"))


def test_a_server_that_cannot_be_reached_is_one_sentence_with_the_remedy(
    tmp_path: Path, offered_parts: tuple[Part, ...]
) -> None:
    with pytest.raises(DataError, match="ConnectionError") as caught:
        fetch_small(tmp_path / "root", ("http://127.0.0.1:9/",), offered_parts)
    assert f"put it into {tmp_path / 'root' / 'fashion_mnist'}" in str(caught.value)
