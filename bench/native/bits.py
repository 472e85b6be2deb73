"""Flags packed eight to a byte, the first one lowest: what backward needs to know about a value in one bit."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_size(count: int) -> int:
    """Bytes that hold ``count`` flags."""
    return -(-count // 8)


def pack_bits(flags: Tensor) -> Tensor:
    """Flags of any shape, bool or integers 0 and 1, as (ceil(count / 8),) uint8."""
    flat = flags.reshape(-1).to(torch.uint8)
    short = -flat.numel() % 8
    if short:
        flat = torch.cat((flat, flat.new_zeros(short)))
    return flat.view(-1, 8).bitwise_left_shift_(_places(flat.device)).sum(1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """The flags as int8 0 and 1 of ``shape``."""
    flags = bits.unsqueeze(1).bitwise_right_shift(_places(bits.device)).bitwise_and_(1)
    return flags.view(-1)[: torch.Size(shape).numel()].view(shape).view(torch.int8)


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
