"""WAGEUBN: weights, activations, ∇W, error signals, update and batch-norm, all in fixed point."""

from __future__ import annotations

from bench.methods.base import Method

WAGEUBN = Method(
    name="wageubn",
    summary="fixed point throughout: weights, activations, ∇W, error signals with a flag bit, update, batch-norm",
    source="Yang et al., Training High-Performance DNNs with Full 8-bit Integers, Neural Networks 2020 (arXiv 1909.02384)",  # noqa: E501
    low_bit=True,
    error_quantizers=("wageubn",),
    grad_quantizers=("wageubn",),
    quantizer="wageubn",
    forward_quantizers=("wageubn",),
    norm="fixed_point",
    fixed_point_update=True,
)
