"""A linear layer's three integer products.

Shapes: M samples, K input features, N output features; both operands of each product keep the reduced axis innermost.

Source: docs/method.md section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.kernels.int_mm import int_mm


def fprop(a_MK: Tensor, w_NK: Tensor, *, a_max: int = 128, w_max: int = 128, layer: str = "") -> Tensor:
    """Sums Σ a·w.

    Args:
        a_MK: (M, K) int8 codes of the input, contiguous.
        w_NK: (N, K) int8 codes of the weight, contiguous.
        a_max: declared largest |code| of the input.
        w_max: declared largest |code| of the weight.
        layer: name for the GEMM log.

    Returns:
        (M, N) int32, or int64 where the reduction had to be split.
    """
    return int_mm(a_MK, w_NK.t(), a_max=a_max, b_max=w_max, gemm="fprop", layer=layer)


def dgrad(err_MN: Tensor, w_NK: Tensor, *, err_max: int = 128, w_max: int = 128, layer: str = "") -> Tensor:
    """Sums Σ err·w over the output features.

    Args:
        err_MN: (M, N) int8 codes of the output's error signal, contiguous.
        w_NK: (N, K) int8 codes of the weight.
        err_max: declared largest |code| of the error signal.
        w_max: declared largest |code| of the weight.
        layer: name for the GEMM log.

    Returns:
        (M, K) int32, or int64 where the reduction had to be split.
    """
    return int_mm(err_MN, w_NK.t().contiguous().t(), a_max=err_max, b_max=w_max, gemm="dgrad", layer=layer)


def wgrad(a_MK: Tensor, err_MN: Tensor, *, a_max: int = 128, err_max: int = 128, layer: str = "") -> Tensor:
    """Sums Σ err·a over the samples.

    Args:
        a_MK: (M, K) int8 codes of the input.
        err_MN: (M, N) int8 codes of the output's error signal.
        a_max: declared largest |code| of the input.
        err_max: declared largest |code| of the error signal.
        layer: name for the GEMM log.

    Returns:
        (N, K) int32, or int64 where the reduction had to be split.
    """
    err_NM, a_KM = err_MN.t().contiguous(), a_MK.t().contiguous()
    return int_mm(err_NM, a_KM.t(), a_max=err_max, b_max=a_max, gemm="wgrad", layer=layer)


def sum_rows(codes_MK: Tensor) -> Tensor:
    """(M, 1) int64 sum of each row's codes."""
    return codes_MK.sum(1, keepdim=True, dtype=torch.int64)
