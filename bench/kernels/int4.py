"""INT4 codes two to a byte, and the label of what multiplied them.

No native INT4 kernel exists here yet: INT4 codes are multiplied in int8 containers, which gives the same integers. The
label says so (docs/method.md section 2); packed memory is reported apart from speed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench import native
from bench.errors import ShapeError
from bench.native import pointer

INT4_BITS = 4


def packed_int4_size(count: int) -> int:
    """Bytes that hold ``count`` codes."""
    return -(-count // 2)


def pack_int4(codes: Tensor) -> Tensor:
    """Store codes −8..7 two to a byte, the even positions in the low half.

    Args:
        codes: int8 of any shape, values in −8..7 (the caller promises the range).

    Returns:
        (ceil(numel / 2),) uint8.

    Raises:
        ShapeError: for another dtype.
    """
    if codes.dtype != torch.int8:
        raise ShapeError(f"pack_int4: codes are {codes.dtype}; give torch.int8 codes in -8..7")
    flat = codes.reshape(-1)
    if native.usable(flat.device):
        packed = torch.empty(packed_int4_size(flat.numel()), dtype=torch.uint8)
        native.compiled().pack_nibbles(pointer(flat), pointer(packed), flat.numel())
        return packed
    if flat.numel() % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    bits = flat.view(torch.uint8)
    return (bits[0::2] & 0xF) | (bits[1::2] << 4)


def unpack_int4(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo ``pack_int4``.

    Args:
        packed: (ceil(numel / 2),) uint8.
        shape: shape of the codes.

    Returns:
        int8 codes of that shape.

    Raises:
        ShapeError: if the packed length does not hold that shape.
    """
    size = torch.Size(shape).numel()
    if packed.dtype != torch.uint8 or packed.numel() != packed_int4_size(size):
        raise ShapeError(
            f"unpack_int4: {packed.numel()} bytes of {packed.dtype} do not hold {size} codes; give what pack_int4 made"
        )
    if native.usable(packed.device):
        codes = torch.empty(shape, dtype=torch.int8)
        native.compiled().unpack_nibbles(pointer(packed.contiguous()), pointer(codes), size)
        return codes
    pairs = torch.stack([packed << 4, packed & 0xF0], dim=1).view(torch.int8)
    return (pairs.reshape(-1)[:size] >> 4).view(shape)


def gemm_label(a_bits: int, b_bits: int) -> str:
    """What an integer product of these bits is called: ``emulated`` if both fit INT4 units, else ``integer``."""
    return "emulated" if max(a_bits, b_bits) <= INT4_BITS else "integer"
