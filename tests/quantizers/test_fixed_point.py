"""Fixed-point numbers with one power of two per tensor, worked by hand."""

from __future__ import annotations

import pytest
import torch

from bench.quantizers import build_activation_quantizer, build_weight_quantizer
from bench.quantizers.base import dequantize
from bench.quantizers.fixed_point import fixed_point_codes, resolution_of


def test_the_resolution_is_the_next_power_of_two_and_a_power_of_two_is_its_own():
    for largest, top, resolution in (
        (127.0, 127, 1),
        (127.1, 127, 2),
        (63.5, 127, 0.5),
        (7.0, 7, 1),
        (1.0, 127, 2**-6),
    ):
        assert resolution_of(torch.tensor(largest), top).item() == resolution


def test_codes_are_rounded_half_to_even_and_nothing_saturates():
    q = fixed_point_codes(torch.tensor([6.0, 2.5, -1.5, 0.4]), 4)  # r = 1
    assert q.codes.tolist() == [6, 2, -2, 0]
    assert (q.scale, q.mult, q.offset, q.code_max) == (1, 1, 0, 7)
    q = fixed_point_codes(torch.tensor([7.5, 1.0]), 4)  # r = 2
    assert dequantize(q).tolist() == [8, 0]


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_error_is_at_most_half_a_resolution(bits):
    x = torch.randn(500, generator=torch.Generator().manual_seed(0))
    q = fixed_point_codes(x, bits)
    assert (dequantize(q) - x).abs().max() <= q.scale / 2


def test_zero_and_values_that_are_not_finite():
    assert fixed_point_codes(torch.zeros(3), 8).codes.eq(0).all()
    for bad in (float("nan"), float("inf")):
        assert fixed_point_codes(torch.tensor([1.0, bad]), 8).scale.isnan()


def test_the_gradient_passes_weights_and_activations_unchanged():
    weight, gradient = torch.randn(3, 2), torch.randn(3, 2)
    quantizer = build_weight_quantizer("fixed_point", 8)
    assert quantizer.factor(weight) is None
    assert quantizer.backward(gradient, weight) is gradient
    assert build_activation_quantizer("fixed_point", 8).quantize(weight)[1] is None
