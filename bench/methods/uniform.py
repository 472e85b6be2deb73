"""The plain uniform quantizer on the error signals and on ∇W: MetaGrad without its hypernetwork."""

from __future__ import annotations

from bench.methods.base import Method

UNIFORM = Method(
    name="uniform",
    summary="symmetric uniform quantizer on error signals, on the weight gradient, or on both",
    source="MetaGrad Eq. 1",
    low_bit=True,
    error_quantizers=("none", "uniform"),
    grad_quantizers=("none", "uniform"),
    quantizer="uniform",
)
