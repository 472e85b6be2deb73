"""DoReFa's integer grids against values worked by hand and against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import ConfigError
from bench.native.bits import unpack_bits
from bench.quantizers.base import dequantize
from bench.quantizers.dorefa import (
    DorefaActivation,
    DorefaGradient,
    DorefaWeight,
    activation_codes,
    gradient_codes,
    weight_backward,
    weight_codes,
)

# tanh W = -0.8, 0, 0.4, 0.8: W~ = 0, 0.5, 0.75, 1
WEIGHT = torch.atanh(torch.tensor([-0.8, 0.0, 0.4, 0.8], dtype=torch.float64)).float()


@pytest.mark.parametrize(
    ("bits", "codes", "values"),
    [
        (2, [-2, 0, 0, 1], [-1, 1 / 3, 1 / 3, 1]),  # 3·W~ = 0, 1.5, 2.25, 3
        (4, [-8, 0, 3, 7], [-1, 1 / 15, 7 / 15, 1]),  # 15·W~ = 0, 7.5, 11.25, 15
        (8, [-128, 0, 63, 127], [-1, 1 / 255, 127 / 255, 1]),  # 255·W~ = 0, 127.5, 191.25, 255
    ],
)
def test_weight_codes_are_odd_multiples_of_one_step(bits, codes, values):
    q = weight_codes(WEIGHT, bits)
    assert q.codes.tolist() == codes
    assert torch.allclose(dequantize(q), torch.tensor(values), atol=1e-7)
    assert (q.mult, q.offset, q.value_max) == (2, 1, 2**bits - 1)


def test_the_weight_grid_has_no_zero():
    with pytest.raises(ValueError, match="has no zero"):
        _ = weight_codes(WEIGHT, 4).zero_code


@settings(max_examples=60, deadline=None, derandomize=True)
@given(values=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=20), bits=st.integers(2, 8))
def test_weights_are_within_half_a_step_of_the_squashed_weight(values, bits):
    weight = torch.tensor(values)
    squashed = torch.tanh(weight.double())
    largest = squashed.abs().max()
    if largest == 0:
        return
    error = (dequantize(weight_codes(weight, bits)).double() - squashed / largest).abs().max()
    assert error <= (1 + 1e-5) / (2**bits - 1)


def test_weights_that_are_all_zero_give_code_zero_and_let_the_gradient_pass():
    for bits in range(2, 9):
        assert weight_codes(torch.zeros(3), bits).codes.tolist() == [0, 0, 0]
    assert weight_backward(torch.tensor([1.0, -2.0]), torch.zeros(2)).tolist() == [1.0, -2.0]


def test_the_weight_backward_is_the_derivative_of_the_squashed_weight():
    weight = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    grad = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    squashed = torch.tanh(weight)
    (squashed / squashed.abs().max().detach()).backward(grad)
    assert torch.allclose(weight_backward(grad, weight.detach()), weight.grad)


@pytest.mark.parametrize(
    ("bits", "codes", "offset"),
    [
        (2, [0, 0, 1, 2, 3, 3], 0),  # 3·0.2 = 0.6, 3·0.5 = 1.5 to even = 2
        (4, [-8, -8, -5, 0, 7, 7], 8),  # 15·0.2 = 3, 15·0.5 = 7.5 to even = 8
        (7, [0, 0, 25, 64, 127, 127], 0),  # 127·0.2 = 25.4, 63.5 to even
        (8, [-128, -128, -77, 0, 127, 127], 128),  # 255·0.2 = 51, 127.5 to even = 128
    ],
)
def test_activation_codes_fit_their_container(bits, codes, offset):
    q, inside = activation_codes(torch.tensor([-0.5, 0.0, 0.2, 0.5, 1.0, 1.5]), bits)
    assert q.codes.tolist() == codes
    assert (q.mult, q.offset, q.zero_code) == (1, offset, -offset)
    assert unpack_bits(inside, (6,)).tolist() == [0, 1, 1, 1, 1, 0]
    assert q.codes.int().abs().max() == q.code_max
    assert dequantize(q)[[1, 4]].tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_makes_every_value_nan(bad):
    x = torch.tensor([0.5, bad, 0.25])
    assert dequantize(weight_codes(x, 8)).isnan().all()
    assert dequantize(activation_codes(x, 8)[0]).isnan().all()


def test_inputs_are_left_untouched():
    x = torch.tensor([0.5, 1.5, -0.25])
    kept = x.clone()
    weight_codes(x, 8), activation_codes(x, 8), weight_backward(x, x)
    assert torch.equal(x, kept)


def test_one_bit_and_nine_bits_are_refused():
    for quantizer in (DorefaWeight, DorefaActivation):
        for bits in (1, 9):
            with pytest.raises(ConfigError, match=r"choose 2 to 8"):
                quantizer(bits)


def test_gradients_worked_by_hand_land_on_odd_multiples_of_m_over_n():
    # 2 bits: n = 3, m = 3, values −3, −1, 1, 3; i = round(3·(g/6 + ½)), and half to even puts an exact zero on i = 2
    g = torch.tensor([-3.0, -2.1, -1.9, 0.0, 0.5, 1.9, 2.1, 3.0])
    q = gradient_codes(g, g.abs().max(), 2, rounding="nearest")
    assert dequantize(q).tolist() == [-3.0, -3.0, -1.0, 1.0, 1.0, 1.0, 3.0, 3.0]
    assert q.codes.tolist() == [-2, -2, -1, 0, 0, 0, 1, 1]
    assert (q.mult, q.offset, q.code_max, q.value_max, q.scale.item()) == (2, 1, 2, 3, 1.0)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_gradients_have_no_zero_and_stochastic_rounding_is_right_on_average(bits):
    g = torch.linspace(-1, 1, 21).repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    values = dequantize(gradient_codes(g, torch.tensor(1.0), bits, generator=generator))
    n = 2**bits - 1
    assert (values != 0).all()
    assert torch.equal((values * n).round().abs() % 2, torch.ones_like(values))
    assert (values.mean(0) - g[0]).abs().max() < 2 / n * 4 * 0.5 / 4000**0.5 + 1e-6  # four standard errors
    assert values[:, 10].unique().tolist() == pytest.approx([-1 / n, 1 / n])  # an exact zero becomes ±m/n


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_zero_gradient_stays_zero_with_code_zero(rounding):
    generator = torch.Generator().manual_seed(0)
    q = gradient_codes(torch.zeros(50), torch.tensor(0.0), 4, rounding=rounding, generator=generator)
    assert q.codes.eq(0).all()
    assert dequantize(q).eq(0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_makes_every_value_not_finite(bad):
    quantizer = DorefaGradient(4, rounding="nearest")
    assert not dequantize(quantizer.quantize(torch.tensor([1.0, bad]))).isfinite().any()


def test_each_sample_has_its_own_maximum():
    q = DorefaGradient(2, rounding="nearest", granularity="sample").quantize(torch.tensor([[3.0, 0.1], [-30.0, 21.0]]))
    assert q.scale.tolist() == [[1.0], [10.0]]
    assert dequantize(q).tolist() == [[3.0, 1.0], [-30.0, 30.0]]


def test_stochastic_gradients_need_a_generator():
    with pytest.raises(ConfigError, match="explicit generator"):
        DorefaGradient(4).quantize(torch.ones(3))
