"""Codes of 16 and 24 bits as two and three int8 grids whose sum they are, so that integer products stay exact.

A code q is Σ_i b_i·256^i with signed bytes b_i in −128..127. Signed bytes reach 127·257 = 32,639 at 16 bits and
8,355,711 at 24, not 2^(n−1) − 1: that is the largest code here. An 8-bit code is its one byte.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.quantizers.base import Grids, QTensor

WIDTHS = (8, 16, 24)
_BYTE = 256


def largest_code(bits: int) -> int:
    """Largest code of that many bits: 127, 32,639 or 8,355,711."""
    assert bits in WIDTHS, f"codes have {WIDTHS} bits, not {bits}"
    return int(127 * sum(_BYTE**i for i in range(bits // 8)))


def byte_grids(codes: Tensor, scale: Tensor, bits: int) -> Grids:
    """Split codes into bytes, the highest first.

    Args:
        codes: integers within ±``largest_code(bits)``, as float32.
        scale: () float32, value of one code.
        bits: 8, 16 or 24.

    Returns:
        ``bits``/8 grids with mult 1, offset 0 and scales scale·256^i, which add up to codes·scale.
    """
    grids: list[QTensor] = []
    for index in range(bits // 8 - 1):
        carried = torch.floor((codes + _BYTE // 2) / _BYTE)  # exact: below 2^24, and a power of two
        grids.append(_grid(codes - carried * _BYTE, scale * _BYTE**index, bits, code_max=_BYTE // 2))
        codes = carried
    top = 127 if bits == 8 else _BYTE // 2
    grids.append(_grid(codes, scale * _BYTE ** (bits // 8 - 1), bits, code_max=top))
    return tuple(reversed(grids))


def _grid(byte: Tensor, scale: Tensor, bits: int, *, code_max: int) -> QTensor:
    return QTensor(
        codes=byte.to(torch.int8), scale=scale, mult=1, offset=0, bits=bits, code_max=code_max, value_max=code_max
    )
