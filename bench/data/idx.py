"""The idx format of MNIST and its kin, plain or gzipped, read with every length checked.

Source: LeCun, Cortes and Burges, The MNIST database, "File formats": a big-endian magic 0x0000TTNN (type, number of
dimensions), one big-endian 32-bit size a dimension, then the items.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from bench.data.place import check_regular, reason
from bench.errors import DataError

UNSIGNED_BYTE = 0x08
LARGEST_BYTES = 2**33  # of the items of one file; more is a damaged header or a packed trap
_PIECE_BYTES = 2**24


def read_idx(path: Path, item_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes.

    Args:
        path: a plain file, or a gzipped one if its name ends in ``.gz``.
        item_shape: shape of one item, () for labels.

    Returns:
        (items, *item_shape) uint8, writable.

    Raises:
        DataError: no regular file, unreadable, damaged gzip, another type or shape, no item or too many, truncated, or
            longer than it says.
    """
    check_regular(path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return _read(file, path, item_shape)
    except gzip.BadGzipFile as error:
        raise DataError(f"{path} is damaged: {reason(error)}; replace it.") from error
    except EOFError as error:
        raise DataError(f"{path} is truncated: its gzip stream ends early; replace it.") from error
    except zlib.error as error:
        raise DataError(f"{path} is damaged: its gzip stream cannot be decoded; replace it.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error


def _read(file: IO[bytes] | gzip.GzipFile, path: Path, item_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    num_dims = 1 + len(item_shape)
    header = file.read(4 + 4 * num_dims)
    magic = bytes((0, 0, UNSIGNED_BYTE, num_dims))
    if len(header) >= 4 and header[:4] != magic:
        raise DataError(
            f"{path} is not an idx file of {num_dims} dimension(s) of bytes: "
            f"it starts with 0x{header[:4].hex()} and not 0x{magic.hex()}."
        )
    if len(header) < 4 + 4 * num_dims:
        raise DataError(f"{path} is truncated: it has {len(header)} bytes, less than an idx header; replace it.")
    items, *shape = struct.unpack(f">{num_dims}I", header[4:])
    if tuple(shape) != item_shape:
        raise DataError(f"{path} holds items of {_times(shape)}, and {_times(item_shape)} is wanted.")
    if items == 0:
        raise DataError(f"{path} holds no items.")
    expected = items * math.prod(item_shape)
    if expected > LARGEST_BYTES:
        raise DataError(f"{path} claims {items} items, {expected} bytes, which no file of its kind has; replace it.")
    payload = bytearray()  # piece by piece: what a header claims need not be there
    while piece := file.read(min(_PIECE_BYTES, expected + 1 - len(payload))):  # one more, to see one that is too long
        payload += piece
    if len(payload) != expected:
        wrong = f"truncated: {len(payload)} of" if len(payload) < expected else "too long: more than"
        raise DataError(f"{path} is {wrong} {expected} bytes of data; replace it.")
    return np.frombuffer(payload, dtype=np.uint8).reshape(items, *item_shape)


def _times(shape: tuple[int, ...] | list[int]) -> str:
    return "x".join(map(str, shape)) or "one byte"
