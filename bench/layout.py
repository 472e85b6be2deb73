"""Flat views in memory's order: a coordinate-wise update may take the weights in any order, and a copy costs a pass.

Convolution weights lie channels-last, so ``reshape(-1)`` would gather them anew each time. Ours.
"""

from __future__ import annotations

import torch
from torch import Tensor


def flat(values: Tensor) -> Tensor:
    """The numbers of a tensor as (n,): a view in memory's order where they lie without gaps, else a copy."""
    dense = _in_memory_order(values)
    return values.reshape(-1) if dense is None else dense.view(-1)


def laid_out_like(values: Tensor, like: Tensor) -> Tensor:
    """`values` itself, or a copy, so that ``flat`` puts it and `like`, of the same shape, into one order."""
    if values.stride() == like.stride() or (values.is_contiguous() and like.is_contiguous()):
        return values
    if _in_memory_order(like) is None:
        return values.contiguous()
    return torch.empty_like(like, dtype=values.dtype).copy_(values)


def unflat(values: Tensor, like: Tensor) -> Tensor:
    """Contiguous (n,) in the order of ``flat(like)`` as a view of `like`'s shape."""
    if like.is_contiguous() or _in_memory_order(like) is None:
        return values.view(like.shape)
    return values.as_strided(like.shape, like.stride(), values.storage_offset())


def _in_memory_order(values: Tensor) -> Tensor | None:
    """The tensor with its dimensions sorted from outer to inner; None where its numbers leave gaps."""
    if values.is_contiguous():
        return values
    strides = values.stride()
    sorted_dims = values.permute(sorted(range(values.dim()), key=lambda dim: -strides[dim]))
    return sorted_dims if sorted_dims.is_contiguous() else None
