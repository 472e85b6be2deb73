"""FP4's error signals: radix-4 numbers of sign and three exponent bits, rounded in two phases, under a gradient scale.

Source: Sun et al., "Ultra-Low Precision 4-bit Training of Deep Neural Networks", NeurIPS 2020. The format 1-3-0 has
zero and the seven magnitudes 4^−3..4^3; nearest rounding goes up from the arithmetic middle, 2.5·4^k (constants
unchecked). Two-phase rounding quantizes an error signal twice, onto powers 2^even for one backward product and onto
2^odd for the other, so that their errors point in opposite directions. GradScale multiplies a layer's error signals
by a factor of its own that follows their largest magnitude.

Seven magnitudes of ratio 4 span 1..4096 and fit no int8 code, but two grids hold them: codes ±1, ±4, ±16 of the
smallest magnitude and codes ±1, ±4, ±16, ±64 of 64 times that, never both at once. So every product runs twice, in
integers and exactly, and its label is ``integer``: a code of 64 is no INT4 value.

Left open there and decided here: dgrad takes the even phase and wgrad the odd one; the odd phase is the even one of
2g, halved, its largest magnitude 32 instead of 64. The scale is a power of two: it starts at the largest that keeps
max|g| in range and then doubles or halves at most once a quantization, as the largest magnitude demands; what lies
beyond the range saturates. Weights and activations take this project's quantizers instead of SAWB and PACT.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.quantizers.base import Grids, QTensor, amax, flat_pieces

BITS = 4
TOP = 4.0**6  # largest magnitude over the smallest
# Codes of zero and the seven magnitudes on either grid; the high one counts in 64 of the smallest magnitude.
_LOW = (0, 1, 4, 16, 0, 0, 0, 0)
_HIGH = (0, 0, 0, 0, 1, 4, 16, 64)


def radix4_grids(gradient: Tensor, unit: Tensor) -> Grids:
    """Nearest radix-4 numbers as two int8 grids, the large magnitudes first.

    Args:
        gradient: float32.
        unit: () float32 above 0, the smallest magnitude; the largest is 4096 units, beyond it values saturate.

    Returns:
        Codes in {0, ±1, ±4, ±16, ±64} with scale 64·unit and in {0, ±1, ±4, ±16} with scale unit, one of them 0
        everywhere. A middle rounds away from zero.
    """
    gradient = gradient.detach().contiguous()
    grids = []
    for magnitudes in (_HIGH, _LOW):
        codes, top = torch.empty_like(gradient, dtype=torch.int8), max(magnitudes)
        scale = unit * 64 if magnitudes is _HIGH else unit
        grids.append(QTensor(codes=codes, scale=scale, mult=1, offset=0, bits=BITS, code_max=top, value_max=top))
    tables = [torch.tensor(magnitudes, dtype=torch.int8, device=unit.device) for magnitudes in (_HIGH, _LOW)]
    for values, *codes_of in flat_pieces(gradient, *(grid.codes for grid in grids)):
        units = torch.div(values, unit)
        index, signs = magnitude_index(units.abs()), units.sign_().to(torch.int8)
        for codes, table in zip(codes_of, tables, strict=True):
            torch.mul(table.index_select(0, index), signs, out=codes)
    return tuple(grids)


def magnitude_index(units: Tensor) -> Tensor:
    """0 below ½, then the number of 1, 2.5·4^0 .. 2.5·4^5 that a value has reached, counting from 1 at ½.

    Args:
        units: float32, 0 or more; overwritten.

    Returns:
        int32 of its shape, 0..7.
    """
    reached = units >= 0.5
    # 3.2·x is 2·4^(k+1) at the middle x = 2.5·4^k, so half of its exponent counts the middles: 2 against 11 ms for a
    # search among the bounds, a million values. The float above 3.2 that stands for it puts no float on a wrong side.
    index = units.mul_(3.2).view(torch.int32).bitwise_right_shift_(24).sub_(63)
    return index.clamp_(0, 7).maximum(reached)


def next_scale(scale: Tensor, largest: Tensor) -> Tensor:
    """GradScale's factor for a step.

    Args:
        scale: () float32, the last step's factor; 0 before the first.
        largest: () float32, max|g|.

    Returns:
        The largest power of two s with s·max|g| ≤ 64 at the start; then s doubled where that keeps s·max|g| ≤ 64,
        halved where s·max|g| > 64, else s. An all-zero gradient leaves it, and starts it at 1.
    """
    top = TOP**0.5
    mantissa, exponent = torch.frexp(top / torch.where(largest == 0, top, largest))
    start = torch.ldexp(torch.ones_like(mantissa), exponent - 1)  # 2^floor(log2(top/largest)), 1 for a zero gradient
    moved = torch.where(scale * largest > top, scale / 2, torch.where(2 * scale * largest <= top, 2 * scale, scale))
    moved = torch.where(largest == 0, scale, moved)
    return torch.where(scale == 0, start, moved)


class Fp4Quantizer(nn.Module):
    """One layer's error signals: even phase for dgrad, odd phase for wgrad; its factor travels in the state dict."""

    code_bits = 8
    grad_scale: Tensor

    def __init__(self, bits: int = BITS, *, rounding: str = "nearest") -> None:
        """Check the choices.

        Args:
            bits: 4.
            rounding: "nearest": the two phases stand in for stochastic rounding.

        Raises:
            ConfigError: for any other choice, naming the valid one.
        """
        super().__init__()
        if bits != BITS:
            raise ConfigError(
                f"error quantizer fp4 has 4 bits (a sign and three exponent bits), not {bits}: set error_bits=4, or "
                f"take error=uniform, dorefa, uint8 or daint8 for {bits} bits"
            )
        if rounding != "nearest":
            raise ConfigError(f"error quantizer fp4 rounds to the nearest, in two phases; {rounding} is not a choice")
        self.bits = bits
        self.register_buffer("grad_scale", torch.zeros(()))

    @torch.no_grad()
    def quantize(self, gradient: Tensor) -> Grids:
        """The even phase, magnitudes 2^even, after a move of the gradient scale."""
        return radix4_grids(gradient, self._unit(gradient))

    @torch.no_grad()
    def quantize_for_wgrad(self, gradient: Tensor) -> Grids:
        """The odd phase, magnitudes 2^odd, after a move of the gradient scale."""
        return radix4_grids(gradient, self._unit(gradient) / 2)

    def _unit(self, gradient: Tensor) -> Tensor:
        largest = amax(gradient)
        self.grad_scale.copy_(next_scale(self.grad_scale, largest))
        return 1 / (self.grad_scale * math.sqrt(TOP)) + 0 * largest

    def describe(self) -> str:
        """One line for the record."""
        return (
            "fp4 (1-3-0), 4 bits, radix 4 as two int8 grids, GradScale per layer; even phase for dgrad, odd phase for "
            "wgrad"
        )
