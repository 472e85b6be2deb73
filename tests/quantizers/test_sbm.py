"""SBM's gradient bifurcation, worked by hand."""

from __future__ import annotations

import pytest
import torch

from bench.errors import ConfigError
from bench.quantizers import BifurcatedQuantizer
from bench.quantizers.base import dequantize
from bench.quantizers.sbm import wide_grids

GRADIENT = torch.tensor([1.0, -0.5, 0.001, 0.00001])


def test_dgrad_sees_eight_bits_and_wgrad_sixteen():
    quantizer = BifurcatedQuantizer(8, rounding="nearest")
    for_dgrad = quantizer.quantize(GRADIENT)
    # 127, 63.5 to even, 0.127, 0.00127
    assert for_dgrad.codes.tolist() == [127, -64, 0, 0]
    high, low = quantizer.quantize_for_wgrad(GRADIENT)
    # ·32639: 32639, −16319.5 to even, 32.6, 0.33
    assert (high.codes.int() * 256 + low.codes).tolist() == [32639, -16320, 33, 0]
    assert low.scale.item() == pytest.approx(1 / 32639)


def test_stochastic_rounding_of_the_eight_bits_has_no_bias_and_the_copy_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    quantizer = BifurcatedQuantizer(8, generator=generator)
    gradient = torch.cat([torch.ones(1), torch.full((20000,), 0.3 / 127)])
    assert dequantize(quantizer.quantize(gradient))[1:].mean().item() == pytest.approx(0.3 / 127, rel=0.05)
    state = generator.get_state()
    quantizer.quantize_for_wgrad(gradient)
    assert torch.equal(generator.get_state(), state)


def test_a_zero_gradient_is_zero_and_one_that_is_not_finite_shows():
    assert all(grid.codes.eq(0).all() for grid in wide_grids(torch.zeros(3), torch.zeros(()), 16))
    bad = BifurcatedQuantizer(8, rounding="nearest").quantize_for_wgrad(torch.tensor([1.0, float("inf")]))
    assert not any(dequantize(grid).isfinite().any() for grid in bad)


def test_a_width_that_int8_cannot_hold_is_refused():
    with pytest.raises(ConfigError, match="SBM quantizer: 16 bits; choose 2 to 8"):
        BifurcatedQuantizer(16)
