"""Quantizers: floats to integer codes with a scale, and the straight-through backward (docs/method.md section 1)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

import torch

from bench.errors import ConfigError
from bench.quantizers.base import ErrorQuantizer, ForwardQuantizer, WeightQuantizer
from bench.quantizers.bwn import BinaryWeight, check_one_bit
from bench.quantizers.daint8 import Daint8Quantizer
from bench.quantizers.dorefa import DorefaActivation, DorefaGradient, DorefaWeight
from bench.quantizers.uint8_clip import Uint8ClipQuantizer
from bench.quantizers.uniform import UniformActivation, UniformQuantizer
from bench.quantizers.weight_gradient import GRAD_QUANTIZERS, PUBLISHED_FOR_ERRORS, GradQuantizer

WEIGHT_QUANTIZERS = ("dorefa", "bwn", "bwn_f")
ACTIVATION_QUANTIZERS: dict[str, Callable[[int], ForwardQuantizer]] = {
    "dorefa": DorefaActivation,
    "uniform": UniformActivation,
}
ERROR_QUANTIZERS = {
    "uniform": UniformQuantizer,
    "dorefa": DorefaGradient,
    "uint8": Uint8ClipQuantizer,
    "daint8": Daint8Quantizer,
}

QUANTIZERS = {
    "weight": WEIGHT_QUANTIZERS,
    "activation": ACTIVATION_QUANTIZERS,
    "error": ERROR_QUANTIZERS,
}

__all__ = [
    "ACTIVATION_QUANTIZERS",
    "ERROR_QUANTIZERS",
    "GRAD_QUANTIZERS",
    "PUBLISHED_FOR_ERRORS",
    "QUANTIZERS",
    "WEIGHT_QUANTIZERS",
    "BinaryWeight",
    "Daint8Quantizer",
    "DorefaActivation",
    "DorefaGradient",
    "DorefaWeight",
    "ErrorQuantizer",
    "ForwardQuantizer",
    "GradQuantizer",
    "Uint8ClipQuantizer",
    "UniformActivation",
    "UniformQuantizer",
    "WeightQuantizer",
    "build_activation_quantizer",
    "build_error_quantizer",
    "build_weight_quantizer",
    "check_name",
    "check_one_bit",
]


def build_weight_quantizer(name: str, bits: int) -> WeightQuantizer:
    """Weight quantizer by name: dorefa at 1 to 8 bits, bwn and bwn_f (one α per output filter) at 1.

    Raises:
        ConfigError: for an unknown name or width.
    """
    check_name("weight quantizer", name, WEIGHT_QUANTIZERS)
    if name == "dorefa" and bits != 1:
        return DorefaWeight(bits)
    return BinaryWeight(bits, name=name, per_filter=name == "bwn_f")


def build_activation_quantizer(name: str, bits: int) -> ForwardQuantizer:
    """Activation quantizer by name.

    Raises:
        ConfigError: for an unknown name or width.
    """
    check_name("activation quantizer", name, ACTIVATION_QUANTIZERS)
    return ACTIVATION_QUANTIZERS[name](bits)


def build_error_quantizer(
    name: str,
    bits: int,
    *,
    rounding: str = "nearest",
    granularity: str = "tensor",
    generator: torch.Generator | None = None,
    channels: int | None = None,
) -> ErrorQuantizer:
    """Error-signal quantizer by name.

    Args:
        name: one of ``ERROR_QUANTIZERS``.
        bits: 2..8.
        rounding: "nearest" or "stochastic".
        granularity: "tensor", "sample" or "channel"; UINT8 and DAINT8's dgrad know only "tensor", DoReFa no "channel".
        generator: for stochastic rounding.
        channels: output channels of the layer, which DAINT8 needs.

    Raises:
        ConfigError: for an unknown name, width or combination.
    """
    check_name("error quantizer", name, ERROR_QUANTIZERS)
    if name == "uint8":
        if granularity != "tensor":
            raise ConfigError(
                f"error quantizer uint8 clips per tensor; granularity {granularity!r} needs error=uniform"
            )
        return Uint8ClipQuantizer(bits, rounding=rounding, generator=generator)
    if name == "daint8":
        return Daint8Quantizer(bits, channels=channels, rounding=rounding, granularity=granularity, generator=generator)
    plain = DorefaGradient if name == "dorefa" else UniformQuantizer
    return plain(bits, rounding=rounding, granularity=granularity, generator=generator)


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Refuse an unknown name.

    Raises:
        ConfigError: with the known names and the nearest one.
    """
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"{what} {name!r} is unknown{hint}; choose one of: {', '.join(names)}")
