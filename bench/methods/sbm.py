"""SBM: error signals at 8 bits for dgrad, at 16 for wgrad; range batch-norm."""

from __future__ import annotations

from bench.methods.base import Method

SBM = Method(
    name="sbm",
    summary="gradient bifurcation: 8-bit error signals for dgrad, a 16-bit copy for wgrad; range batch-norm",
    source="Banner et al., Scalable Methods for 8-bit Training of Neural Networks, NeurIPS 2018 (arXiv 1805.11046)",
    low_bit=True,
    error_quantizers=("sbm",),
    grad_quantizers=("none",),
    quantizer="sbm",
    forward_quantizers=("minmax", "dorefa"),
    norm="range",
)
