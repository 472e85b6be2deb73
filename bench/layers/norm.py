"""Batch-norm that keeps no more than it must: its input and two numbers per channel, and one bit per rectified value.

Same parameters, buffers and float32 numerics as ``nn.BatchNorm2d`` (Ioffe and Szegedy, arXiv 1502.03167); on a CPU with
the compiled pieces a forward reads its input twice and a backward twice. A ReLU that follows can be taken in. With
``compact`` the input is kept in bfloat16, each value within 2⁻⁸ of itself (docs/method.md section 7: what gradients
make of it).
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
from bench.layers.activation import flags_of, rectify
from bench.layers.handover import (
    AMAX,
    CODES,
    PENDING,
    STATISTICS,
    SUMS,
    Pending,
    Readers,
    can_hand_over,
    leave,
    placeholder,
    take,
    take_out,
)
from bench.layers.join import rectified_codes
from bench.layers.operands import channels_first
from bench.native import pointer
from bench.native.bits import unpack_bits

NO_ACTIVATION = 0.0  # as a ceiling: nothing is rectified


class LeanBatchNorm2d(nn.BatchNorm2d):
    """Replaces ``nn.BatchNorm2d``: the very same parameters and buffers.

    ``ceiling`` is that of the activation taken in: infinite for ReLU, 6 for ReLU6, ``NO_ACTIVATION`` for none.
    """

    def __init__(
        self, source: nn.BatchNorm2d, name: str, *, ceiling: float = NO_ACTIVATION, compact: bool = False
    ) -> None:
        """Take over a layer's parameters and running statistics.

        Args:
            source: the layer, with weight and bias.
            name: its name in the model.
            ceiling: of the activation that follows and is taken in.
            compact: keep the input in bfloat16.
        """
        nn.Module.__init__(self)
        self.num_features, self.eps, self.momentum = source.num_features, source.eps, source.momentum
        self.affine, self.track_running_stats = source.affine, source.track_running_stats
        self.weight, self.bias = source.weight, source.bias
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(key, getattr(source, key))
        self.training = source.training
        self.name, self.ceiling, self.compact = name, ceiling, compact
        self.readers: Readers | None = None  # of the rectified output
        self.joined: tuple[nn.Module, ...] = ()  # the join that alone reads the output, and all on the way to it

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape, channels last in memory where it trains."""
        plain = not (self.training and torch.is_grad_enabled() and input.dtype == torch.float32 and input.dim() == 4)
        # what does not fit is torch's to refuse
        if plain or input.shape[1] != self.num_features or input.numel() <= input.shape[1] or not self._is_usual(input):
            y = super().forward(input)
            return y if self.ceiling == NO_ACTIVATION else rectify(y, self.ceiling, inplace=True)
        weight, bias = self.weight.contiguous(), self.bias.contiguous()
        rectified: Tensor = _Norm.apply(input, weight, bias, self, take_out(input, STATISTICS))
        return rectified

    def _is_usual(self, input: Tensor) -> bool:
        """Whether parameters and statistics are float32 and where the input is; torch refuses what is not."""
        own = (self.weight, self.bias, self.running_mean, self.running_var)
        return all(t is None or (t.dtype == torch.float32 and t.device == input.device) for t in own)

    def running(self) -> tuple[Tensor | None, Tensor | None, float]:
        """The running mean and variance, and how much of a batch's goes into them; counts the batch."""
        if not self.track_running_stats or self.running_mean is None:
            return None, None, 0.0
        assert self.num_batches_tracked is not None, "statistics are tracked"
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        return self.running_mean, self.running_var, share

    def extra_repr(self) -> str:
        """Sizes, and what is different."""
        taken = {NO_ACTIVATION: "none", math.inf: "relu"}.get(self.ceiling, f"relu{self.ceiling:g}")
        return f"{super().extra_repr()}, activation={taken}, compact={self.compact}"


class _Norm(Function):
    """Saves the input, mean and inverse deviation, and the bits of the activation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: LeanBatchNorm2d, statistics: Tensor | None
    ) -> Tensor:
        x_nhwc = x.permute(0, 2, 3, 1).contiguous()
        with span("norm", layer=layer.name, gemm="fprop"):
            if native.usable(x.device):
                y, kept, mean, inverse, bits = _compiled_forward(x_nhwc, weight, bias, layer, statistics)
            else:
                y, kept, mean, inverse, bits = _plain_forward(x_nhwc, weight, bias, layer)
        ctx.layer = layer
        ctx.save_for_backward(kept, weight, mean, inverse, bits)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        kept, weight, mean, inverse, bits = ctx.saved_tensors
        sums = take(grads[0], SUMS)
        grad = grads[0].permute(0, 2, 3, 1).contiguous()
        with span("norm", layer=ctx.layer.name, gemm="dgrad"):
            if native.usable(grad.device):
                dx, d_weight, d_bias, amax = _compiled_backward(grad, kept, weight, mean, inverse, bits, sums)
            else:
                dx, d_weight, d_bias, amax = _plain_backward(grad, kept, weight, mean, inverse, bits)
        dx = dx.permute(0, 3, 1, 2)
        return dx if amax is None else leave(dx, AMAX, amax), d_weight, d_bias, None, None


Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
Backward = tuple[Tensor, Tensor, Tensor, float | None]  # and the largest |dx|, where it was seen


def _compiled_forward(
    x: Tensor, weight: Tensor, bias: Tensor, layer: LeanBatchNorm2d, statistics: Tensor | None
) -> Forward:
    lib, channels = native.compiled(), x.shape[-1]
    rows = x.numel() // channels
    if statistics is None:
        statistics = torch.empty(2, channels, dtype=torch.float64)
        lib.norm_stats(pointer(x), rows, channels, pointer(statistics[0]), pointer(statistics[1]))
    numbers = torch.empty(4, channels)
    mean, inverse, factor, shift = numbers
    running_mean, running_var, share = layer.running()
    dense_mean, dense_var = (None if each is None else each.contiguous() for each in (running_mean, running_var))
    lib.norm_factors(
        pointer(statistics[0]), pointer(statistics[1]), rows, channels, layer.eps, pointer(weight), pointer(bias),
        pointer(mean), pointer(factor), pointer(shift), pointer(inverse), pointer(dense_mean), pointer(dense_var),
        share,
    )  # fmt: skip
    for kept, written in ((running_mean, dense_mean), (running_var, dense_var)):
        if kept is not None and written is not None and written is not kept:
            kept.copy_(written)
    halves = torch.empty_like(x, dtype=torch.bfloat16) if layer.compact else None
    kept = x if halves is None else halves
    pending = Pending(x=x, kept=kept, mean=mean, factor=factor, shift=shift)
    if layer.ceiling != NO_ACTIVATION:
        y, bits, left = rectified_codes(
            x, None, layer.readers, layer.ceiling, pending=pending, norm_input=kept, halves=halves
        )
        return y if left is None else leave(y, CODES, left), kept, mean, inverse, bits
    if layer.joined and can_hand_over(x, layer.joined):
        n, h, w, _ = x.shape
        if halves is not None:
            halves.copy_(x)
        return leave(placeholder((n, channels, h, w)), PENDING, pending), kept, mean, inverse, None
    y = torch.empty_like(x)
    lib.norm_apply(
        pointer(x), pointer(y), rows, channels, pointer(mean), pointer(factor), pointer(shift), pointer(halves)
    )
    return channels_first(y), kept, mean, inverse, None


def _compiled_backward(
    grad: Tensor, kept: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, bits: Tensor | None, sums: Tensor | None
) -> Backward:
    lib, channels = native.compiled(), grad.shape[-1]
    rows = grad.numel() // channels
    x, halves = (kept, None) if kept.dtype == torch.float32 else (None, kept)
    if sums is None:
        sums = torch.empty(2, channels, dtype=torch.float64)
        lib.norm_sums(
            pointer(grad), pointer(x), pointer(halves), pointer(bits), None, rows, channels, pointer(mean),
            pointer(sums[0]), pointer(sums[1]),
        )  # fmt: skip
    else:
        bits = None  # whoever summed it up has masked it
    factor, slope, shift = torch.empty(3, channels)
    d_weight, d_bias = torch.empty(channels), torch.empty(channels)
    lib.norm_slopes(
        pointer(sums[0]), pointer(sums[1]), rows, channels, pointer(weight), pointer(inverse), pointer(factor),
        pointer(slope), pointer(shift), pointer(d_weight), pointer(d_bias),
    )  # fmt: skip
    dx = torch.empty_like(grad)
    amax = lib.norm_backward(
        pointer(grad), pointer(x), pointer(halves), pointer(bits), pointer(dx), rows, channels, pointer(mean),
        pointer(factor), pointer(slope), pointer(shift),
    )  # fmt: skip
    return dx, d_weight, d_bias, amax


def _plain_forward(x: Tensor, weight: Tensor, bias: Tensor, layer: LeanBatchNorm2d) -> Forward:
    """The same in torch's own operators."""
    flat = x.permute(0, 3, 1, 2)
    y, mean, inverse = torch.native_batch_norm(flat, weight, bias, None, None, True, 0.0, layer.eps)
    rows = x.numel() // x.shape[-1]
    variance = inverse.double().pow(-2).sub_(layer.eps)
    running_mean, running_var, share = layer.running()
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, share)
        running_var.lerp_((variance * (rows / (rows - 1))).float(), share)
    y, bits = y.permute(0, 2, 3, 1).contiguous(), None
    if layer.ceiling != NO_ACTIVATION:
        bits = flags_of(y, layer.ceiling)
        y.clamp_(0, layer.ceiling)
    return channels_first(y), x.bfloat16() if layer.compact else x, mean, inverse, bits


def _plain_backward(
    grad: Tensor, kept: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, bits: Tensor | None
) -> Backward:
    if bits is not None:
        grad = grad * unpack_bits(bits, grad.shape)
    dx, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
        grad.permute(0, 3, 1, 2), kept.float().permute(0, 3, 1, 2), weight, None, None, mean, inverse, True, 0.0,
        (True, True, True),
    )  # fmt: skip
    return dx.permute(0, 2, 3, 1), d_weight, d_bias, None
