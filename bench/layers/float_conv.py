"""A convolution's three products in floating point, on the layout of the integer ones: what they are held against.

Shapes: N images, C channels, H×W input, O output channels, R×S kernel, P×Q output.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.kernels.conv_plan import ConvPlan, Pair
from bench.kernels.spans import recording, span


def float_fprop(a_nhwc: Tensor, w_orsc: Tensor, plan: ConvPlan) -> Tensor:
    """(N, P, Q, O) of a floating-point convolution of the same sizes."""
    (x, padding), w = _input_of(a_nhwc, plan), _plain(w_orsc.permute(0, 3, 1, 2))
    y = F.conv2d(x, w, stride=plan.stride, padding=padding, dilation=plan.dilation, groups=plan.groups)
    return y.permute(0, 2, 3, 1).contiguous()


def float_backward(
    dx_error: Tensor,
    dw_error: Tensor,
    a_nhwc: Tensor,
    w_orsc: Tensor,
    plan: ConvPlan,
    needs: tuple[bool, bool],
    *,
    layer: str = "",
) -> tuple[Tensor | None, Tensor | None]:
    """Floating-point dgrad (N, H, W, C) and wgrad (O, R, S, C/groups), each only if needed.

    Args:
        dx_error: (N, P, Q, O) that dgrad reads.
        dw_error: (N, P, Q, O) that wgrad reads; the same tensor unless the quantizer makes two.
        a_nhwc: (N, H, W, C).
        w_orsc: (O, R, S, C/groups).
        plan: the sizes.
        needs: whether dgrad and wgrad are wanted.
        layer: the layer's name, for a span around each product; "" where the caller sets it. Products of one error
            signal are one call where nobody records spans.
    """
    (x, padding), w = _input_of(a_nhwc, plan), _plain(w_orsc.permute(0, 3, 1, 2))

    def backward(error_npqo: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
        error = _plain(error_npqo.permute(0, 3, 1, 2))
        dx, dw, _ = torch.ops.aten.convolution_backward(
            error, x, w, None, plan.stride, padding, plan.dilation, False, (0, 0), plan.groups, (*wanted, False)
        )
        return dx, dw

    dx = dw = None
    if all(needs) and dx_error is dw_error and not recording():
        dx, dw = backward(dx_error, (True, True))  # one call lays the error signal out once
    else:
        if needs[0]:
            with span("gemm", layer=layer, gemm="dgrad") if layer else nullcontext():
                dx, _ = backward(dx_error, (True, False))
        if needs[1]:
            with span("gemm", layer=layer, gemm="wgrad") if layer else nullcontext():
                _, dw = backward(dw_error, (False, True))
    if dx is not None:
        if dx.shape[2:] != (plan.h, plan.w):
            (top, _), (left, _) = plan.padding
            dx = dx[:, :, top : top + plan.h, left : left + plan.w]
        dx = dx.permute(0, 2, 3, 1).contiguous()
    return dx, None if dw is None else dw.permute(0, 2, 3, 1)


def _input_of(a_nhwc: Tensor, plan: ConvPlan) -> tuple[Tensor, Pair]:
    """(N, C, H, W) and the padding that torch's convolution adds to it; padded here where the two sides differ."""
    x = a_nhwc.permute(0, 3, 1, 2)
    (top, bottom), (left, right) = plan.padding
    if (top, left) == (bottom, right):
        return _plain(x), (top, left)
    return _plain(F.pad(x, (left, right, top, bottom))), (0, 0)


def _plain(x: Tensor) -> Tensor:
    """The same tensor with the usual strides where its sizes of 1 left a choice.

    Torch 2.13 on the CPU returned garbage for a float image of one channel with strides (30, 1, 3, 1), stride (1, 2).
    """
    return x.reshape(-1).view(x.shape) if x.is_contiguous() else x
