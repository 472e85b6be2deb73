"""The one caller of ``torch._int_mm``: int8 × int8 → exact integers, under CUDA's rules on every device.

Shapes: M rows, N columns, K reduced; a_MK, b_KN.

Source: docs/method.md section 2. cuBLASLt takes M > 16 and K, N multiples of 8, A row-major and B as the transpose of a
contiguous (N, K). The rules are applied on the CPU too, so that a run there proves that a GPU would take every call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.errors import ShapeError
from bench.hardware.capability import CUDA_LIMITS

INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmCall:
    """One product of a layer's integers: through ``torch._int_mm``, or by another path that dispatch=auto chose.

    ``m, k, n`` are the sizes asked for, with the rows or columns of ones that sum an operand; ``padded`` those that ran
    (m, k, n); ``path`` names the kernel and, where the accumulator bound wants it, the parts that K was split into;
    ``macs`` the multiplications that the layer asks for, without those by zeros that a layout adds.
    """

    gemm: str
    layer: str
    m: int
    k: int
    n: int
    padded: tuple[int, int, int]
    path: str
    macs: int


_log: list[GemmCall] | None = None


@contextmanager
def record_gemms() -> Iterator[list[GemmCall]]:
    """Collect every product of integers that runs inside the block; costs one comparison per product when off.

    Blocks nest: an inner block's calls are appended to the outer list when it ends.
    """
    global _log
    outer, calls = _log, []  # type: ignore[var-annotated]
    _log = calls
    try:
        yield calls
    finally:
        _log = outer
        if outer is not None:
            outer.extend(calls)


def log_product(gemm: str, layer: str, path: str, m: int, k: int, n: int) -> None:
    """Enter a product that took another path than ``torch._int_mm``; none of its multiplications is by padding.

    Args:
        gemm: "fprop", "dgrad" or "wgrad".
        layer: the layer's name.
        path: what ran.
        m: rows of the result.
        k: terms of each sum.
        n: columns of the result.
    """
    if _log is not None:
        _log.append(GemmCall(gemm=gemm, layer=layer, m=m, k=k, n=n, padded=(m, k, n), path=path, macs=m * k * n))


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep the block's products out of the log: trials, whose results nobody uses."""
    global _log
    outer, _log = _log, None
    try:
        yield
    finally:
        _log = outer


def round_up(size: int, multiple: int) -> int:
    """Smallest multiple of ``multiple`` that is at least ``size``."""
    return -(-size // multiple) * multiple


def max_reduction(a_max: int, b_max: int) -> int:
    """Longest K whose sum of products fits int32: K·a_max·b_max ≤ 2³¹ − 1."""
    return INT32_MAX // (a_max * b_max)


def int_mm(
    a_MK: Tensor,
    b_KN: Tensor,
    *,
    a_max: int = 128,
    b_max: int = 128,
    terms: int | None = None,
    out: Tensor | None = None,
    gemm: str = "",
    layer: str = "",
    macs: int | None = None,
) -> Tensor:
    """Exact integer product of two int8 matrices.

    Args:
        a_MK: (M, K) int8, contiguous.
        b_KN: (K, N) int8, the transpose of a contiguous (N, K).
        a_max: declared largest |a|; the caller promises it.
        b_max: declared largest |b|.
        terms: how many of the K terms can differ from zero, if fewer than K (inserted zeros cannot overflow a sum).
        out: int32, contiguous, of the padded size (M, N rounded up to 8): the product is written there and the result
            is a view of it. Not used where its size differs or K is split.
        gemm: "fprop", "dgrad" or "wgrad", for the log.
        layer: the layer's name, for the log.
        macs: multiplications that the layer asks for, for the log; M·K·N if not given.

    Returns:
        (M, N) int32; int64 where K had to be split because terms·a_max·b_max > 2³¹ − 1.

    Raises:
        ShapeError: for operands that are not 2-D int8 of matching sizes in these layouts, overlapping ones included.
    """
    m, k, n = _check_operands(a_MK, b_KN, a_max, b_max)
    if m == 0 or n == 0 or k == 0:
        return torch.zeros(m, n, dtype=torch.int32, device=a_MK.device)
    longest = max_reduction(a_max, b_max)
    if (k if terms is None else min(k, terms)) <= longest:
        acc, padded = _padded_product(a_MK, b_KN, out)
        path = "int_mm"
    else:
        step = longest // CUDA_LIMITS.multiple * CUDA_LIMITS.multiple
        starts = range(0, k, step)
        acc = torch.zeros(m, n, dtype=torch.int64, device=a_MK.device)
        for start in starts:
            part = slice(start, start + step)
            b_part = b_KN.t()[:, part].contiguous().t()
            product, padded = _padded_product(a_MK[:, part].contiguous(), b_part, None)
            acc.add_(product)
        path = f"int_mm, K in {len(starts)} parts"
    if _log is not None:
        macs = m * k * n if macs is None else macs
        _log.append(GemmCall(gemm=gemm, layer=layer, m=m, k=k, n=n, padded=padded, path=path, macs=macs))
    return acc


class CheckedProduct:
    """A product whose operands are checked once and multiplied as often as their memory is filled anew."""

    __slots__ = ("_a", "_b", "_macs", "_out", "_rows")

    def __init__(
        self, a_MK: Tensor, b_KN: Tensor, out_MN: Tensor, *, a_max: int, b_max: int, terms: int, rows: int, macs: int
    ) -> None:
        """Check what `int_mm` checks.

        Args:
            a_MK: (M, K) int8, contiguous, of the padded size.
            b_KN: (K, N) int8, the transpose of a contiguous (N, K), of the padded size.
            out_MN: (M, N) int32, contiguous: takes the products.
            a_max: declared largest |a|.
            b_max: declared largest |b|.
            terms: how many of the K terms can differ from zero.
            rows: how many of the M rows are asked for, for the log.
            macs: multiplications that the layer asks for, for the log.

        Raises:
            ShapeError: for operands that `int_mm` would refuse, pad or split.
        """
        m, k, n = _check_operands(a_MK, b_KN, a_max, b_max)
        if m < CUDA_LIMITS.min_rows or k % CUDA_LIMITS.multiple or n % CUDA_LIMITS.multiple or not k * n:
            raise ShapeError(f"integer product: {m}×{k}×{n} is not a padded size; use int_mm, which pads")
        if tuple(out_MN.shape) != (m, n) or out_MN.dtype != torch.int32 or not out_MN.is_contiguous():
            raise ShapeError(f"integer product: the result must be a contiguous int32 tensor of {m}×{n}")
        if min(k, terms) > max_reduction(a_max, b_max):
            raise ShapeError(f"integer product: {terms} terms of {a_max}·{b_max} leave int32; use int_mm, which splits")
        self._a, self._b, self._out, self._rows, self._macs = a_MK, b_KN, out_MN, rows, macs

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """(M, K) int8, (N, K) int8 and (M, N) int32: what to fill, and what is filled."""
        return self._a, self._b.t(), self._out

    def __call__(self, *, gemm: str, layer: str) -> None:
        """Multiply what the operands hold now.

        Args:
            gemm: "fprop", "dgrad" or "wgrad", for the log.
            layer: the layer's name, for the log.
        """
        torch._int_mm(self._a, self._b, out=self._out)
        if _log is not None:
            m, k = self._a.shape
            n, rows = self._b.shape[1], self._rows
            call = GemmCall(gemm=gemm, layer=layer, m=rows, k=k, n=n, padded=(m, k, n), path="int_mm", macs=self._macs)
            _log.append(call)


def _check_operands(a_MK: Tensor, b_KN: Tensor, a_max: int, b_max: int) -> tuple[int, int, int]:
    """Their sizes (M, K, N)."""
    _check_operand(a_MK, "A", "(M, K) row-major", a_MK)
    _check_operand(b_KN, "B", "the transpose of a contiguous (N, K)", b_KN.t() if b_KN.dim() == 2 else b_KN)
    m, k = a_MK.shape
    n = b_KN.shape[1]
    if b_KN.shape[0] != k:
        raise ShapeError(f"integer product: A is {m}×{k} and B is {b_KN.shape[0]}×{n}; the inner sizes must be equal")
    if a_MK.device != b_KN.device:
        raise ShapeError(f"integer product: A lies on {a_MK.device} and B on {b_KN.device}; put them on one device")
    if not (1 <= a_max <= 128 and 1 <= b_max <= 128):
        raise ShapeError(f"integer product: declared maxima {a_max} and {b_max} must lie in 1..128, the range of int8")
    return m, k, n


def _check_operand(operand: Tensor, name: str, layout: str, row_major: Tensor) -> None:
    if operand.dim() != 2:
        raise ShapeError(f"integer product: {name} has {operand.dim()} dimensions; flatten it to a matrix first")
    if operand.dtype != torch.int8:
        raise ShapeError(f"integer product: {name} is {operand.dtype}; quantize it to torch.int8 first")
    if not row_major.is_contiguous():
        raise ShapeError(
            f"integer product: {name} has strides {tuple(operand.stride())} for shape {tuple(operand.shape)}, not the "
            f"layout {layout}; copy it first (expanded and overlapping operands give wrong numbers)"
        )


def _padded_product(a_MK: Tensor, b_KN: Tensor, out: Tensor | None) -> tuple[Tensor, tuple[int, int, int]]:
    """The product under CUDA's size rules, cut back to (M, N)."""
    m, k = a_MK.shape
    n = b_KN.shape[1]
    rows = max(m, CUDA_LIMITS.min_rows)
    depth, columns = round_up(k, CUDA_LIMITS.multiple), round_up(n, CUDA_LIMITS.multiple)
    a_ready = a_MK if (rows, depth) == (m, k) else _zero_padded(a_MK, rows, depth)
    b_ready = b_KN if (depth, columns) == (k, n) else _zero_padded(b_KN.t(), columns, depth).t()
    padded = (rows, depth, columns)
    if out is None or tuple(out.shape) != (rows, columns):
        product = torch._int_mm(a_ready, b_ready)
    else:
        product = torch._int_mm(a_ready, b_ready, out=out)
    return (product if (rows, columns) == (m, n) else product[:m, :n]), padded


def _zero_padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    padded = matrix.new_zeros(rows, columns)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded
