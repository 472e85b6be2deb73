"""MetaGrad Eq. 1 against values worked by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import ConfigError
from bench.quantizers.base import amax, dequantize
from bench.quantizers.uniform import UniformActivation, UniformQuantizer, uniform_codes, uniform_values


def test_int4_codes_round_half_to_even_and_clip():
    x = torch.tensor([-2.0, -1.0, -0.5, -0.07, 0.0, 0.25, 0.5, 1.0, 9.0])
    q = uniform_codes(x, torch.tensor(1.0), 4)
    #  -14 clipped, -7, -3.5 to even, -0.49, 0, 1.75, 3.5 to even, 7, 63 clipped
    assert q.codes.tolist() == [-7, -7, -4, 0, 0, 2, 4, 7, 7]
    assert q.scale.item() == pytest.approx(1 / 7)
    assert (q.mult, q.offset, q.bits, q.code_max, q.value_max, q.zero_code) == (1, 0, 4, 7, 7, 0)


@pytest.mark.parametrize(("bits", "count"), [(2, 3), (3, 7), (4, 15), (5, 31), (6, 63), (7, 127), (8, 255)])
def test_the_number_of_levels_is_two_to_the_bits_minus_one(bits, count):
    x = torch.linspace(-1, 1, 5001)
    codes = uniform_codes(x, amax(x), bits).codes
    assert codes.unique().numel() == count
    assert codes.min() == -codes.max() == -(count // 2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30), bits=st.integers(2, 8))
def test_the_error_of_nearest_rounding_is_at_most_half_a_step(values, bits):
    x = torch.tensor(values)
    q = uniform_codes(x, amax(x), bits)
    assert (dequantize(q) - x).abs().max() <= q.scale * 0.5001
    assert torch.equal(dequantize(q), uniform_values(x, amax(x), bits))


def test_a_zero_range_gives_code_zero():
    q = uniform_codes(torch.zeros(5), torch.tensor(0.0), 8)
    assert q.codes.tolist() == [0] * 5
    assert dequantize(q).tolist() == [0.0] * 5
    assert uniform_codes(torch.tensor([3.0, -1e-30]), torch.tensor(0.0), 8).codes.tolist() == [0, 0]
    assert dequantize(UniformQuantizer(8).quantize(torch.zeros(0))).shape == (0,)


def test_values_too_large_to_scale_still_clip_to_the_last_code():
    assert uniform_codes(torch.tensor([3e38, -3e38]), torch.tensor(3e38), 8).codes.tolist() == [127, -127]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_makes_every_value_nan_or_infinite(bad):
    for q in (
        UniformQuantizer(8).quantize(torch.tensor([1.0, bad, -2.0])),
        UniformActivation(8).quantize(torch.tensor([1.0, bad, -2.0]))[0],
    ):
        assert not torch.isfinite(q.scale)
        assert not torch.isfinite(dequantize(q)).any()


def test_granularities_keep_one_maximum_per_tensor_sample_or_channel():
    x = torch.tensor([[[1.0, -4.0], [2.0, 3.0]], [[-8.0, 0.5], [0.0, 0.0]]])
    assert amax(x).item() == 8
    assert amax(x, "sample").tolist() == [[[4.0]], [[8.0]]]
    assert amax(x, "channel").tolist() == [[[8.0, 4.0]]]
    q = UniformQuantizer(8, granularity="sample").quantize(x)
    assert q.codes[0].abs().max() == q.codes[1].abs().max() == 127


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 1}, "1 bits; choose 2 to 8"),
        ({"bits": 9}, "9 bits; choose 2 to 8"),
        ({"bits": 8, "rounding": "up"}, "rounding 'up' is unknown; choose one of: nearest, stochastic"),
        ({"bits": 8, "granularity": "row"}, "granularity 'row' is unknown; choose one of: tensor, sample, channel"),
    ],
)
def test_choices_that_do_not_exist_are_refused_with_the_known_ones(options, words):
    with pytest.raises(ConfigError) as refusal:
        UniformQuantizer(**options)
    assert words in str(refusal.value)
