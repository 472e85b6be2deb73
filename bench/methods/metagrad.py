"""MetaGrad: a hypernetwork before the quantizer of ∇W, trained through the delayed update."""

from __future__ import annotations

from bench.methods.base import Method

METAGRAD = Method(
    name="metagrad",
    summary="hypernetwork and delayed update make the quantized weight gradient loss-aware",
    source="Xu et al., MetaGrad: Adaptive Gradient Quantization with Hypernetworks, Eq. 2-13",
    low_bit=True,
    error_quantizers=("none", "uniform", "dorefa", "uint8", "daint8"),
    grad_quantizers=("hypernet",),
)
