"""A convolution's three products on integer codes, dequantized: codes and scales in, float32 out.

Source: docs/method.md sections 2 and 5. Shapes: N images, C channels, H×W input, O output channels, R×S kernel, P×Q
output. Codes are kept channels-last, (N, H, W, C) and (O, R, S, C).
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import native
from bench.kernels import affine, conv, conv_native
from bench.kernels.conv_native import Grids, fits
from bench.kernels.conv_plan import ConvPlan, split_images
from bench.kernels.landing import After
from bench.native.bits import unpack_bits
from bench.quantizers.base import QTensor


def integer_fprop(
    a: QTensor, w: QTensor, plan: ConvPlan, layer: str, *, bias: Tensor | None = None, after: After | None = None
) -> Tensor:
    """Dequantized output of an integer convolution.

    Args:
        a: codes (N, H, W, C) on a grid with mult 1 that has a zero, for the spatial padding.
        w: codes (O, R, S, C/groups), one scale, or one (O, 1, 1, 1) per output channel.
        plan: the sizes.
        layer: name for the GEMM log.
        bias: (O,) float32, added at the end; or None.
        after: what the output is wanted for next, done where the compiled pieces can.

    Returns:
        (N, P, Q, O) float32, contiguous: one rounding of the exact sum, times the scales' product.
    """
    assert a.mult == 1, "an activation's grid has steps of one"
    more = w.offset * plan.reduction
    bound = plan.reduction * a.value_max * w.value_max
    scale = a.scale * (w.scale.view(-1) if w.scale.dim() else w.scale)
    grids = Grids(a_max=a.code_max, b_max=w.code_max, factor=w.mult, row_weight=w.offset, bound=bound)
    columns = None
    if native.usable(a.codes.device) and fits(grids):
        if a.offset:
            columns = conv_native.code_columns(w.codes, other=a.offset, mult=w.mult, more=more)
        return conv_native.fprop(
            a.codes, w.codes, plan, grids, pad_value=a.zero_code, columns=columns, scale=scale, bias=bias,
            layer=layer, after=after,
        )  # fmt: skip
    if a.offset:
        per_output = w.codes.sum((1, 2, 3), dtype=torch.int64).mul_(w.mult).add_(more)
        columns = per_output.mul_(a.offset)
    y = torch.empty(plan.n, plan.p, plan.q, plan.o, device=a.codes.device)
    by_group = (plan.groups, -1)
    for images, part in split_images(plan, a.codes.device.type):
        acc, sums = conv.fprop(
            a.codes[images], w.codes, part, pad_value=a.zero_code, a_max=a.code_max, w_max=w.code_max, layer=layer
        )
        total = affine.combine(
            acc.unflatten(1, by_group),
            factor=w.mult,
            rows=_weighted(sums, w.offset),
            columns=None if columns is None else columns.view(by_group),
            bound=bound,
        )
        affine.dequantize(total, scale.view(by_group) if scale.dim() else scale, out=y[images].view(total.shape))
    return y if bias is None else y.add_(bias)


def integer_dgrad(
    error: QTensor, w: QTensor, plan: ConvPlan, layer: str, *, inside: Tensor | None = None, after: After | None = None
) -> Tensor:
    """Dequantized error signal of the input, (N, H, W, C) float32.

    Args:
        error: codes (N, P, Q, O), one scale. Code 0 fills padding and strides; on a grid with an offset (DoReFa's) it
            would not be zero, so what the offset adds is summed over the true positions alone.
        w: codes (O, R, S, C/groups).
        plan: the sizes.
        layer: name for the GEMM log.
        inside: packed flags of the positions that pass a gradient; None if all do.
        after: what the error signal is wanted for next, done where the compiled pieces can.
    """
    scale = error.scale * w.scale
    columns = None if error.offset == 0 else offset_dgrad(error, w, plan, layer)
    bound = plan.r * plan.s * plan.o // plan.groups * error.value_max * w.value_max
    grids = Grids(
        a_max=error.code_max,
        b_max=w.code_max,
        factor=error.mult * w.mult,
        row_weight=error.mult * w.offset,
        bound=bound,
    )
    if native.usable(error.codes.device) and fits(grids):
        places = None if columns is None else columns.view(plan.h, plan.w, plan.c)
        return conv_native.dgrad(
            error.codes, w.codes, plan, grids, places=places, scale=scale, bits=inside, layer=layer, after=after
        )
    dx = torch.empty(plan.n, plan.h, plan.w, plan.c, device=error.codes.device)
    for images, part in split_images(plan, error.codes.device.type):
        acc, sums = conv.dgrad(
            error.codes[images], w.codes, part, err_max=error.code_max, w_max=w.code_max, layer=layer
        )
        total = affine.combine(
            acc.unflatten(3, (plan.groups, -1)),
            factor=error.mult * w.mult,
            rows=_weighted(sums, error.mult * w.offset),
            columns=columns,
            bound=bound,
        )
        affine.dequantize(total, scale, out=dx[images].view(total.shape))
    return dx if inside is None else dx.mul_(unpack_bits(inside, dx.shape))


def integer_wgrad(a: QTensor, error: QTensor, plan: ConvPlan, layer: str) -> tuple[Tensor, Tensor]:
    """Dequantized gradient of Ŵ, (O, R, S, C/groups) float32, and the sums of each channel's error codes, (O,).

    Args:
        a: codes (N, H, W, C).
        error: codes (N, P, Q, O), with one scale, or one (O,) per output channel.
        plan: the sizes.
        layer: name for the GEMM log.
    """
    assert a.mult == 1, "an activation's grid has steps of one"
    bound = plan.rows * a.value_max * error.value_max
    columns = None if error.offset == 0 else input_sums(a, plan).mul_(error.offset)
    grids = Grids(a_max=a.code_max, b_max=error.code_max, factor=error.mult, row_weight=0, bound=bound)
    if native.usable(a.codes.device) and conv_native.check_wgrad(plan, grids):
        sums = conv_native.channel_sums(error.codes)
        rows = sums * (a.offset * error.mult) if a.offset else None
        by_channel = error.scale.reshape(-1) if error.scale.dim() else error.scale
        dw = conv_native.wgrad(
            a.codes, error.codes, plan, grids, pad_value=a.zero_code, rows=rows, columns=columns,
            scale=a.scale * by_channel, layer=layer,
        )  # fmt: skip
        return dw, sums
    acc, sums = conv.wgrad(
        a.codes, error.codes, plan, pad_value=a.zero_code, a_max=a.code_max, err_max=error.code_max, layer=layer
    )
    rows = sums.to(torch.int64).mul_(a.offset * error.mult).view(-1, 1, 1, 1) if a.offset else None
    total = affine.combine(acc, factor=error.mult, rows=rows, columns=columns, bound=bound)
    by_channel = error.scale.view(-1, 1, 1, 1) if error.scale.dim() else error.scale
    return affine.dequantize(total, a.scale * by_channel), sums


def error_sum(sums: Tensor, error: QTensor, terms: int) -> Tensor:
    """The bias's gradient (O,) float32 from the sums of `terms` error codes per output channel."""
    if (error.mult, error.offset) != (1, 0):
        sums = sums.to(torch.int64).mul(error.mult).add_(terms * error.offset)
    return affine.dequantize(sums, error.scale)


def channel_sums(codes: Tensor) -> Tensor:
    """Σ of the codes per channel (last axis), int64."""
    if native.usable(codes.device):
        return conv_native.channel_sums(codes)
    return codes.view(-1, codes.shape[-1]).sum(0, dtype=torch.int64)


def offset_dgrad(error: QTensor, w: QTensor, plan: ConvPlan, layer: str) -> Tensor:
    """What the error grid's offset adds to every image's dgrad, (1, H, W, groups, C/groups) int64.

    The offset times Σ(m_w·w + o_w) over the taps that reach each position: the dgrad of one image of ones, whose frame
    of zeros is the mask of what padding, stride and dilation insert.
    """
    ones = torch.ones(1, plan.p, plan.q, plan.o, dtype=torch.int8, device=w.codes.device)
    acc, sums = conv.dgrad(ones, w.codes, dataclasses.replace(plan, n=1), err_max=1, w_max=w.code_max, layer=layer)
    total = acc.unflatten(3, (plan.groups, -1)).to(torch.int64) * (w.mult * error.offset)
    return total.add_(sums.unsqueeze(-1).to(torch.int64), alpha=w.offset * error.offset)


def input_sums(a: QTensor, plan: ConvPlan) -> Tensor:
    """Σ of the input's grid values that each weight meets, (O, R, S, C/groups) int64; padding is zero there."""
    values = a.codes.sum(0, dtype=torch.int64).add_(plan.n * a.offset)  # (H, W, C)
    (top, bottom), (left, right) = plan.padding
    values = F.pad(values, (0, 0, left, right, top, bottom))
    (sh, sw), (dh, dw) = plan.stride, plan.dilation
    rows = [slice(r * dh, r * dh + (plan.p - 1) * sh + 1, sh) for r in range(plan.r)]
    columns = [slice(s * dw, s * dw + (plan.q - 1) * sw + 1, sw) for s in range(plan.s)]
    taps = torch.stack([torch.stack([values[row, column].sum((0, 1)) for column in columns]) for row in rows])
    by_group = taps.unflatten(2, (plan.groups, -1)).permute(2, 0, 1, 3)  # (G, R, S, C/G)
    return by_group.repeat_interleave(plan.o // plan.groups, dim=0)


def _weighted(sums: Tensor, offset: int) -> Tensor | None:
    """Sums times the weight grid's offset, ready to broadcast over a group's channels."""
    if not offset:
        return None
    return (sums if offset == 1 else sums * offset).unsqueeze(-1)
