"""UINT8: direction-sensitive clipping of the error signals, deviation-counteractive learning rate."""

from __future__ import annotations

from bench.methods.base import Method

UINT8 = Method(
    name="uint8",
    summary="error signals clipped where the direction suffers least, learning rate lowered by the deviation",
    source="Zhu et al., Towards Unified INT8 Training, CVPR 2020",
    low_bit=True,
    error_quantizers=("none", "uint8"),
    grad_quantizers=("none", "uniform", "uint8"),
    quantizer="uint8",
)
