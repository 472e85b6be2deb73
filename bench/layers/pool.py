"""Max pooling that keeps one byte per output for backward, where torch keeps its input and eight bytes per output."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bench import native
from bench.kernels.spans import span
from bench.layers.operands import channels_first
from bench.native import Geometry, pointer

Pair = tuple[int, int]
_MOST_TAPS = 254  # a byte names the tap, and 255 means none yet


class LeanMaxPool2d(nn.Module):
    """Replaces ``nn.MaxPool2d``: the same values and gradients; of equal values the first takes the gradient."""

    def __init__(self, source: nn.MaxPool2d, name: str) -> None:
        """Take over the pooling ``source``, called ``name`` in its model."""
        super().__init__()
        self.kernel, self.stride = _pair(source.kernel_size), _pair(source.stride)
        self.padding, self.dilation = _pair(source.padding), _pair(source.dilation)
        self.training = source.training
        self.name = name

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, P, Q)."""
        lean = torch.is_grad_enabled() and input.requires_grad and input.dtype == torch.float32 and input.dim() == 4
        if lean and native.usable(input.device) and all(self.out_size(input)):
            y: Tensor = _Pool.apply(input, self)
            return y
        return F.max_pool2d(input, self.kernel, self.stride, self.padding, self.dilation)

    def out_size(self, x: Tensor) -> Pair:
        """(P, Q); 0 where nothing is left."""
        sizes = (
            (size + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
            for size, pad, dilation, taps, stride in zip(
                x.shape[2:], self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        height, width = (max(0, size) for size in sizes)
        return height, width

    def extra_repr(self) -> str:
        """Sizes."""
        return f"kernel={self.kernel}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"


def can_replace(source: nn.MaxPool2d) -> bool:
    """Whether the lean pooling does what this one does."""
    kernel, padding, dilation = _pair(source.kernel_size), _pair(source.padding), _pair(source.dilation)
    fits = all(2 * pad <= step * (taps - 1) + 1 for pad, step, taps in zip(padding, dilation, kernel, strict=True))
    return fits and not (source.return_indices or source.ceil_mode) and kernel[0] * kernel[1] <= _MOST_TAPS


class _Pool(Function):
    """Saves which tap of its window each output came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: LeanMaxPool2d) -> Tensor:
        n, c, h, w = x.shape
        with span("pool", layer=layer.name, gemm="fprop"):
            geometry = _geometry(
                (n, c, h, w), layer.out_size(x), layer.kernel, layer.stride, layer.padding, layer.dilation
            )
            source = x.permute(0, 2, 3, 1).contiguous()
            y = torch.empty(n, *layer.out_size(x), c)
            taps = torch.empty(y.shape, dtype=torch.uint8)
            native.compiled().max_pool(pointer(source), pointer(y), pointer(taps), geometry)
        ctx.layer, ctx.geometry, ctx.shape = layer, geometry, (n, h, w, c)
        ctx.save_for_backward(taps)
        return channels_first(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (taps,) = ctx.saved_tensors
        with span("pool", layer=ctx.layer.name, gemm="dgrad"):
            grad = grads[0].permute(0, 2, 3, 1).contiguous()
            dx = torch.empty(ctx.shape)
            native.compiled().max_pool_backward(pointer(grad), pointer(taps), pointer(dx), ctx.geometry)
        return dx.permute(0, 3, 1, 2), None


@lru_cache(maxsize=256)
def _geometry(
    shape: tuple[int, int, int, int], out: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Geometry:
    n, c, h, w = shape
    return Geometry(
        n, h, w, c, 0, c, -padding[0], dilation[0], kernel[0], stride[0], out[0],
        -padding[1], dilation[1], kernel[1], stride[1], out[1], 1,
    )  # fmt: skip


def _pair(value: int | tuple[int, ...]) -> Pair:
    if isinstance(value, int):
        return value, value
    first, second = value
    return first, second
