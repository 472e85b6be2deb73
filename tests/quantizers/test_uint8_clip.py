"""UINT8's clip: the best of its candidates in direction, refreshed on schedule, its state in the state dict."""

from __future__ import annotations

import math

import pytest
import torch

from bench.quantizers.base import dequantize
from bench.quantizers.uint8_clip import Uint8ClipQuantizer, cosine_distance, lr_factor_of, search_clip


def test_the_cosine_distance_matches_a_hand_computed_one():
    # 2 bits, c = 4: codes of (3, 4) are (1, 1); cos = 7/(5·sqrt 2)
    distance = cosine_distance(torch.tensor([3.0, 4.0]), torch.tensor(4.0), 2)
    assert distance.item() == pytest.approx(1 - 7 / (5 * math.sqrt(2)), rel=1e-5)
    assert cosine_distance(torch.tensor([3.0, -4.0]), torch.tensor(0.0), 8).item() == 1
    assert cosine_distance(torch.zeros(3), torch.tensor(0.0), 8).item() == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_the_search_beats_clipping_at_the_maximum_for_heavy_tails(bits):
    gradient = torch.randn(4000, generator=torch.Generator().manual_seed(0)).pow(3)
    clip, distance = search_clip(gradient, bits)
    at_maximum = cosine_distance(gradient, gradient.abs().max(), bits)
    assert distance < at_maximum or (bits == 8 and distance == at_maximum)  # 255 levels: the tail is worth keeping
    assert distance == cosine_distance(gradient, clip, bits)
    fine = torch.stack([cosine_distance(gradient, c, bits) for c in torch.linspace(0.02, 1, 60) * gradient.abs().max()])
    assert distance <= fine.min() * 1.1


def test_a_uniform_gradient_keeps_its_maximum():
    gradient = torch.linspace(-1, 1, 2001)
    clip, _ = search_clip(gradient, 8)
    assert clip.item() == pytest.approx(1, abs=0.06)


def test_the_learning_rate_factor_is_bounded_from_below():
    assert lr_factor_of(torch.tensor(0.0)).item() == 1
    assert lr_factor_of(torch.tensor(0.05)).item() == pytest.approx(math.exp(-1))
    assert lr_factor_of(torch.tensor(0.5)).item() == pytest.approx(0.1)


def test_the_clip_is_searched_again_every_hundredth_iteration():
    quantizer = Uint8ClipQuantizer(8, rounding="nearest")
    gradient = torch.randn(200, generator=torch.Generator().manual_seed(0))
    quantizer.quantize(gradient)
    first = quantizer.clip.clone()
    for _ in range(99):
        quantizer.quantize(gradient * 8)
        assert quantizer.clip == first
    quantizer.quantize(gradient * 8)
    assert quantizer.clip == first * 8
    assert quantizer.lr_factor == lr_factor_of(quantizer.distance)


def test_values_beyond_the_clip_saturate():
    quantizer = Uint8ClipQuantizer(8, rounding="nearest")
    quantizer.quantize(torch.linspace(-1, 1, 101))
    q = quantizer.quantize(torch.tensor([100.0, -100.0]))
    assert q.codes.tolist() == [127, -127]
    assert dequantize(q)[0] == pytest.approx(quantizer.clip.item())


def test_a_clip_found_on_a_zero_gradient_does_not_silence_the_layer():
    quantizer = Uint8ClipQuantizer(8, rounding="nearest")
    assert quantizer.quantize(torch.zeros(4)).codes.eq(0).all()
    assert quantizer.quantize(torch.tensor([0.5, -1.0])).codes.tolist() == [64, -127]
    assert quantizer.lr_factor == 1


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_shows_at_a_refresh_and_between(step, bad):
    quantizer = Uint8ClipQuantizer(8, rounding="nearest")
    for _ in range(step):
        quantizer.quantize(torch.tensor([1.0, -0.5]))
    assert not torch.isfinite(dequantize(quantizer.quantize(torch.tensor([1.0, bad])))).any()


def test_a_checkpoint_continues_the_schedule_and_the_clip():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(30, 50, generator=torch.Generator().manual_seed(1))
    quantizer = Uint8ClipQuantizer(4, generator=generator, period=20)
    for gradient in gradients[:15]:
        quantizer.quantize(gradient)
    saved, drawn = quantizer.state_dict(), generator.get_state()
    saved = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in saved.items()}
    expected = [quantizer.quantize(gradient) for gradient in gradients[15:]]
    restored = Uint8ClipQuantizer(4, generator=torch.Generator(), period=20)
    restored.load_state_dict(saved)
    restored.generator.set_state(drawn)
    for gradient, q in zip(gradients[15:], expected, strict=True):
        again = restored.quantize(gradient)
        assert torch.equal(again.codes, q.codes)
        assert again.scale == q.scale
