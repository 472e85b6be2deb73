"""One-bit weights: α·sign(W) with α = mean|W|, per layer or per output filter; the gradient passes unchanged.

Source: Binary-Weight-Networks in XNOR-Net, arXiv 1603.05279 (BWN, and BWN-F with one α per filter); DoReFa-Net's k = 1,
arXiv 1606.06160 Eq. 7, is the same per layer; docs/method.md sections 1 and 2. sign(0) = +1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.errors import ConfigError
from bench.quantizers.base import QTensor


def sign_codes(weight: Tensor, *, per_filter: bool = False) -> QTensor:
    """Codes ±1 of α·sign(W).

    Args:
        weight: (output filters, ...) float32.
        per_filter: one α for each index of the first axis.

    Returns:
        Codes ±1 with mult 1, offset 0 and scale α, () or (output filters, 1, ...); a weight that is
        not finite makes α so.
    """
    weight = weight.detach()
    codes = torch.where(weight < 0, -1, 1).to(torch.int8)
    alpha = weight.abs().mean(list(range(1, weight.dim())), keepdim=True) if per_filter else weight.abs().mean()
    if per_filter:
        alpha = alpha + 0 * alpha.sum()  # a filter that is not finite shows everywhere
    return QTensor(codes=codes, scale=alpha, mult=1, offset=0, bits=1, code_max=1, value_max=1)


class BinaryWeight:
    """BWN, BWN-F and DoReFa's k = 1."""

    bits = 1

    def __init__(self, bits: int = 1, *, name: str = "bwn", per_filter: bool = False) -> None:
        """Check the width.

        Args:
            bits: 1.
            name: for the record.
            per_filter: one α per output filter (BWN-F).

        Raises:
            ConfigError: for any other width, naming what has it.
        """
        check_one_bit(name, bits)
        self.name = name
        self.per_filter = per_filter

    def quantize(self, x: Tensor) -> tuple[QTensor, Tensor | None]:
        """Codes ±1; all of the gradient passes."""
        return sign_codes(x, per_filter=self.per_filter), None

    def factor(self, weight: Tensor) -> Tensor | None:
        """∂Ŵ/∂W is 1 everywhere: None."""
        return None

    def backward(self, grad_w_hat: Tensor, weight: Tensor) -> Tensor:
        """∇W is ∇Ŵ."""
        return grad_w_hat

    def describe(self) -> str:
        """One line for the record."""
        return f"{self.name}, 1 bits, α·sign(W), one α per {'output filter' if self.per_filter else 'layer'}"


def check_one_bit(name: str, bits: int) -> None:
    """Refuse other widths.

    Raises:
        ConfigError: naming the valid choices.
    """
    if bits != 1:
        raise ConfigError(
            f"quantizer {name} has 1 bit, not {bits}: set weight_bits=1, or quantizer=dorefa for {bits} bits"
        )
