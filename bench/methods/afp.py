"""AFP: fixed-point error signals of 8, 16 or 24 bits, each layer's width chosen by the change of the mean."""

from __future__ import annotations

from bench.methods.base import Method

AFP = Method(
    name="afp",
    summary="adaptive fixed point: each layer's error signals take 8, 16 or 24 bits, by the change of their mean",
    source="Zhang et al., Fixed-Point Back-Propagation Training, CVPR 2020 (arXiv 1911.00361)",
    low_bit=True,
    error_quantizers=("afp",),
    grad_quantizers=("none",),
    quantizer="afp",
    forward_quantizers=("fixed_point", "dorefa"),
    error_bits=(8,),
    error_roundings=("nearest",),
)
