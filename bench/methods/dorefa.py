"""DoReFa-Net's gradient quantizer, on a grid without zero, on the error signals and on ∇W."""

from __future__ import annotations

from bench.methods.base import Method

DOREFA = Method(
    name="dorefa",
    summary="DoReFa's gradient quantizer (no zero on its grid) on error signals, on the weight gradient, or on both",
    source="Zhou et al., DoReFa-Net, arXiv 1606.06160, Eq. 12",
    low_bit=True,
    error_quantizers=("none", "dorefa"),
    grad_quantizers=("none", "uniform", "dorefa"),
    quantizer="dorefa",
)
