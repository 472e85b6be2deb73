"""Operands of a layer's products on their way from forward to backward: codes and scales, or untouched floats."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.kernels.int4 import INT4_BITS, pack_int4, unpack_int4
from bench.kernels.spans import span
from bench.quantizers import BinaryWeight
from bench.quantizers.base import (
    ErrorQuantizer,
    ForwardQuantizer,
    Grids,
    QTensor,
    TwiceErrorQuantizer,
    WeightQuantizer,
    dequantize,
)
from bench.quantizers.uniform import UniformQuantizer, codes_within


@dataclass(frozen=True, slots=True)
class SavedGrid:
    """The part of a QTensor that is no tensor; None in its place stands for an operand that is not quantized."""

    mult: int
    offset: int
    bits: int
    code_max: int
    value_max: int
    shape: torch.Size | None  # of codes that are kept two to a byte


@dataclass(slots=True)
class Packed:
    """An activation's codes two to a byte, for all of its readers: made by the first."""

    codes: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """An operand as it waits for backward: tensors for ``save_for_backward``, and what else restores it."""

    grid: SavedGrid | None
    tensors: tuple[Tensor, ...]


def quantize_operand(quantizer: ForwardQuantizer | None, values: Tensor) -> tuple[QTensor | Tensor, Tensor | None]:
    """Quantize, or hand the floats through; with packed flags of the positions that pass a gradient."""
    return (values, None) if quantizer is None else quantizer.quantize(values)


def keep_operand(operand: QTensor | Tensor, *, compact: bool, readers: Packed | None = None) -> Kept:
    """What backward needs of an operand: int8 codes and their scale, or the floats if it is not quantized.

    Args:
        operand: of fprop.
        compact: keep codes of at most four bits two to a byte.
        readers: where other readers of the same codes find them packed.
    """
    if isinstance(operand, Tensor):
        return Kept(None, (operand,))
    codes, shape = operand.codes, None
    if compact and operand.bits <= INT4_BITS:
        readers = readers or Packed()
        if readers.codes is None:
            readers.codes = pack_int4(codes)
        codes, shape = readers.codes, codes.shape
    grid = SavedGrid(operand.mult, operand.offset, operand.bits, operand.code_max, operand.value_max, shape)
    return Kept(grid, (codes, operand.scale))


def restore_operand(
    grid: SavedGrid | None, saved: list[Tensor], *, layer: str = "", gemm: str = ""
) -> QTensor | Tensor:
    """Take an operand's tensors off the front of ``saved``.

    Args:
        grid: what was kept beside them.
        saved: of which the operand's own are taken.
        layer: that needs it, for the spans.
        gemm: the product that does.
    """
    first = saved.pop(0)
    if grid is None:
        return first
    if grid.shape is not None:
        with span("quantize", layer=layer, gemm=gemm):
            first = unpack_int4(first, grid.shape)
    return QTensor(
        codes=first,
        scale=saved.pop(0),
        mult=grid.mult,
        offset=grid.offset,
        bits=grid.bits,
        code_max=grid.code_max,
        value_max=grid.value_max,
    )


def channels_first(y_nhwc: Tensor) -> Tensor:
    """(N, C, H, W) over the memory of a contiguous (N, H, W, C), and no view.

    Autograd forbids to change a function's output in place where it is a view, and an in-place activation may follow.
    """
    whole = torch.empty(0, dtype=y_nhwc.dtype, device=y_nhwc.device)
    # of a tensor, not of its storage, which torch's fake tensors would never let go
    return whole.set_(y_nhwc.permute(0, 3, 1, 2))  # type: ignore[call-overload]


def both_quantized(a: QTensor | Tensor, w: QTensor | Tensor) -> tuple[QTensor, QTensor]:
    """Narrow two operands of an integer product; conversion refuses layers where one is float."""
    assert isinstance(a, QTensor), "an integer product needs a quantized activation"
    assert isinstance(w, QTensor), "an integer product needs a quantized weight"
    return a, w


def quantize_error(
    quantizer: ErrorQuantizer,
    error: Tensor,
    *,
    fold: Tensor | None,
    needs_dgrad: bool,
    needs_wgrad: bool,
    amax: float | None = None,
) -> tuple[Grids | None, Grids | None]:
    """Grids of an error signal for dgrad and for wgrad: the same, or two quantizations (DAINT8, SBM, FP4, BWN-F).

    Args:
        quantizer: of the layer.
        error: float32, channels last.
        fold: (channels,) α of BWN-F, which dgrad sums over and which therefore goes into its error signal; else None.
        needs_dgrad: whether dgrad runs.
        needs_wgrad: whether wgrad runs, or the bias's gradient is wanted.
        amax: largest |error|, where it is known already.

    Returns:
        (for dgrad, for wgrad), None for what is not needed; each one grid, or several that add up to the signal.
    """
    if hasattr(quantizer, "quantize_for_wgrad") or fold is not None:
        for_wgrad = quantizer.quantize_for_wgrad if hasattr(quantizer, "quantize_for_wgrad") else quantizer.quantize
        return (
            _grids(quantizer.quantize(error if fold is None else error * fold)) if needs_dgrad else None,
            _grids(for_wgrad(error)) if needs_wgrad else None,
        )
    if amax is not None and isinstance(quantizer, UniformQuantizer) and quantizer.granularity == "tensor":
        codes = codes_within(error, amax, quantizer.bits, rounding=quantizer.rounding, generator=quantizer.generator)
        return (codes,), (codes,)
    grids = _grids(quantizer.quantize(error))
    return grids, grids


def _grids(codes: QTensor | Grids) -> Grids:
    return codes if isinstance(codes, tuple) else (codes,)


def sum_of_grids(grids: Grids) -> Tensor:
    """Float values of an error signal."""
    return add_up([dequantize(grid) for grid in grids])


def add_up(terms: list[Tensor]) -> Tensor:
    """Sum of float tensors of one shape, in place of the first: what products with each of several grids join in."""
    total, *others = terms
    for term in others:
        total.add_(term)
    return total


def split_filter_scale(w: QTensor | Tensor) -> tuple[QTensor | Tensor, Tensor | None]:
    """A weight with BWN-F's α taken out, and α (channels,); any other weight as it is, and None."""
    if isinstance(w, QTensor) and w.scale.dim():
        return replace(w, scale=torch.ones((), device=w.codes.device)), w.scale.reshape(-1)
    return w, None


def quantizations_of(weight: WeightQuantizer | None, error: ErrorQuantizer | None) -> int:
    """How often an error signal is quantized where both backward products run."""
    if error is None:
        return 0
    folds = isinstance(weight, BinaryWeight) and weight.per_filter
    return 2 if folds or isinstance(error, TwiceErrorQuantizer) else 1
