"""Exact sums of products on affine grids, and the single step from integers to floats.

A grid's values are integers ``mult·code + offset`` times a scale. The sum over K of (m_a·a + o_a)·(m_b·b + o_b) is
``m_a·m_b·Σab + o_a·m_b·Σb + o_b·Σ(m_a·a + o_a)``: everything stays integer until ``dequantize``.

Source: docs/method.md section 2 (the table of exact integer forms).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.kernels.int_mm import INT32_MAX


def combine(
    acc: Tensor, *, factor: int, rows: Tensor | None = None, columns: Tensor | None = None, bound: int
) -> Tensor:
    """Add zero-point sums to a product's sums, exactly.

    Args:
        acc: integer sums Σab, int32 or int64; left as they are.
        factor: m_a·m_b.
        rows: integers broadcastable to ``acc``, o_b·Σ(m_a·a + o_a); int32 or int64.
        columns: integers broadcastable to ``acc``, o_a·m_b·Σb; int32 or int64.
        bound: largest possible |total|: terms × largest |value| of a × largest |value| of b.

    Returns:
        Integers shaped as ``acc``: int32 if ``bound`` ≤ 2³¹ − 1 (then wrapped intermediate sums still end exact), int64
        otherwise.
    """
    wide = acc.dtype == torch.int64 or bound > INT32_MAX
    if wide:
        acc = acc.to(torch.int64)
    total = acc * factor if rows is None else torch.add(rows.to(acc.dtype), acc, alpha=factor)
    if columns is not None:
        total.add_(columns.to(total.dtype))
    return total


def dequantize(total: Tensor, scale: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Integers times the value of one: rounds once to float32, then multiplies.

    Args:
        total: exact integers.
        scale: () float32, or broadcastable to ``total``.
        out: float32 shaped as ``total``; a fresh contiguous tensor if not given.

    Returns:
        ``out``.
    """
    values = torch.empty(total.shape, dtype=torch.float32, device=total.device) if out is None else out
    return values.copy_(total).mul_(scale)
