"""The end of a residual block, ReLU of a sum, as one module: what stands between batch-norm and the next convolution.

``AddReLU`` is what networks are written with, in torch's own operators; conversion swaps it for ``LeanAddReLU``, which
normalises, adds, rectifies and makes the next convolution's codes in one pass where a trace has shown that it may.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bench import native
from bench.kernels.spans import span
from bench.layers.activation import _Rectify
from bench.layers.handover import (
    CODES,
    PADDED,
    PENDING,
    SUMS,
    Codes,
    Padded,
    Pending,
    Readers,
    Residual,
    can_hand_over,
    leave,
    placeholder,
    take,
)
from bench.layers.operands import Packed, channels_first
from bench.native import pointer
from bench.native.bits import packed_size
from bench.quantizers.dorefa import activation_grid, code_numbers


class AddReLU(nn.Module):
    """ReLU of a sum, in place of its first operand."""

    def forward(self, out: Tensor, shortcut: Tensor) -> Tensor:
        """Two tensors of one shape."""
        out += shortcut  # batch-norm saves its input, not its output: adding in place is safe
        return torch.relu_(out)


class LeanAddReLU(nn.Module):
    """Replaces ``AddReLU``: the same values and gradients, one bit per value kept."""

    ceiling = math.inf
    inplace = True

    def __init__(self, source: AddReLU, name: str) -> None:
        """Take over ``source``, called ``name`` in its model."""
        super().__init__()
        self.training = source.training
        self.name = name
        self.readers: Readers | None = None
        # whether the shortcut's input goes to the bypassed convolution and here, and nowhere else
        self.hands_gradient_over = False

    def forward(self, out: Tensor, shortcut: Tensor) -> Tensor:
        """Two tensors of one shape."""
        pending: Pending | None = take(out, PENDING)
        if pending is not None or self._is_lean(out, shortcut):
            if shortcut.shape != out.shape or shortcut.dtype != out.dtype:
                shortcut = shortcut.expand_as(out).to(out.dtype)
            left: Codes | Padded | None = take(shortcut, CODES) or take(shortcut, PADDED)
            joined: Tensor = _Join.apply(out, shortcut, self, pending, left if self.hands_gradient_over else None)
            return joined
        out += shortcut
        if not (torch.is_grad_enabled() and out.requires_grad and out.dtype == torch.float32):
            return torch.relu_(out)
        if not (out.is_contiguous() or out.is_contiguous(memory_format=torch.channels_last)):
            return torch.relu_(out)
        rectified: Tensor = _Rectify.apply(out, self)
        return rectified

    def _is_lean(self, out: Tensor, shortcut: Tensor) -> bool:
        fits = out.dim() == 4 and out.shape == shortcut.shape and out.dtype == shortcut.dtype == torch.float32
        watched = () if self.readers is None else self.readers.watched
        return fits and torch.is_grad_enabled() and out.requires_grad and can_hand_over(out, (self, *watched))


class _Join(Function):
    """Saves the ReLU's bits, and batch-norm's input where its output was pending."""

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        shortcut: Tensor,
        layer: LeanAddReLU,
        pending: Pending | None,
        source: Codes | Padded | None,
    ) -> Tensor:
        with span("activation", layer=layer.name, gemm="fprop"):
            other = shortcut.permute(0, 2, 3, 1).contiguous()
            x = out.permute(0, 2, 3, 1).contiguous() if pending is None else pending.x
            kept = None if pending is None else pending.kept
            y, gate, left = rectified_codes(
                x, other, layer.readers, layer.ceiling, pending=pending, norm_input=kept
            )  # fmt: skip
        ctx.layer, ctx.residual = layer, None if source is None else source.residual
        ctx.padding = source.padding if isinstance(source, Padded) else None
        ctx.save_for_backward(gate, *(() if pending is None else (pending.kept, pending.mean)))
        return y if left is None else leave(y, CODES, left)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        gate, *norm = ctx.saved_tensors
        sums = take(grads[0], SUMS)
        grad = grads[0].permute(0, 2, 3, 1).contiguous()
        if sums is None:
            with span("activation", layer=ctx.layer.name, gemm="dgrad"):
                lib, channels = native.compiled(), grad.shape[-1]
                # without a gate the convolutions that read the codes have applied it
                kept = grad if gate is None else torch.empty_like(grad)
                if norm:
                    x, halves = (norm[0], None) if norm[0].dtype == torch.float32 else (None, norm[0])
                    sums = torch.empty(2, channels, dtype=torch.float64)
                    written = None if gate is None else pointer(kept)
                    lib.norm_sums(
                        pointer(grad), pointer(x), pointer(halves), pointer(gate), written, grad.numel() // channels,
                        channels, pointer(norm[1]), pointer(sums[0]), pointer(sums[1]),
                    )  # fmt: skip
                elif gate is not None:
                    lib.rectify_backward(pointer(grad), pointer(gate), pointer(kept), grad.numel())
            grad = kept
        dx = grad.permute(0, 3, 1, 2)
        if sums is not None:
            leave(dx, SUMS, sums)
        if ctx.residual is None or not ctx.needs_input_grad[1]:
            return dx, grad.permute(0, 3, 1, 2), None, None, None  # without the sums, which are another norm's
        ctx.residual.gradient, ctx.residual.padding = grad, ctx.padding
        return dx, None, None, None, None


def rectified_codes(
    x: Tensor,
    residual: Tensor | None,
    readers: Readers | None,
    ceiling: float,
    *,
    pending: Pending | None,
    norm_input: Tensor | None,
    halves: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Codes | None]:
    """Normalise, add, rectify and quantize in one pass.

    Args:
        x: (N, H, W, C) float32, contiguous.
        residual: the same shape, added before the ReLU; or None.
        readers: who reads the result; None for nobody known.
        ceiling: of the ReLU.
        pending: the numbers to normalise with; None leaves ``x`` as it is.
        norm_input: what backward keeps of batch-norm's input, for who sums up the gradient; None if there is none.
        halves: takes ``x`` in bfloat16, or None.

    Returns:
        The rectified output (N, C, H, W), a placeholder where its readers take codes alone; the packed flags of the
        ReLU, None where those of the codes hold them too; and the codes, None if nobody wants any.
    """
    n, h, w, channels = x.shape
    bits = None if readers is None else readers.bits(x)
    only_codes = bits is not None and readers is not None and not readers.others
    y = None if only_codes else torch.empty_like(x)
    size = packed_size(x.numel())
    gate = torch.empty(size, dtype=torch.uint8)
    codes = inside = None
    levels = offset = 0.0
    if bits is not None:
        codes = torch.empty_like(x, dtype=torch.int8)
        inside = None if only_codes else torch.empty(size, dtype=torch.uint8)
        levels, offset = code_numbers(bits)
    mean, factor, shift = (None, None, None) if pending is None else (pending.mean, pending.factor, pending.shift)
    finite = native.compiled().norm_codes(
        pointer(x), pointer(residual), pointer(y), pointer(codes), x.numel() // channels, channels, pointer(mean),
        pointer(factor), pointer(shift), pointer(gate), pointer(inside), ceiling, pointer(halves), levels, offset,
    )  # fmt: skip
    result = placeholder((n, channels, h, w)) if y is None else channels_first(y)
    if bits is None or codes is None or readers is None:
        return result, gate, None
    left = Codes(
        operand=activation_grid(codes, bits, finite=bool(finite)),
        inside=gate if inside is None else inside,
        gate=None if inside is None else gate,
        norm_input=norm_input,
        mean=mean,
        sole=only_codes and len(readers.layers) == 1,
        residual=Residual(),
        packed=Packed(),
    )
    return result, None if inside is None else gate, left
