"""The references: FP32, and bf16 through torch's autocast."""

from __future__ import annotations

from bench.methods.base import Method

FP32 = Method(
    name="fp32",
    summary="everything in FP32, channels-last",
    source="PyTorch",
    low_bit=False,
    error_quantizers=("none",),
    grad_quantizers=("none",),
)

BF16 = Method(
    name="bf16",
    summary="products in bfloat16 through autocast, weights and updates in FP32",
    source="PyTorch, torch.autocast",
    low_bit=False,
    error_quantizers=("none",),
    grad_quantizers=("none",),
    autocast_bf16=True,
)
