"""Option A's shortcut between stages of a residual network: pixels left out, channels of zeros added, no weights.

Source: He et al., Deep Residual Learning, arXiv 1512.03385, section 4.2. ``PadShortcut`` is what networks are written
with, in torch's own operators; conversion swaps it for ``LeanPadShortcut``, which keeps nothing for backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bench import native
from bench.kernels.spans import span
from bench.layers.handover import CODES, PADDED, Codes, Padded, Padding, can_hand_over, leave, take
from bench.layers.operands import channels_first
from bench.native import pointer


class PadShortcut(nn.Module):
    """Every second pixel, new channels zero. Keeps the memory format of its input."""

    def __init__(self, new_channels: int, stride: int) -> None:
        """``new_channels`` is how many channels to add, an even number."""
        super().__init__()
        assert new_channels % 2 == 0, f"channels are added half before, half after, not {new_channels}"
        self.stride, self.half_channels = stride, new_channels // 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + new, ceil(H / stride), ceil(W / stride))."""
        # a 1x1 mean copies every second pixel; a slice of an odd size would leave channels-last, and so its gradient
        subsampled = F.avg_pool2d(x, 1, self.stride)
        return F.pad(subsampled, (0, 0, 0, 0, self.half_channels, self.half_channels))


class LeanPadShortcut(PadShortcut):
    """Replaces ``PadShortcut``: the same values and gradients, nothing kept."""

    def __init__(self, source: PadShortcut, name: str) -> None:
        """Take over ``source``, called ``name`` in its model."""
        super().__init__(2 * source.half_channels, source.stride)
        self.training = source.training
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + new, ceil(H / stride), ceil(W / stride))."""
        lean = torch.is_grad_enabled() and x.requires_grad and x.dtype == torch.float32 and x.dim() == 4
        if not (lean and native.usable(x.device) and x.is_contiguous(memory_format=torch.channels_last)):
            return super().forward(x)
        y: Tensor = _Pad.apply(x, self)
        left: Codes | None = take(x, CODES)
        if left is None or not can_hand_over(x, (self,)):
            return y
        return leave(y, PADDED, Padded(residual=left.residual, padding=self.padding))

    @property
    def padding(self) -> Padding:
        """How the output is made."""
        return Padding(half_channels=self.half_channels, stride=self.stride)


class _Pad(Function):
    """Saves no tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: LeanPadShortcut) -> Tensor:
        n, c, h, w = x.shape
        with span("activation", layer=layer.name, gemm="fprop"):
            padding = layer.padding
            half, stride = padding.half_channels, padding.stride
            y = torch.empty(n, -(-h // stride), -(-w // stride), c + 2 * half)
            native.compiled().pad_shortcut(pointer(x.permute(0, 2, 3, 1)), pointer(y), n, h, w, c, half, stride)
        # not ctx.name: that is a method of the graph's nodes, which profilers call
        ctx.layer_name, ctx.padding, ctx.shape = layer.name, padding, (n, h, w, c)
        ctx.set_materialize_grads(False)  # None where the join handed the gradient to the bypassed convolution
        return channels_first(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        if grads[0] is None:
            return None, None
        with span("activation", layer=ctx.layer_name, gemm="dgrad"):
            grad = grads[0].permute(0, 2, 3, 1).contiguous()
            dx = torch.empty(ctx.shape)
            _send_back(grad, dx, ctx.padding, added=False)
        return dx.permute(0, 3, 1, 2), None


def add_padded(dx: Tensor, gradient: Tensor, padding: Padding) -> None:
    """Add a padding shortcut's gradient (N, P, Q, C + new) to that of its input, (N, H, W, C), in place."""
    if dx.is_contiguous():
        _send_back(gradient, dx, padding, added=True)
    else:  # torch's own products, with dispatch=simulate
        channels = slice(padding.half_channels, padding.half_channels + dx.shape[-1])
        dx[:, :: padding.stride, :: padding.stride].add_(gradient[..., channels])


def _send_back(grad: Tensor, dx: Tensor, padding: Padding, *, added: bool) -> None:
    native.compiled().pad_shortcut_backward(
        pointer(grad), pointer(dx), *dx.shape, padding.half_channels, padding.stride, added
    )
