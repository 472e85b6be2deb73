"""Quantizers of ∇W: the values that the optimizer steps with; no integer product reads them.

Source: docs/method.md sections 1 and 5. ``uniform`` and ``dorefa`` take one maximum per tensor, ``uint8`` its searched
clip per tensor (without its learning-rate factor, which belongs to error signals), ``daint8`` its adaptive clip per
output channel. ``wageubn`` is its constant quantization, whose values keep no trace of the gradient's size. UINT8 and
DAINT8 were published for error signals; using them here is our extension, and records say so.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.layout import flat
from bench.quantizers.base import amax, check_bits, dequantize, flat_pieces
from bench.quantizers.daint8 import Daint8Quantizer
from bench.quantizers.dorefa import gradient_codes
from bench.quantizers.uint8_clip import Uint8ClipQuantizer
from bench.quantizers.uniform import check_choices, uniform_values
from bench.quantizers.wageubn import constant_values

GRAD_QUANTIZERS = ("uniform", "dorefa", "uint8", "daint8", "wageubn")
PUBLISHED_FOR_ERRORS = ("uint8", "daint8")


class GradQuantizer(nn.Module):
    """One layer's quantizer of ∇W; what it remembers travels in the state dict."""

    def __init__(
        self,
        name: str,
        bits: int,
        *,
        rounding: str = "nearest",
        generator: torch.Generator | None = None,
        channels: int | None = None,
    ) -> None:
        """Check the choices.

        Args:
            name: one of ``GRAD_QUANTIZERS``.
            bits: 2..8.
            rounding: "nearest" or "stochastic".
            generator: needed for stochastic rounding.
            channels: output channels of the layer, which DAINT8 needs.

        Raises:
            ConfigError: for a choice that does not exist.
        """
        super().__init__()
        if name not in GRAD_QUANTIZERS:
            raise ConfigError(f"∇W quantizer {name!r} is unknown; choose one of: {', '.join(GRAD_QUANTIZERS)}")
        check_bits(bits, f"∇W quantizer {name}")
        check_choices(rounding, "tensor")
        self.name = name
        self.bits = bits
        self.rounding = rounding
        self.generator = generator
        self.clip: Uint8ClipQuantizer | Daint8Quantizer | None = None
        if name == "uint8":
            self.clip = Uint8ClipQuantizer(bits, rounding=rounding, generator=generator)
        elif name == "daint8":
            self.clip = Daint8Quantizer(bits, channels=channels, rounding=rounding, generator=generator)

    @torch.no_grad()
    def forward(self, grad: Tensor) -> Tensor:
        """Quantized and dequantized ∇W.

        Args:
            grad: (output channels, ...) float32.

        Returns:
            Fresh tensor of the same shape.
        """
        if isinstance(self.clip, Daint8Quantizer):
            return dequantize(self.clip.quantize_for_wgrad(grad.movedim(0, -1))).movedim(-1, 0)
        if self.clip is not None:
            return dequantize(self.clip.quantize(grad))
        if self.name == "wageubn":
            return constant_values(grad, self.bits, rounding=self.rounding, generator=self.generator)
        largest = amax(flat(grad))
        if self.name == "dorefa":
            codes = gradient_codes(grad, largest, self.bits, rounding=self.rounding, generator=self.generator)
            return dequantize(codes)
        return uniform_values(grad, largest, self.bits, rounding=self.rounding, generator=self.generator)

    @torch.no_grad()
    def quantize_(self, grad: Tensor) -> Tensor:
        """The same over the tensor itself, for a gradient that nobody else reads.

        Args:
            grad: (output channels, ...) float32.

        Returns:
            `grad`.
        """
        values = flat(grad)
        is_copy = values.untyped_storage()._cdata != grad.untyped_storage()._cdata  # also where there are no data
        if self.name != "uniform" or is_copy:
            return grad.copy_(self(grad))
        largest = amax(values)
        for (piece,) in flat_pieces(values):
            piece.copy_(uniform_values(piece, largest, self.bits, rounding=self.rounding, generator=self.generator))
        return grad

    def extra_repr(self) -> str:
        """The choices, in the module's print."""
        return f"{self.name}, {self.bits} bits, {self.rounding}"
