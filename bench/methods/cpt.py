"""CPT: the bits of weights and activations rise in cycles, error signals keep theirs."""

from __future__ import annotations

from bench.methods.base import Method

CPT = Method(
    name="cpt",
    summary="cyclic precision: the bits of weights and activations rise along half a cosine, again and again",
    source="Fu et al., CPT: Efficient DNN Training via Cyclic Precision, ICLR 2021 (arXiv 2101.09868), Eq. 1",
    low_bit=True,
    error_quantizers=("none", "uniform"),
    grad_quantizers=("none",),
    forward_quantizers=("minmax", "dorefa"),
    cyclic=True,
)
