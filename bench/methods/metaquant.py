"""MetaQuant: a hypernetwork in the place of the weight quantizer's straight-through estimator."""

from __future__ import annotations

from bench.methods.base import Method

METAQUANT = Method(
    name="metaquant",
    summary="a hypernetwork replaces the straight-through estimator of the weight quantizer, trained by delayed update",
    source="Chen, Wang, Pan, MetaQuant, NeurIPS 2019",
    low_bit=True,
    error_quantizers=("none",),
    grad_quantizers=("hypernet",),
    hypernets=("fc_grad", "multi_fc", "lstm_fc"),
    replaces_ste=True,
)
