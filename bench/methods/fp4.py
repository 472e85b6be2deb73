"""FP4: radix-4 error signals of 4 bits, rounded in two phases."""

from __future__ import annotations

from bench.methods.base import Method

FP4 = Method(
    name="fp4",
    summary="error signals as radix-4 floating-point numbers of 4 bits, two-phase rounding, a scale per layer",
    source="Sun et al., Ultra-Low Precision 4-bit Training of Deep Neural Networks, NeurIPS 2020",
    low_bit=True,
    error_quantizers=("fp4",),
    grad_quantizers=("none",),
    quantizer="fp4",
    forward_quantizers=("dorefa", "minmax"),
    error_bits=(4,),
    error_roundings=("nearest",),
)
