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
from bench.quantizers.base import Grids, QTensor, amax

BITS = 4
TOP = 4.0**6  # largest magnitude over the smallest
_LOW = (1, 4, 16)
_HIGH = (1, 4, 16, 64)  # times 64
_BOUNDS = (0.5, *(2.5 * 4.0**k for k in range(6)))  # in units of the smallest magnitude; the first is zero's


def radix4_grids(gradient: Tensor, unit: Tensor) -> Grids:
    """Nearest radix-4 numbers as two int8 grids, the large magnitudes first.

    Args:
        gradient: float32.
        unit: () float32 above 0, the smallest magnitude; the largest is 4096 units, beyond it values saturate.

    Returns:
        Codes in {0, ±1, ±4, ±16, ±64} with scale 64·unit and in {0, ±1, ±4, ±16} with scale unit, one of them 0
        everywhere. A middle rounds away from zero.
    """
    units = gradient.detach() / unit
    index = torch.bucketize(units.abs(), torch.tensor(_BOUNDS, device=units.device), right=True, out_int32=True)
    signs = units.sign_().to(torch.int8)

    def grid(magnitudes: tuple[int, ...], scale: Tensor) -> QTensor:
        table = torch.tensor(magnitudes, dtype=torch.int8, device=units.device)
        codes = table.index_select(0, index.view(-1)).view(units.shape).mul_(signs)
        top = max(magnitudes)
        return QTensor(codes=codes, scale=scale, mult=1, offset=0, bits=BITS, code_max=top, value_max=top)

    low, high = (0, *_LOW, 0, 0, 0, 0), (0, 0, 0, 0, *_HIGH)
    return grid(high, unit * 64), grid(low, unit)


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
