"""Integer layers: quantizers and kernels joined in autograd functions, and the conversion of float models."""

from __future__ import annotations

from bench.layers.base import IntegerLayer, LayerFacts
from bench.layers.convert import (
    Conversion,
    KeptLayer,
    QuantSpec,
    check_spec,
    quantize_model,
    quantized_layers,
)
from bench.layers.integer_conv import IntegerConv2d
from bench.layers.integer_linear import IntegerLinear

__all__ = [
    "Conversion",
    "IntegerConv2d",
    "IntegerLayer",
    "IntegerLinear",
    "KeptLayer",
    "LayerFacts",
    "QuantSpec",
    "check_spec",
    "quantize_model",
    "quantized_layers",
]
