"""DoReFa-Net's quantizers on integer grids: weights, activations, gradients.

Source: DoReFa-Net, arXiv 1606.06160; docs/method.md sections 1 and 2. n = 2^k − 1. Weights are odd multiples of 1/n:
with j = i − 2^(k−1) they fit k bits, Ŵ = (2j + 1)/n. Activations a/n do not fit the signed container of 8 or 4 bits:
there a − 2^(k−1) is stored. Gradients are m(2j + 1)/n with m = max|g|: a grid without zero, on which an exact zero
becomes ±m/n. One bit is another quantizer.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from bench import native
from bench.errors import ConfigError
from bench.native.bits import pack_bits, packed_size
from bench.quantizers.base import QTensor, amax, check_bits, flat_pieces
from bench.quantizers.rounding import draw_uniform
from bench.quantizers.uniform import check_choices

# Containers whose signed range is as wide as the codes: the activation is stored minus half its range.
_SIGNED_CONTAINERS = (4, 8)


def levels(bits: int) -> int:
    """Number of steps, n = 2^k − 1."""
    return 2**bits - 1


def weight_codes(weight: Tensor, bits: int) -> QTensor:
    """Codes j of Ŵ = (2j + 1)/n, from i = round(n·(tanh W/(2·max|tanh W|) + ½)).

    Args:
        weight: float32, any shape.
        bits: 2..8.

    Returns:
        Codes in −2^(k−1)..2^(k−1) − 1 with mult 2, offset 1, scale 1/n. All weights zero give code 0; a weight that is
        not finite makes the scale NaN.
    """
    n, half = levels(bits), 2 ** (bits - 1)
    weight = weight.detach()
    squashed = torch.tanh(weight)
    if _compiled(squashed) and squashed.stride() == weight.stride():
        codes = torch.empty_like(squashed, dtype=torch.int8)
        finite = native.compiled().weight_codes(
            native.pointer(squashed), native.pointer(weight), native.pointer(codes), squashed.numel(), n, half
        )
        scale = torch.tensor(1.0 / n if finite else math.nan)
    else:
        most = amax(squashed)
        divisor = torch.where(most == 0, math.inf, 2 * most)
        codes = squashed.div_(divisor).add_(0.5).mul_(n).round_().sub_(half).to(torch.int8)
        # tanh hides an infinite weight; 0·∞ = NaN does not.
        scale = weight.sum() * 0 + 1.0 / n
    return QTensor(codes=codes, scale=scale, mult=2, offset=1, bits=bits, code_max=half, value_max=n)


def weight_factor(weight: Tensor) -> Tensor:
    """∂Ŵ/∂W = (1 − tanh²W)/max|tanh W|, the maximum held constant (docs/method.md section 1).

    Args:
        weight: W at the time of the forward pass.

    Returns:
        Fresh tensor; 1 if every weight is zero, so that the layer can leave zero.
    """
    squashed = torch.tanh(weight)
    largest = amax(squashed)
    divisor = torch.where(largest == 0, 1.0, largest)
    return squashed.square_().neg_().add_(1).div_(divisor)


def weight_backward(grad_w_hat: Tensor, weight: Tensor) -> Tensor:
    """∇W = ∇Ŵ·(1 − tanh²W)/max|tanh W|, the maximum held constant (docs/method.md section 1).

    Args:
        grad_w_hat: gradient with respect to Ŵ, float32.
        weight: W at the time of the forward pass.

    Returns:
        Fresh float32 tensor; if every weight is zero the gradient passes unchanged, so that the layer can leave zero.
    """
    squashed = torch.tanh(weight)
    if not (_compiled(squashed) and _compiled(grad_w_hat)) or squashed.stride() != grad_w_hat.stride():
        return weight_factor(weight).mul_(grad_w_hat)
    native.compiled().weight_backward(native.pointer(grad_w_hat), native.pointer(squashed), squashed.numel())
    return squashed


def _compiled(values: Tensor) -> bool:
    """Whether the compiled pieces can read these values in the order of their memory."""
    dense = values.is_contiguous() or values.is_contiguous(memory_format=torch.channels_last)
    return dense and values.dtype == torch.float32 and native.usable(values.device)


def activation_codes(x: Tensor, bits: int) -> tuple[QTensor, Tensor]:
    """Codes of Â = round(n·clip(x, 0, 1))/n, and where the gradient passes.

    Args:
        x: float32, any shape.
        bits: 2..8.

    Returns:
        Codes with mult 1 and scale 1/n: a − 2^(k−1) with offset 2^(k−1) for 8 and 4 bits, a otherwise; and packed flags
        (``native.bits``), 1 where 0 ≤ x ≤ 1 and 0 elsewhere. An input that is not finite makes the scale NaN.
    """
    n, offset = code_numbers(bits)
    x = x.detach().contiguous()
    codes = torch.empty_like(x, dtype=torch.int8)
    inside = torch.empty(packed_size(x.numel()), dtype=torch.uint8, device=x.device)
    if _compiled(x):
        finite = native.compiled().act_codes(
            native.pointer(x), native.pointer(codes), native.pointer(inside), x.numel(), n, offset
        )
        return activation_grid(codes, bits, finite=bool(finite)), inside
    for values, code in flat_pieces(x, codes):
        code.copy_(values.clamp(0, 1).mul_(n).round_().sub_(offset))
    inside.copy_(pack_bits((x >= 0) & (x <= 1)))
    # Clipping hides an infinite input; its sum does not: ∞·0 = NaN.
    return replace(activation_grid(codes, bits, finite=True), scale=x.sum() * 0 + 1.0 / n), inside


def code_numbers(bits: int) -> tuple[float, float]:
    """Of an activation: the steps of its grid, n, and what is taken off so that the codes fit their container."""
    return float(levels(bits)), float(2 ** (bits - 1) if bits in _SIGNED_CONTAINERS else 0)


def activation_grid(codes: Tensor, bits: int, *, finite: bool) -> QTensor:
    """What an activation's codes stand for; the scale is NaN where a value was not finite."""
    n, offset = levels(bits), int(code_numbers(bits)[1])
    return QTensor(
        codes=codes,
        scale=torch.tensor(1.0 / n if finite else math.nan, device=codes.device),
        mult=1,
        offset=offset,
        bits=bits,
        code_max=max(offset, n - offset),
        value_max=n,
    )


def gradient_codes(
    gradient: Tensor,
    largest: Tensor,
    bits: int,
    *,
    rounding: str = "stochastic",
    generator: torch.Generator | None = None,
) -> QTensor:
    """Codes j of m(2j + 1)/n, from i = round(n·clip(g/2m + ½ + U(−½/n, ½/n), 0, 1)), j = i − 2^(k−1).

    Args:
        gradient: float32.
        largest: m, () or broadcastable to ``gradient``; 0 gives the value 0 everywhere.
        bits: 2..8.
        rounding: "stochastic", the method's, or "nearest", without the uniform noise.
        generator: for stochastic rounding.

    Returns:
        Codes in −2^(k−1)..2^(k−1) − 1 with mult 2, offset 1, scale m/n.

    Raises:
        ConfigError: for stochastic rounding without a generator.

    Source: DoReFa-Net, arXiv 1606.06160, Eq. 12.
    """
    n, half = levels(bits), 2 ** (bits - 1)
    gradient = gradient.detach().contiguous()
    divisor = torch.where(largest == 0, math.inf, 2 * largest)
    integers = torch.div(gradient, divisor).add_(0.5).mul_(n)
    if rounding == "stochastic":
        if generator is None:
            raise ConfigError("stochastic rounding needs an explicit generator; pass generator=")
        noise = draw_uniform(integers.shape, generator).sub_(0.5)
        integers.add_(noise.mul_(largest != 0))  # a zero range gives code 0
    integers = integers.clamp_(0, n).round_().sub_(half)
    return QTensor(
        codes=integers.to(torch.int8), scale=largest / n, mult=2, offset=1, bits=bits, code_max=half, value_max=n
    )


class DorefaGradient:
    """DoReFa's gradients: error signals, or ∇W."""

    def __init__(
        self,
        bits: int,
        *,
        rounding: str = "stochastic",
        granularity: str = "tensor",
        generator: torch.Generator | None = None,
    ) -> None:
        """Check the choices.

        Args:
            bits: 2..8.
            rounding: "stochastic" or "nearest".
            granularity: "tensor", or "sample" as published, which no integer wgrad can sum.
            generator: needed for stochastic rounding.

        Raises:
            ConfigError: for a choice that does not exist.
        """
        check_bits(bits, "DoReFa gradient")
        check_choices(rounding, granularity)
        if granularity == "channel":
            raise ConfigError("error quantizer dorefa takes one scale per tensor or per sample, not per channel")
        self.bits = bits
        self.rounding = rounding
        self.granularity = granularity
        self.generator = generator

    def quantize(self, gradient: Tensor) -> QTensor:
        """Codes of a gradient with m = max|g| of the granularity."""
        return gradient_codes(
            gradient,
            amax(gradient, self.granularity),
            self.bits,
            rounding=self.rounding,
            generator=self.generator,
        )

    def describe(self) -> str:
        """One line for the record."""
        return f"dorefa gradient, {self.bits} bits, {self.rounding}, per {self.granularity}, no zero"


class DorefaWeight:
    """DoReFa's weight quantizer."""

    def __init__(self, bits: int) -> None:
        """Check the width.

        Raises:
            ConfigError: outside 2..8 bits.
        """
        check_bits(bits, "DoReFa weight")
        self.bits = bits

    def quantize(self, x: Tensor) -> tuple[QTensor, Tensor | None]:
        """Codes j; the backward factor is ``backward``, not a mask."""
        return weight_codes(x, self.bits), None

    def factor(self, weight: Tensor) -> Tensor | None:
        """∂Ŵ/∂W at W."""
        return weight_factor(weight)

    def backward(self, grad_w_hat: Tensor, weight: Tensor) -> Tensor:
        """∇W from ∇Ŵ."""
        return weight_backward(grad_w_hat, weight)

    def describe(self) -> str:
        """One line for the record."""
        return f"dorefa, {self.bits} bits, nearest, per tensor"


class DorefaActivation:
    """DoReFa's activation quantizer, for inputs in [0, 1]."""

    def __init__(self, bits: int) -> None:
        """Check the width.

        Raises:
            ConfigError: outside 2..8 bits.
        """
        check_bits(bits, "DoReFa activation")
        self.bits = bits

    def quantize(self, x: Tensor) -> tuple[QTensor, Tensor | None]:
        """Codes, and packed flags of the positions inside [0, 1]."""
        return activation_codes(x, self.bits)

    def describe(self) -> str:
        """One line for the record."""
        return f"dorefa, {self.bits} bits, nearest, per tensor"
