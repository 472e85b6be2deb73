"""A depthwise convolution's sums without a matrix product: compiled, exact, for the CPU.

Shapes: N images, C channels, H×W input, R×S kernel, P×Q output, channels last. ``conv_native.py`` computes the same by
block-diagonal products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench import native
from bench.kernels import workspace
from bench.kernels.conv_parts import axes_of, geometry
from bench.kernels.conv_plan import ConvPlan, phases_of
from bench.kernels.im2col import Axis
from bench.kernels.int_mm import log_product, max_reduction
from bench.kernels.landing import After, close_sequel, open_sequel
from bench.kernels.spans import span
from bench.native import Landing, Sequel, pointer

DIRECT = "direct"  # the path of sums without a matrix product
# Sums that wait to land: about a core's second cache.
_DIRECT_BYTES = 2**20


def is_depthwise(plan: ConvPlan) -> bool:
    """Whether every channel has a filter of its own, whose sums of one image fit int32."""
    return plan.groups == plan.c == plan.o > 1 and plan.p * plan.q <= max_reduction(128, 128)


def depthwise_fprop(
    a_NHWC: Tensor, w_RSC: Tensor, plan: ConvPlan, *, pad_value: int, columns: Tensor | None, scale: Tensor,
    bias: Tensor | None, layer: str, after: After | None = None,
) -> Tensor:  # fmt: skip
    """``fprop`` of a depthwise convolution by direct integer sums, no matrix product.

    Args:
        a_NHWC: as there.
        w_RSC: (R, S, C) int16 integers mult·code + offset of the weight.
        plan: the sizes.
        pad_value: as there.
        columns: as there.
        scale: as there.
        bias: as there.
        layer: as there.
        after: as there.
    """
    y = torch.empty(plan.n, plan.p, plan.q, plan.o, device=a_NHWC.device)
    row, column = axes_of(plan)
    strides = (plan.p * plan.q * plan.o, plan.q * plan.o, plan.o)
    sequel = open_sequel(after, y.shape)
    _direct(
        a_NHWC, w_RSC, (plan.h, plan.w), row, column, y, 0, strides, factor=1, pad=pad_value, columns=columns,
        places=None, scale=scale, bias=bias, bits=None, gemm="fprop", layer=layer, sequel=sequel,
    )  # fmt: skip
    close_sequel(after, sequel, y.shape)
    return y


def depthwise_dgrad(
    err_NPQO: Tensor, w_RSC: Tensor, plan: ConvPlan, *, factor: int, places: Tensor | None, scale: Tensor,
    bits: Tensor | None, layer: str, after: After | None = None,
) -> Tensor:  # fmt: skip
    """``dgrad`` of a depthwise convolution by direct integer sums; ``factor`` is the error grid's mult."""
    phases = phases_of(plan)
    make = torch.zeros if any(phase.empty for phase in phases) else torch.empty
    dx = make(plan.n, plan.h, plan.w, plan.c, device=err_NPQO.device)
    sequel = open_sequel(after if len(phases) == 1 and not phases[0].empty else None, dx.shape)
    line = plan.w * plan.c
    for phase in phases:
        if phase.empty:
            continue
        taps = w_RSC[phase.row_taps, phase.column_taps].flip(0, 1).contiguous()
        _direct(
            err_NPQO, taps, (plan.p, plan.q), phase.row, phase.column, dx,
            phase.row_phase * line + phase.column_phase * plan.c,
            (plan.h * line, plan.stride[0] * line, plan.stride[1] * plan.c), factor=factor, pad=0, columns=None,
            places=places, scale=scale, bias=None, bits=bits, gemm="dgrad", layer=layer, sequel=sequel,
        )  # fmt: skip
    close_sequel(after, sequel, dx.shape)
    return dx


def depthwise_wgrad(
    a_NHWC: Tensor, err_NPQO: Tensor, plan: ConvPlan, *, factor: int, pad_value: int, rows: Tensor | None,
    columns: Tensor | None, scale: Tensor, layer: str,
) -> Tensor:  # fmt: skip
    """``wgrad`` of a depthwise convolution by direct integer sums; ``factor`` is the error grid's mult."""
    lib = native.compiled()
    row, column = axes_of(plan)
    sums = torch.empty(plan.r, plan.s, plan.c, dtype=torch.int64)
    with span("gemm", layer=layer, gemm="wgrad"):
        read = geometry(plan.n, plan.h, plan.w, plan.c, 0, plan.c, row, column, 1)
        lib.depthwise_wgrad(pointer(a_NHWC), pointer(err_NPQO), pointer(sums), read, pad_value)
    log_product("wgrad", layer, DIRECT, plan.r * plan.s, plan.rows, plan.c)
    totals, out = sums.permute(2, 0, 1).contiguous(), torch.empty(plan.c, plan.r, plan.s, 1)
    with span("dequantize", layer=layer, gemm="wgrad"):
        lib.land_wgrad(
            pointer(totals), pointer(out), plan.c, plan.r * plan.s, factor, pointer(rows), pointer(columns),
            pointer(scale), int(scale.dim() > 0),
        )  # fmt: skip
    return out


def _direct(
    source: Tensor, w_RSC: Tensor, size: tuple[int, int], row: Axis, column: Axis, out: Tensor, out_offset: int,
    out_strides: tuple[int, int, int], *, factor: int, pad: int, columns: Tensor | None, places: Tensor | None,
    scale: Tensor, bias: Tensor | None, bits: Tensor | None, gemm: str, layer: str, sequel: Sequel | None,
) -> None:  # fmt: skip
    """Sums of one phase and their landing, both in one span: few images at a time go through both."""
    lib = native.compiled()
    n, c = source.shape[0], source.shape[3]
    per_image = row.length * column.length * c
    images = max(1, min(n, _DIRECT_BYTES // (4 * per_image)))
    columns = None if columns is None else columns.to(torch.int32)
    places = None if places is None else places.to(torch.int32).contiguous()
    with span("gemm", layer=layer, gemm=gemm):
        acc = workspace.scratch("acc", (images * per_image,), torch.int32, source.device)
        read = geometry(n, *size, c, 0, c, row, column, 1)
        landing = Landing(n, row.length, column.length, 1, 1, c, c, 1, 1, *out_strides, factor, 0)
        lib.depthwise_land(
            pointer(source), pointer(w_RSC), pointer(acc), read, pad, images, pointer(out, out_offset), landing,
            pointer(columns), pointer(places, out_offset), pointer(scale), int(scale.dim() > 0), pointer(bias),
            pointer(bits), out_offset, sequel,
        )  # fmt: skip
    log_product(gemm, layer, DIRECT, n * row.length * column.length, row.count * column.count, c)
