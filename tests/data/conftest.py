"""Small files in the true formats."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

IdxArrays = dict[str, NDArray[np.uint8]]


@pytest.fixture
def idx_bytes() -> Callable[[NDArray[np.uint8]], bytes]:
    """An array as an idx file's bytes."""

    def encode(array: NDArray[np.uint8]) -> bytes:
        return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()

    return encode


@pytest.fixture
def fashion_arrays() -> IdxArrays:
    """Twelve training and five test garments."""
    generator = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": generator.integers(0, 256, (12, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": generator.integers(0, 10, 12, dtype=np.uint8),
        "t10k-images-idx3-ubyte": generator.integers(0, 256, (5, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": generator.integers(0, 10, 5, dtype=np.uint8),
    }


@pytest.fixture
def write_fashion(
    fashion_arrays: IdxArrays, idx_bytes: Callable[[NDArray[np.uint8]], bytes]
) -> Callable[[Path, bool], None]:
    """Write the four files into a folder, packed or not."""

    def write(folder: Path, packed: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in fashion_arrays.items():
            content = idx_bytes(array)
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content, mtime=0) if packed else content)

    return write
