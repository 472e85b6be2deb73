"""DAINT8: error signals clipped by their distribution, with scales of their own for dgrad and for wgrad."""

from __future__ import annotations

from bench.methods.base import Method

DAINT8 = Method(
    name="daint8",
    summary="error signals clipped by their distribution, quantized per tensor for dgrad and per channel for wgrad",
    source="Zhao et al., Distribution Adaptive INT8 Quantization for Training CNNs, AAAI 2021",
    low_bit=True,
    error_quantizers=("none", "daint8"),
    grad_quantizers=("none", "uniform", "daint8"),
    quantizer="daint8",
)
