"""Quantizers of ∇W: each one's values, worked by hand, and the state that they keep."""

from __future__ import annotations

import pytest
import torch

from bench.errors import ConfigError
from bench.quantizers import GRAD_QUANTIZERS, GradQuantizer
from bench.quantizers.uint8_clip import search_clip
from bench.quantizers.uniform import uniform_values

GRAD = torch.tensor([[3.0, -1.4, 0.2], [0.3, 0.1, -0.29]])


def test_uniform_takes_one_maximum_per_tensor():
    assert GradQuantizer("uniform", 3)(GRAD).tolist() == [[3.0, -1.0, 0.0], [0.0, 0.0, 0.0]]


def test_dorefa_has_no_zero():
    assert GradQuantizer("dorefa", 2)(GRAD).tolist() == [[3.0, -1.0, 1.0], [1.0, 1.0, -1.0]]


def test_uint8_clips_where_the_direction_suffers_least():
    clip, _ = search_clip(GRAD, 4)
    torch.testing.assert_close(GradQuantizer("uint8", 4)(GRAD), uniform_values(GRAD, clip, 4))


def test_daint8_takes_one_clip_per_output_channel():
    values = GradQuantizer("daint8", 3, channels=2)(GRAD)
    torch.testing.assert_close(values, torch.tensor([[3.0, -1.0, 0.0], [0.3, 0.1, -0.3]]))
    kernel = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    values = GradQuantizer("daint8", 8, channels=4)(kernel)
    assert values.shape == kernel.shape
    steps = kernel.abs().amax((1, 2, 3), keepdim=True) / 127
    assert ((values - kernel).abs() <= steps * 0.51).all()


@pytest.mark.parametrize("name", GRAD_QUANTIZERS)
def test_stochastic_rounding_draws_from_the_generator_given(name):
    quantizer = GradQuantizer(name, 4, rounding="stochastic", generator=torch.Generator().manual_seed(3), channels=2)
    first, second = quantizer(GRAD), quantizer(GRAD)
    quantizer.generator.manual_seed(3)
    assert torch.equal(quantizer(GRAD), first)
    assert first.isfinite().all()
    assert second.isfinite().all()


@pytest.mark.parametrize("name", ["uint8", "daint8"])
def test_what_a_quantizer_remembers_travels_in_the_state_dict(name):
    grads = torch.randn(6, 2, 50, generator=torch.Generator().manual_seed(1)).pow(3)
    quantizer = GradQuantizer(name, 4, channels=2)
    for grad in grads[:3]:
        quantizer(grad)
    restored = GradQuantizer(name, 4, channels=2)
    restored.load_state_dict(quantizer.state_dict())
    for grad in grads[3:]:
        assert torch.equal(quantizer(grad), restored(grad))


def test_an_unknown_name_gets_the_known_ones():
    with pytest.raises(ConfigError, match="choose one of: uniform, dorefa, uint8, daint8"):
        GradQuantizer("bwn", 8)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", GRAD_QUANTIZERS)
def test_a_gradient_that_nobody_else_reads_is_quantized_where_it_lies(name, bits):
    grad = torch.randn(70, 40, 3, 3, generator=torch.Generator().manual_seed(2)).to(memory_format=torch.channels_last)
    expected = GradQuantizer(name, bits, channels=70)(grad.clone())
    place = grad.data_ptr()
    answered = GradQuantizer(name, bits, channels=70).quantize_(grad)
    assert answered is grad
    assert grad.data_ptr() == place
    assert torch.equal(grad, expected)
    rows = torch.randn(6, 9, generator=torch.Generator().manual_seed(2))[:, :4]  # with gaps in memory
    expected = GradQuantizer(name, bits, channels=6)(rows.clone())
    assert torch.equal(GradQuantizer(name, bits, channels=6).quantize_(rows), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible_where_it_is_quantized_in_place(value):
    grad = torch.ones(4, 4)
    grad[1, 2] = value
    assert not GradQuantizer("uniform", 4).quantize_(grad).isfinite().all()
    assert GradQuantizer("uniform", 4).quantize_(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
