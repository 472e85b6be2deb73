"""What a quantizer returns, and the two protocols that layers call.

Source: docs/method.md sections 1 and 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bench.errors import ConfigError

MIN_BITS, MAX_BITS = 2, 8

# Values that pass through all steps of a quantizer before the next ones do: on a CPU they stay in its caches (2 million
# values, one core: 2.3 ms instead of 3.7).
_PIECE = 2**18
FLOAT_BITS = 32
GRANULARITIES = ("tensor", "sample", "channel")


@dataclass(frozen=True, slots=True, kw_only=True)
class QTensor:
    """Integer codes on an affine grid: value = scale · (mult·code + offset).

    ``codes`` are int8; ``scale`` is float32, () or broadcastable to the codes; ``mult`` and ``offset`` are integers;
    ``code_max`` is the largest |code| and ``value_max`` the largest |mult·code + offset| that the grid allows. A value
    that was not finite makes ``scale`` not finite, so that every result computed from the codes says so.
    """

    codes: Tensor
    scale: Tensor
    mult: int
    offset: int
    bits: int
    code_max: int
    value_max: int

    @property
    def zero_code(self) -> int:
        """The code that stands for zero: what spatial padding holds.

        Raises:
            ValueError: for a grid without zero, as DoReFa's weights have.
        """
        if self.offset % self.mult:
            raise ValueError(f"the grid {self.mult}·code + {self.offset} has no zero")
        return -self.offset // self.mult


# A value with more levels than int8 codes have: the sum of several grids, each an operand of a product of its own.
Grids = tuple[QTensor, ...]


class ForwardQuantizer(Protocol):
    """Quantizes weights or activations and knows its straight-through backward."""

    bits: int

    def quantize(self, x: Tensor) -> tuple[QTensor, Tensor | None]:
        """Codes of ``x``, and packed flags of where the gradient passes (``native.bits``; None where all passes)."""
        ...

    def describe(self) -> str:
        """One line for the record."""
        ...


class WeightQuantizer(ForwardQuantizer, Protocol):
    """Quantizes weights, (output channels, ...)."""

    def factor(self, weight: Tensor) -> Tensor | None:
        """∂Ŵ/∂W at W, elementwise; None where it is 1 everywhere."""
        ...

    def backward(self, grad_w_hat: Tensor, weight: Tensor) -> Tensor:
        """∇W from ∇Ŵ."""
        ...


class ErrorQuantizer(Protocol):
    """Quantizes error signals; nothing flows back through it."""

    bits: int

    def quantize(self, gradient: Tensor) -> QTensor | Grids:
        """Codes of an error signal, or several int8 grids that add up to it."""
        ...

    def describe(self) -> str:
        """One line for the record."""
        ...


@runtime_checkable
class TwiceErrorQuantizer(ErrorQuantizer, Protocol):
    """Quantizes an error signal twice: ``quantize`` for dgrad, and once more for wgrad."""

    def quantize_for_wgrad(self, gradient: Tensor) -> QTensor | Grids:
        """Codes for wgrad and the bias's gradient."""
        ...


def dequantize(quantized: QTensor) -> Tensor:
    """Values of the codes, float32."""
    values = quantized.codes.to(torch.float32)
    if quantized.mult != 1:
        values.mul_(quantized.mult)
    if quantized.offset:
        values.add_(quantized.offset)
    return values.mul_(quantized.scale)


def flat_pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching parts of contiguous tensors of one size: on a CPU as much as its caches hold, elsewhere everything."""
    size = tensors[0].numel()
    flat = [tensor.view(-1) for tensor in tensors]
    piece = _PIECE if tensors[0].device.type == "cpu" else max(1, size)
    for first in range(0, size, piece):
        yield tuple(tensor[first : first + piece] for tensor in flat)


def check_bits(bits: int, what: str) -> None:
    """Refuse widths that int8 codes cannot hold.

    Raises:
        ConfigError: outside 2..8.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ConfigError(f"{what}: {bits} bits; choose {MIN_BITS} to {MAX_BITS}, or {FLOAT_BITS} for float")


def amax(x: Tensor, granularity: str = "tensor") -> Tensor:
    """Largest |x|, detached; NaN or infinity where any value is.

    Args:
        x: samples first, channels last where the granularity asks for them.
        granularity: "tensor" (one for all), "sample" (per index of the first axis), "channel" (of the last axis).

    Returns:
        () float32, or a tensor that broadcasts to ``x``.
    """
    x = x.detach()
    if granularity == "tensor":
        if x.numel() == 0:
            return torch.zeros((), dtype=x.dtype, device=x.device)
        low, high = torch.aminmax(x)
        return torch.maximum(-low, high)
    kept = 0 if granularity == "sample" else x.dim() - 1
    return x.abs().amax([d for d in range(x.dim()) if d != kept], keepdim=True)
