"""Operands of a layer's products on their way from forward to backward: codes and scales, or untouched floats."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bench.quantizers.base import ForwardQuantizer, QTensor


@dataclass(frozen=True, slots=True)
class SavedGrid:
    """The part of a QTensor that is no tensor; None in its place stands for an operand that is not quantized."""

    mult: int
    offset: int
    bits: int
    code_max: int
    value_max: int


def quantize_operand(quantizer: ForwardQuantizer | None, values: Tensor) -> tuple[QTensor | Tensor, Tensor | None]:
    """Quantize, or hand the floats through; with the mask of positions that pass a gradient."""
    return (values, None) if quantizer is None else quantizer.quantize(values)


def tensors_of(operand: QTensor | Tensor) -> tuple[Tensor, ...]:
    """What ``save_for_backward`` keeps: int8 codes and their scale, or the floats if it is not quantized."""
    return (operand.codes, operand.scale) if isinstance(operand, QTensor) else (operand,)


def grid_of(operand: QTensor | Tensor) -> SavedGrid | None:
    """The integers of a grid."""
    if isinstance(operand, Tensor):
        return None
    return SavedGrid(operand.mult, operand.offset, operand.bits, operand.code_max, operand.value_max)


def restore_operand(grid: SavedGrid | None, saved: list[Tensor]) -> QTensor | Tensor:
    """Take an operand's tensors off the front of ``saved``."""
    first = saved.pop(0)
    if grid is None:
        return first
    return QTensor(
        codes=first,
        scale=saved.pop(0),
        mult=grid.mult,
        offset=grid.offset,
        bits=grid.bits,
        code_max=grid.code_max,
        value_max=grid.value_max,
    )


def both_quantized(a: QTensor | Tensor, w: QTensor | Tensor) -> tuple[QTensor, QTensor]:
    """Narrow two operands of an integer product; conversion refuses layers where one is float."""
    assert isinstance(a, QTensor), "an integer product needs a quantized activation"
    assert isinstance(w, QTensor), "an integer product needs a quantized weight"
    return a, w
