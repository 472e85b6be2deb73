"""Quantizers by name."""

from __future__ import annotations

import pytest

from bench.errors import ConfigError
from bench.quantizers import (
    ACTIVATION_QUANTIZERS,
    ERROR_QUANTIZERS,
    WEIGHT_QUANTIZERS,
    build_activation_quantizer,
    build_error_quantizer,
    build_weight_quantizer,
)


def test_every_name_builds_at_every_width_and_describes_itself():
    for bits in range(2, 9):
        built = [
            build_weight_quantizer("dorefa", bits),
            *(build_activation_quantizer(name, bits) for name in ACTIVATION_QUANTIZERS),
            *(build_error_quantizer(name, bits, channels=3) for name in ERROR_QUANTIZERS),
        ]
        assert all(quantizer.bits == bits and f"{bits} bits" in quantizer.describe() for quantizer in built)


@pytest.mark.parametrize("name", WEIGHT_QUANTIZERS)
def test_every_weight_quantizer_has_one_bit(name):
    quantizer = build_weight_quantizer(name, 1)
    assert quantizer.bits == 1
    assert quantizer.describe().startswith(f"{name}, 1 bits")


@pytest.mark.parametrize("name", ["bwn", "bwn_f"])
@pytest.mark.parametrize("bits", [2, 8])
def test_bwn_at_more_bits_is_refused_with_the_valid_choices(name, bits):
    with pytest.raises(ConfigError, match=f"has 1 bit, not {bits}: set weight_bits=1, or quantizer=dorefa"):
        build_weight_quantizer(name, bits)


def test_an_unknown_name_gets_the_known_ones_and_the_nearest():
    with pytest.raises(ConfigError, match=r"'unifrom' is unknown \(did you mean 'uniform'\?\); choose one of: uniform"):
        build_error_quantizer("unifrom", 8)


def test_uint8_refuses_other_granularities():
    with pytest.raises(ConfigError, match="needs error=uniform"):
        build_error_quantizer("uint8", 8, granularity="sample")
