"""Low-bit weights and activations; gradients pass straight through in FP32."""

from __future__ import annotations

from bench.methods.base import Method

STE = Method(
    name="ste",
    summary="low-bit weights and activations, straight-through gradients in FP32",
    source="Bengio et al. 2013 (arXiv 1308.3432), DoReFa-Net (arXiv 1606.06160) for the quantizers",
    low_bit=True,
    error_quantizers=("none",),
    grad_quantizers=("none",),
)
