"""Plain int64 and float64 twins of the integer kernels; slow, and what the self-check and the tests compare with.

Shapes: N images, C input channels, H×W input, O output channels, R×S kernel, P×Q output; M, N, K of a product.
Float64 is exact here: every sum stays under 2⁵³.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.kernels.conv_plan import ConvPlan


def int_mm_reference(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """(M, N) int64 product of integer matrices; on CUDA, which has no int64 product, through float64."""
    if a_MK.is_cuda:
        return (a_MK.double() @ b_KN.double()).to(torch.int64)
    return a_MK.to(torch.int64) @ b_KN.to(torch.int64)


def fprop_reference(a_NHWC: Tensor, w_ORSC: Tensor, plan: ConvPlan, *, pad_value: int = 0) -> Tensor:
    """(N·P·Q, O) int64 of the convolution; padding positions hold ``pad_value``."""
    padded = _padded(a_NHWC, plan, float(pad_value))
    y_NOPQ = F.conv2d(
        padded,
        w_ORSC.permute(0, 3, 1, 2).double(),
        stride=plan.stride,
        dilation=plan.dilation,
        groups=plan.groups,
    )
    return y_NOPQ.permute(0, 2, 3, 1).reshape(plan.rows, plan.o).to(torch.int64)


def dgrad_reference(err_NPQO: Tensor, w_ORSC: Tensor, plan: ConvPlan) -> Tensor:
    """(N, H, W, C) int64 gradient of the input, by autograd in float64."""
    x = torch.zeros(plan.n, plan.c, plan.h, plan.w, dtype=torch.float64, requires_grad=True)
    y = _conv(x, w_ORSC.permute(0, 3, 1, 2).double(), plan)
    y.backward(err_NPQO.permute(0, 3, 1, 2).double())
    assert x.grad is not None, "backward fills the leaf's gradient"
    return x.grad.permute(0, 2, 3, 1).to(torch.int64)


def wgrad_reference(a_NHWC: Tensor, err_NPQO: Tensor, plan: ConvPlan, *, pad_value: int = 0) -> Tensor:
    """(O, R, S, C/groups) int64 gradient of the weight, by autograd in float64; padding holds ``pad_value``."""
    weight = torch.zeros(plan.o, plan.c // plan.groups, plan.r, plan.s, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(
        _padded(a_NHWC, plan, float(pad_value)),
        weight,
        stride=plan.stride,
        dilation=plan.dilation,
        groups=plan.groups,
    )
    y.backward(err_NPQO.permute(0, 3, 1, 2).double())
    assert weight.grad is not None, "backward fills the leaf's gradient"
    return weight.grad.permute(0, 2, 3, 1).to(torch.int64)


def _conv(x_NCHW: Tensor, w_OCRS: Tensor, plan: ConvPlan) -> Tensor:
    (top, bottom), (left, right) = plan.padding
    x_padded = F.pad(x_NCHW, (left, right, top, bottom))
    return F.conv2d(x_padded, w_OCRS, stride=plan.stride, dilation=plan.dilation, groups=plan.groups)


def _padded(a_NHWC: Tensor, plan: ConvPlan, value: float) -> Tensor:
    (top, bottom), (left, right) = plan.padding
    return F.pad(a_NHWC.permute(0, 3, 1, 2).double(), (left, right, top, bottom), value=value)
