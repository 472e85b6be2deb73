"""Quantizers by name."""

from __future__ import annotations

import pytest
import torch

from bench.errors import ConfigError
from bench.quantizers import (
    ACTIVATION_QUANTIZERS,
    ERROR_QUANTIZERS,
    ONE_BIT,
    WEIGHT_QUANTIZERS,
    build_activation_quantizer,
    build_error_quantizer,
    build_weight_quantizer,
)

ONE_WIDTH = {"afp": 8, "fp4": 4}


def test_every_name_builds_at_every_width_and_describes_itself():
    for bits in range(2, 9):
        built = [
            *(build_weight_quantizer(name, bits) for name in WEIGHT_QUANTIZERS if name not in ONE_BIT),
            *(build_activation_quantizer(name, bits) for name in ACTIVATION_QUANTIZERS),
            *(build_error_quantizer(name, bits, channels=3) for name in ERROR_QUANTIZERS if name not in ONE_WIDTH),
            *(build_error_quantizer(name, bits) for name, width in ONE_WIDTH.items() if width == bits),
        ]
        assert all(quantizer.bits == bits and f"{bits} bits" in quantizer.describe() for quantizer in built)


@pytest.mark.parametrize("name", ACTIVATION_QUANTIZERS)
def test_an_activation_without_a_mask_passes_everything_and_a_mask_has_one_bit_a_value(name):
    _, flags = build_activation_quantizer(name, 8).quantize(torch.tensor([[-0.5, 0.0, 0.5], [0.75, 1.0, 1.5]]))
    assert flags is None or (flags.dtype, flags.shape) == (torch.uint8, (1,))


@pytest.mark.parametrize("name", ["dorefa", "bwn", "bwn_f"])
def test_three_weight_quantizers_have_one_bit(name):
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


@pytest.mark.parametrize("name", ["minmax", "fixed_point", "wageubn"])
def test_the_others_refuse_one_bit_and_name_those_that_have_it(name):
    with pytest.raises(ConfigError, match="2 to 8 bits, not 1: take quantizer=dorefa, bwn or bwn_f"):
        build_weight_quantizer(name, 1)


@pytest.mark.parametrize("name", ["uint8", "sbm", "wageubn", "afp", "fp4"])
def test_what_takes_one_scale_per_tensor_refuses_other_granularities(name):
    with pytest.raises(ConfigError, match="needs error=uniform"):
        build_error_quantizer(name, ONE_WIDTH.get(name, 8), granularity="sample")
