"""WAGEUBN's direct, flag and constant quantization, worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.errors import ConfigError
from bench.native.bits import unpack_bits
from bench.quantizers import FlagQuantizer, build_activation_quantizer, build_weight_quantizer
from bench.quantizers.base import Grids, dequantize
from bench.quantizers.wageubn import constant_values, direct_codes, flag_grids, shift_of


def values(grids: Grids) -> Tensor:
    return sum(dequantize(grid) for grid in grids)


def test_the_shift_is_the_nearest_power_of_two_in_the_exponent():
    # log2 1.41 < ½ < log2 1.42
    for largest, shift in ((1.0, 1), (1.41, 1), (1.42, 2), (0.71, 1), (0.70, 0.5), (3.0, 4), (0.0, 1)):
        assert shift_of(torch.tensor(largest)).item() == shift


def test_direct_codes_have_constant_steps_and_stay_below_one():
    q = direct_codes(torch.tensor([0.5, -0.49, 0.99, 1.5, -7.0]), 4)  # steps of 1/8
    assert q.codes.tolist() == [4, -4, 7, 7, -7]
    assert q.scale.item() == 0.125
    assert direct_codes(torch.tensor([1.0, float("inf")]), 8).scale.isnan()


def test_the_gradient_passes_weights_everywhere_and_activations_where_nothing_is_clipped():
    weight = torch.tensor([0.5, 3.0])
    quantizer = build_weight_quantizer("wageubn", 8)
    assert quantizer.factor(weight) is None
    assert quantizer.backward(weight, weight) is weight
    _, mask = build_activation_quantizer("wageubn", 8).quantize(torch.tensor([0.5, 1.0, 1.01, -2.0]))
    assert unpack_bits(mask, (4,)).tolist() == [1, 1, 0, 0]


def test_a_flagged_signal_has_a_coarse_and_a_fine_range():
    # R = 1 at 4 bits: S = 1/8; from S up steps of S, below it steps of S/8
    gradient = torch.tensor([1.0, 0.3, 0.125, 0.1, -0.02, 0.001])
    upper, lower = flag_grids(gradient, 4)
    assert upper.codes.tolist() == [7, 2, 1, 0, 0, 0]  # 8 saturates
    assert lower.codes.tolist() == [0, 0, 0, 6, -1, 0]  # 6.4, −1.28
    assert (upper.scale, lower.scale) == (0.125, 0.125 / 8)
    assert values((upper, lower)).tolist() == [0.875, 0.25, 0.125, 0.09375, -0.015625, 0]


def test_a_value_just_below_the_fine_ranges_end_keeps_its_code_in_int8():
    _, lower = flag_grids(torch.tensor([1.0, 0.9999 / 128]), 8)
    assert lower.codes.tolist() == [0, 127]


def test_constant_quantization_forgets_the_size_of_a_gradient():
    gradient = torch.tensor([1.0, -0.5, 0.25, 0.0])
    expected = [127 * 2.0**-14, -64 * 2.0**-14, 32 * 2.0**-14, 0]
    for size in (1, 2.0**-20):
        assert constant_values(gradient * size, 8, rounding="nearest").tolist() == expected
    assert constant_values(gradient, 4, rounding="nearest").tolist() == [7 * 2.0**-10, -4 * 2.0**-10, 2 * 2.0**-10, 0]
    assert constant_values(torch.zeros(3), 8, rounding="nearest").eq(0).all()


def test_constant_quantization_rounds_without_bias():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.cat([torch.ones(1), torch.full((20000,), 0.3 / 128)])
    rounded = constant_values(gradient, 8, generator=generator)[1:] * 2**14
    assert set(rounded.unique().tolist()) == {0, 1}
    assert rounded.mean().item() == pytest.approx(0.3, rel=0.05)


def test_values_that_are_not_finite_show():
    for bad in (float("nan"), float("inf")):
        gradient = torch.tensor([1.0, bad])
        assert not values(flag_grids(gradient, 8)).isfinite().any()
        assert not constant_values(gradient, 8, rounding="nearest").isfinite().any()


def test_a_width_that_int8_cannot_hold_is_refused():
    with pytest.raises(ConfigError, match="WAGEUBN error signal: 16 bits; choose 2 to 8"):
        FlagQuantizer(16)
