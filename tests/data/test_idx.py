from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from bench.data.idx import read_idx
from bench.errors import DataError

Encode = Callable[[NDArray[np.uint8]], bytes]
ARRAY = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=5)


def encode(array: NDArray[np.uint8]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def refusal(folder: Path, content: bytes, name: str = "images") -> str:
    path = folder / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path, (28, 28))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_header_that_claims_more_than_memory_holds_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    header = bytes((0, 0, 8, 3)) + b"\xff\xff\xff\xff" + (28).to_bytes(4, "big") * 2
    assert "claims 4294967295 items" in refusal(tmp_path, header)
    fitting = bytes((0, 0, 8, 3)) + (2**23).to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
    assert "truncated" in refusal(tmp_path, fitting + b"abc")


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "images")
    with pytest.raises(DataError, match="no regular file"):
        read_idx(tmp_path / "images", (28, 28))


@given(hnp.arrays(np.uint8, SHAPES), st.booleans())
def test_what_was_written_is_read_back(array: NDArray[np.uint8], packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("x.gz" if packed else "x")
        path.write_bytes(gzip.compress(encode(array)) if packed else encode(array))
        read = read_idx(path, array.shape[1:])
    np.testing.assert_array_equal(read, array)
    assert read.flags.writeable


@given(st.integers(0, len(encode(ARRAY)) - 1), st.booleans())
def test_a_file_cut_anywhere_is_refused(length: int, packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = encode(ARRAY)[:length]
        message = refusal(Path(folder), gzip.compress(content) if packed else content, "x.gz" if packed else "x")
    assert "truncated" in message


@given(st.integers(0, len(gzip.compress(encode(ARRAY), mtime=0)) - 1))
def test_a_gzip_stream_cut_anywhere_is_refused(length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        refusal(Path(folder), gzip.compress(encode(ARRAY), mtime=0)[:length], "x.gz")


@given(st.integers(0, len(gzip.compress(encode(ARRAY), mtime=0)) - 1), st.integers(1, 255))
def test_a_changed_byte_of_a_gzip_stream_is_refused_or_harmless(position: int, change: int) -> None:
    content = bytearray(gzip.compress(encode(ARRAY), mtime=0))
    content[position] ^= change
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.gz"
        path.write_bytes(content)
        try:
            read = read_idx(path, (28, 28))
        except DataError:
            return
    np.testing.assert_array_equal(read, ARRAY)


def test_each_fault_is_said_as_what_it_is(tmp_path: Path) -> None:
    whole = encode(ARRAY)
    assert "0x00000803" in refusal(tmp_path, b"\x00\x00\x08\x01" + whole[4:])
    assert "0x3c68746d" in refusal(tmp_path, b"<html>not found</html>")
    assert "items of 28x14" in refusal(tmp_path, encode(ARRAY[:, :, :14]))
    assert "no items" in refusal(tmp_path, encode(ARRAY[:0]))
    assert "too long" in refusal(tmp_path, whole + b"\x00")
    assert "2000 of 2352 bytes" in refusal(tmp_path, whole[:2016])
    assert "ends early" in refusal(tmp_path, gzip.compress(whole)[:-20], "x.gz")
    assert "is damaged" in refusal(tmp_path, whole, "x.gz")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no regular file"):
        read_idx(tmp_path, (28, 28))
