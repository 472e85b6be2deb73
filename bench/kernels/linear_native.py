"""A linear layer's three integer products with compiled turning and landing: the CPU's fast path.

Codes in, dequantized float32 out; ``linear.py`` and ``affine.py`` are the plain torch twins, equal bit for bit. Shapes:
M samples, K input features, N output features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench import native
from bench.hardware.capability import CUDA_LIMITS
from bench.kernels import workspace
from bench.kernels.conv_native import Grids
from bench.kernels.int_mm import int_mm, round_up
from bench.kernels.spans import span
from bench.native import Geometry, Job, Landing, pointer


def fprop(
    a_MK: Tensor, w_NK: Tensor, grids: Grids, *, columns: Tensor | None, scale: Tensor, bias: Tensor | None, layer: str
) -> Tensor:
    """Dequantized output (M, N) float32.

    Args:
        a_MK: (M, K) int8 codes, contiguous.
        w_NK: (N, K) int8 codes, contiguous.
        grids: of input and weight; totals fit int32.
        columns: (N,) int64 that each output feature's total adds; None for nothing.
        scale: () or (N,) float32.
        bias: (N,) float32, contiguous; or None.
        layer: name for the GEMM log and the spans.
    """
    return _multiply(a_MK, w_NK, grids, "fprop", layer, columns=columns, scale=scale, bias=bias)


def dgrad(
    err_MN: Tensor,
    w_NK: Tensor,
    grids: Grids,
    *,
    columns: Tensor | None,
    scale: Tensor,
    bits: Tensor | None,
    layer: str,
) -> Tensor:
    """Dequantized error signal of the input (M, K) float32.

    Args:
        err_MN: (M, N) int8 codes, contiguous.
        w_NK: (N, K) int8 codes, contiguous.
        grids: of error and weight; totals fit int32.
        columns: (K,) int64 that each input feature's total adds; None for nothing.
        scale: () float32.
        bits: packed flags of the inputs that pass a gradient; None if all do.
        layer: name for the GEMM log and the spans.
    """
    with span("im2col", layer=layer, gemm="dgrad"):
        w_KN = _turned(w_NK, "turned weight")
    return _multiply(err_MN, w_KN, grids, "dgrad", layer, columns=columns, scale=scale, bits=bits)


def wgrad(
    a_MK: Tensor, err_MN: Tensor, grids: Grids, *, error_sums: Tensor, columns: Tensor | None, scale: Tensor, layer: str
) -> Tensor:
    """Dequantized gradient of Ŵ (N, K) float32.

    Args:
        a_MK: (M, K) int8 codes, contiguous.
        err_MN: (M, N) int8 codes, contiguous.
        grids: of error and input, in this order; totals fit int32.
        error_sums: (N,) int64 sums of the error's codes, which ``grids.row_weight`` multiplies.
        columns: (K,) int64 that each input feature's total adds; None for nothing.
        scale: () float32.
        layer: name for the GEMM log and the spans.
    """
    with span("im2col", layer=layer, gemm="wgrad"):
        err_NM, a_KM = _turned(err_MN, "turned error"), _turned(a_MK, "turned input")
    return _multiply(err_NM, a_KM, grids, "wgrad", layer, columns=columns, scale=scale, known_sums=error_sums)


def row_sums(codes: Tensor) -> Tensor:
    """(rows,) int32 sums of a contiguous int8 matrix's rows, which must fit."""
    rows, columns = codes.shape
    sums = torch.empty(rows, dtype=torch.int32)
    native.compiled().patch_sums(pointer(codes), pointer(sums), _one_pixel(rows, columns), 1, 0)
    return sums


def _turned(codes: Tensor, name: str) -> Tensor:
    """(columns, rows) copy in a reused buffer."""
    rows, columns = codes.shape
    turned = workspace.scratch(name, (columns, rows), torch.int8, codes.device)
    native.compiled().turn_weight(pointer(codes), pointer(turned), rows, 1, 1, columns, 0, 1, 1, 0, 1, 1)
    return turned


def _one_pixel(rows: int, columns: int) -> Geometry:
    """A matrix as images of one pixel each, read by a 1×1 kernel."""
    return Geometry(
        n=rows, h=1, w=1, c=columns, c0=0, cb=columns, row_start=0, row_step=1, row_count=1, row_stride=1, row_length=1,
        col_start=0, col_step=1, col_count=1, col_stride=1, col_length=1, pack=1, row_pack=1,
    )  # fmt: skip


def _multiply(
    left: Tensor, right: Tensor, grids: Grids, gemm: str, layer: str, *, columns: Tensor | None, scale: Tensor,
    known_sums: Tensor | None = None, bias: Tensor | None = None, bits: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Dequantized left · rightᵀ; `known_sums` are those of left's rows, where somebody has summed them already."""
    shape = (max(len(left), CUDA_LIMITS.min_rows), round_up(len(right), CUDA_LIMITS.multiple))
    out = workspace.scratch("acc", shape, torch.int32, left.device)
    with span("gemm", layer=layer, gemm=gemm):
        acc = int_mm(left, right.t(), a_max=grids.a_max, b_max=grids.b_max, out=out, gemm=gemm, layer=layer)
    with span("dequantize", layer=layer, gemm=gemm):
        sums = None
        if grids.row_weight:
            sums = row_sums(left) if known_sums is None else known_sums.to(torch.int32)
        return _land(acc, grids, sums=sums, columns=columns, scale=scale, bias=bias, bits=bits)


def _land(
    acc: Tensor, grids: Grids, *, sums: Tensor | None, columns: Tensor | None, scale: Tensor, bias: Tensor | None,
    bits: Tensor | None,
) -> Tensor:  # fmt: skip
    """(factor · acc + row_weight · sums + columns) · scale, plus the bias, where the bits let it pass."""
    assert acc.dtype == torch.int32, "totals that fit int32 have sums that do"
    rows, width = acc.shape
    out = torch.empty(rows, width)
    places = None if columns is None else columns.to(torch.int32)
    landing = Landing(
        n=rows, rows=1, cols=1, row_pack=1, pack=1, c=width, pitch=acc.stride(0), groups=1, sums_pitch=1, out_n=width,
        out_row=width, out_col=width, factor=grids.factor, row_weight=grids.row_weight,
    )  # fmt: skip
    job = Job(
        landing=landing, acc=pointer(acc), row_sums=pointer(sums), columns=pointer(places), out=pointer(out),
        scale=pointer(scale), bias=pointer(bias), bits=pointer(bits), scale_per_channel=int(scale.dim() > 0),
    )  # fmt: skip
    native.compiled().land_images(job, 0, rows)
    return out
