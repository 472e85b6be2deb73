"""ReLU and ReLU6 that keep one bit per value for backward, where torch keeps the output in float32."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bench import native
from bench.kernels.spans import span
from bench.native import pointer
from bench.native.bits import pack_bits, packed_size, unpack_bits

CEILINGS: dict[type[nn.Module], float] = {nn.ReLU: math.inf, nn.ReLU6: 6.0}


class LeanReLU(nn.Module):
    """Replaces ``nn.ReLU`` and ``nn.ReLU6``: the same values and gradients."""

    def __init__(self, source: nn.Module, name: str) -> None:
        """Take over the activation ``source``, called ``name`` in its model."""
        super().__init__()
        self.ceiling = CEILINGS[type(source)]
        self.inplace = bool(source.inplace)
        self.training = source.training
        self.name = name

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; in place if the source was."""
        if not (torch.is_grad_enabled() and input.requires_grad and input.dtype == torch.float32 and _is_dense(input)):
            return rectify(input, self.ceiling, inplace=self.inplace)
        y: Tensor = _Rectify.apply(input, self)
        return y

    def extra_repr(self) -> str:
        """The ceiling."""
        return f"ceiling={self.ceiling:g}"


class _Rectify(Function):
    """Saves packed flags in the order of the input's memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: LeanReLU) -> Tensor:
        ceiling = layer.ceiling
        if layer.inplace:
            ctx.mark_dirty(x)
        with span("activation", layer=layer.name, gemm="fprop"):
            y = x if layer.inplace else torch.empty_like(x)
            if native.usable(x.device):
                bits = torch.empty(packed_size(x.numel()), dtype=torch.uint8)
                native.compiled().rectify(pointer(x), pointer(y), pointer(bits), x.numel(), ceiling)
            else:
                flat = _by_memory(x)
                bits = flags_of(flat, ceiling)
                torch.clamp(x, 0, ceiling, out=y)
        ctx.layer, ctx.strides = layer, x.stride()
        ctx.save_for_backward(bits)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (bits,) = ctx.saved_tensors
        grad = grads[0]
        with span("activation", layer=ctx.layer.name, gemm="dgrad"):
            if grad.stride() != ctx.strides:
                grad = torch.empty_strided(grad.shape, ctx.strides, dtype=grad.dtype, device=grad.device).copy_(grad)
            dx = torch.empty_like(grad)
            if native.usable(grad.device):
                native.compiled().rectify_backward(pointer(grad), pointer(bits), pointer(dx), grad.numel())
            else:
                flat = _by_memory(grad)
                _by_memory(dx).copy_(torch.where(unpack_bits(bits, flat.shape).view(torch.bool), flat, 0.0))
        return dx, None


def rectify(x: Tensor, ceiling: float, *, inplace: bool) -> Tensor:
    """ReLU, or ReLU6 and the like where the ceiling is finite, by torch's own operators."""
    if math.isinf(ceiling):
        return F.relu(x, inplace=inplace)
    return F.hardtanh(x, 0.0, ceiling, inplace=inplace)


def flags_of(x: Tensor, ceiling: float) -> Tensor:
    """Packed flags of the values that pass a gradient: all but x ≤ 0 and, where the ceiling is finite, x ≥ ceiling."""
    stopped = x <= 0
    return pack_bits((stopped if math.isinf(ceiling) else stopped.logical_or_(x >= ceiling)).logical_not_())


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def _by_memory(x: Tensor) -> Tensor:
    """All values of a dense tensor in the order of its memory."""
    return x.as_strided((x.numel(),), (1,))
