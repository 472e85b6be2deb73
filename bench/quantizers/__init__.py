"""Quantizers: floats to integer codes with a scale, and the straight-through backward (docs/method.md section 1)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

import torch

from bench.errors import ConfigError
from bench.quantizers.afp import AdaptiveQuantizer
from bench.quantizers.base import ErrorQuantizer, ForwardQuantizer, WeightQuantizer
from bench.quantizers.bwn import BinaryWeight, check_one_bit
from bench.quantizers.cyclic import CyclicActivation, CyclicPrecision, CyclicWeight
from bench.quantizers.daint8 import Daint8Quantizer
from bench.quantizers.dorefa import DorefaActivation, DorefaGradient, DorefaWeight
from bench.quantizers.fixed_point import FixedPointQuantizer
from bench.quantizers.fp4 import Fp4Quantizer
from bench.quantizers.minmax import MinMaxActivation, MinMaxWeight
from bench.quantizers.sbm import BifurcatedQuantizer
from bench.quantizers.uint8_clip import Uint8ClipQuantizer
from bench.quantizers.uniform import UniformActivation, UniformQuantizer
from bench.quantizers.wageubn import DirectActivation, DirectWeight, FlagQuantizer
from bench.quantizers.weight_gradient import GRAD_QUANTIZERS, PUBLISHED_FOR_ERRORS, GradQuantizer

WEIGHT_QUANTIZERS = ("dorefa", "bwn", "bwn_f", "minmax", "fixed_point", "wageubn")
ONE_BIT = ("bwn", "bwn_f")
ACTIVATION_QUANTIZERS: dict[str, Callable[[int], ForwardQuantizer]] = {
    "dorefa": DorefaActivation,
    "uniform": UniformActivation,
    "minmax": MinMaxActivation,
    "fixed_point": FixedPointQuantizer,
    "wageubn": DirectActivation,
}
ERROR_QUANTIZERS = {
    "uniform": UniformQuantizer,
    "dorefa": DorefaGradient,
    "uint8": Uint8ClipQuantizer,
    "daint8": Daint8Quantizer,
    "sbm": BifurcatedQuantizer,
    "wageubn": FlagQuantizer,
    "afp": AdaptiveQuantizer,
    "fp4": Fp4Quantizer,
}
# What keeps one state per layer cannot quantize a layer's error signal a second time with BWN-F's scales folded in.
ONE_STATE = ("uint8", "afp", "fp4")

QUANTIZERS = {
    "weight": WEIGHT_QUANTIZERS,
    "activation": ACTIVATION_QUANTIZERS,
    "error": ERROR_QUANTIZERS,
}

__all__ = [
    "ACTIVATION_QUANTIZERS",
    "ERROR_QUANTIZERS",
    "GRAD_QUANTIZERS",
    "ONE_BIT",
    "ONE_STATE",
    "PUBLISHED_FOR_ERRORS",
    "QUANTIZERS",
    "WEIGHT_QUANTIZERS",
    "AdaptiveQuantizer",
    "BinaryWeight",
    "CyclicActivation",
    "CyclicPrecision",
    "CyclicWeight",
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
    "activation_of",
    "build_activation_quantizer",
    "build_error_quantizer",
    "build_weight_quantizer",
    "check_name",
    "check_weight_bits",
]


def build_weight_quantizer(name: str, bits: int) -> WeightQuantizer:
    """Weight quantizer by name: dorefa at 1 to 8 bits, bwn and bwn_f (one α per output filter) at 1, others at 2 to 8.

    Raises:
        ConfigError: for an unknown name or width.
    """
    check_name("weight quantizer", name, WEIGHT_QUANTIZERS)
    check_weight_bits(name, bits)
    if name in ONE_BIT or bits == 1:
        return BinaryWeight(bits, name=name, per_filter=name == "bwn_f")
    plain: dict[str, Callable[[int], WeightQuantizer]] = {
        "dorefa": DorefaWeight,
        "minmax": MinMaxWeight,
        "fixed_point": FixedPointQuantizer,
        "wageubn": DirectWeight,
    }
    return plain[name](bits)


def check_weight_bits(name: str, bits: int) -> None:
    """Refuse widths that a weight quantizer does not have.

    Raises:
        ConfigError: naming the valid choices.
    """
    if name in ONE_BIT:
        check_one_bit(name, bits)
    elif bits == 1 and name != "dorefa":
        raise ConfigError(f"quantizer {name} has 2 to 8 bits, not 1: take quantizer=dorefa, bwn or bwn_f for one bit")


def activation_of(forward: str, *, signed: bool) -> str:
    """The activation quantizer that goes with a weight quantizer.

    Args:
        forward: one of ``WEIGHT_QUANTIZERS``.
        signed: the layer's input is negative somewhere: the symmetric uniform quantizer, unless the own is symmetric.
    """
    if forward == "fixed_point":
        return forward
    if signed:
        return "uniform"
    return forward if forward in ("minmax", "wageubn") else "dorefa"


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
        granularity: "tensor", "sample" or "channel"; DoReFa knows no "channel", all others but uniform only "tensor".
        generator: for stochastic rounding.
        channels: output channels of the layer, which DAINT8 needs.

    Raises:
        ConfigError: for an unknown name, width or combination.
    """
    check_name("error quantizer", name, ERROR_QUANTIZERS)
    if name not in ("uniform", "dorefa", "daint8") and granularity != "tensor":
        raise ConfigError(
            f"error quantizer {name} takes one scale per tensor; granularity {granularity!r} needs error=uniform"
        )
    if name == "afp":
        return AdaptiveQuantizer(bits, rounding=rounding)
    if name == "fp4":
        return Fp4Quantizer(bits, rounding=rounding)
    if name in ("sbm", "wageubn"):
        two_grids = BifurcatedQuantizer if name == "sbm" else FlagQuantizer
        return two_grids(bits, rounding=rounding, generator=generator)
    if name == "uint8":
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
