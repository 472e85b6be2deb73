"""A linear layer's three integer products with compiled turning and landing: the CPU's fast path.

Codes in, dequantized float32 out; ``linear.py`` and ``affine.py`` are the plain torch twins, equal bit for bit. Shapes:
M samples, K input features, N output features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench import native
from bench.kernels import workspace
from bench.kernels.conv_native import Grids
from bench.kernels.int_mm import CUDA_RULES, int_mm, round_up
from bench.kernels.spans import span
from bench.native import Geometry, Landing, pointer


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
    acc = _product(a_MK, w_NK, grids, "fprop", layer)
    with span("dequantize", layer=layer, gemm="fprop"):
        sums = row_sums(a_MK) if grids.row_weight else None
        return _land(acc, grids, sums=sums, columns=columns, scale=scale, bias=bias, bits=None)


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
    acc = _product(err_MN, w_KN, grids, "dgrad", layer)
    with span("dequantize", layer=layer, gemm="dgrad"):
        sums = row_sums(err_MN) if grids.row_weight else None
        return _land(acc, grids, sums=sums, columns=columns, scale=scale, bias=None, bits=bits)


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
    acc = _product(err_NM, a_KM, grids, "wgrad", layer)
    with span("dequantize", layer=layer, gemm="wgrad"):
        sums = error_sums.to(torch.int32) if grids.row_weight else None
        return _land(acc, grids, sums=sums, columns=columns, scale=scale, bias=None, bits=None)


def row_sums(codes: Tensor) -> Tensor:
    """(rows,) int32 sums of a contiguous int8 matrix's rows, which must fit."""
    rows, columns = codes.shape
    sums = torch.empty(rows, dtype=torch.int32)
    one_pixel = Geometry(rows, 1, 1, columns, 0, columns, *(0, 1, 1, 1, 1), *(0, 1, 1, 1, 1), 1, 1)
    native.compiled().patch_sums(pointer(codes), pointer(sums), one_pixel, 1, 0)
    return sums


def _turned(codes: Tensor, name: str) -> Tensor:
    """(columns, rows) copy in a reused buffer."""
    rows, columns = codes.shape
    turned = workspace.scratch(name, (columns, rows), torch.int8, codes.device)
    native.compiled().turn(pointer(codes), pointer(turned), rows, columns)
    return turned


def _product(left: Tensor, right: Tensor, grids: Grids, gemm: str, layer: str) -> Tensor:
    """Product left · rightᵀ as int32, in a reused buffer."""
    shape = (max(len(left), CUDA_RULES.min_rows), round_up(len(right), CUDA_RULES.multiple))
    out = workspace.scratch("acc", shape, torch.int32, left.device)
    with span("gemm", layer=layer, gemm=gemm):
        return int_mm(left, right.t(), a_max=grids.a_max, b_max=grids.b_max, out=out, gemm=gemm, layer=layer)


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
        1, rows, 1, 1, 1, width, acc.stride(0), 1, 1, rows * width, width, width, grids.factor, grids.row_weight
    )
    native.compiled().land(
        pointer(acc), pointer(out), landing, pointer(sums), pointer(places), None, pointer(scale),
        int(scale.dim() > 0), pointer(bias), pointer(bits), 0, None,
    )  # fmt: skip
    return out
