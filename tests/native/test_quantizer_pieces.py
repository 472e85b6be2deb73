"""The quantizers' compiled pieces give what their torch twins give, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench import native
from bench.quantizers.base import QTensor, amax
from bench.quantizers.dorefa import activation_codes, weight_backward, weight_codes
from bench.quantizers.uniform import codes_within, uniform_codes

pytestmark = pytest.mark.skipif(not native.usable(torch.device("cpu")), reason=native.status())

SIZES = st.sampled_from([0, 1, 7, 8, 9, 63, 255, 256, 257, 1023, 1025])
ODD = [math.nan, math.inf, -math.inf, -0.0, 0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0000001, -1e-30]
CASES = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def values(draw: st.DrawFn, finite: bool = False) -> Tensor:
    """Random values of a random range, ties of half a step among them, odd ones planted here and there."""
    size, bits = draw(SIZES), draw(st.integers(2, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(size, generator=generator) * draw(st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e4]))
    steps = 2 ** (bits - draw(st.integers(0, 1))) - 1
    ties = torch.randint(-2 * steps, 2 * steps + 1, (size,), generator=generator) / (2 * steps)
    x = torch.where(torch.rand(size, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0])), ties, x)
    for _ in range(draw(st.integers(0, 3)) if size else 0):
        odd = draw(st.sampled_from(ODD))
        if not finite or math.isfinite(odd):
            x[draw(st.integers(0, size - 1))] = odd
    return x


def twins(make: Callable[[], tuple[Tensor, ...]]) -> None:
    compiled = make()
    with native.disabled():
        plain = make()
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def known(q: QTensor) -> tuple[Tensor, Tensor]:
    """Codes and scale; codes under a scale that says they are void are anybody's."""
    return (q.codes if bool(q.scale.isfinite().all()) else torch.zeros_like(q.codes)), q.scale


@CASES
@given(x=values(), bits=st.integers(2, 8))
def test_activation_codes_and_flags(x, bits):
    def make() -> tuple[Tensor, ...]:
        q, inside = activation_codes(x, bits)
        return (*known(q), inside)

    twins(make)


@CASES
@given(x=values(), bits=st.integers(2, 8), rounding=st.sampled_from(["nearest", "stochastic"]), seed=st.integers(0, 99))
def test_uniform_codes_of_the_largest_value(x, bits, rounding, seed):
    def make() -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        q = uniform_codes(x, amax(x), bits, rounding=rounding, generator=generator)
        return (*known(q), generator.get_state())

    twins(make)


@CASES
@given(
    x=values(finite=True),
    bits=st.integers(2, 8),
    clip=st.sampled_from([1e-30, 0.3, 1.0, 77.0]),
    rounding=st.sampled_from(["nearest", "stochastic"]),
)
def test_uniform_codes_of_values_beyond_the_clip(x, bits, clip, rounding):
    def make() -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        return known(uniform_codes(x, torch.tensor(clip), bits, rounding=rounding, generator=generator))

    twins(make)


@CASES
@given(x=values(finite=True), bits=st.integers(2, 8), rounding=st.sampled_from(["nearest", "stochastic"]))
def test_codes_of_a_range_known_as_a_number_are_those_of_the_range_as_a_tensor(x, bits, rounding):
    largest = amax(x) if x.numel() else torch.zeros(())

    def drawn() -> dict[str, object]:
        return {"rounding": rounding, "generator": torch.Generator().manual_seed(1)}

    ours, theirs = codes_within(x, float(largest), bits, **drawn()), uniform_codes(x, largest, bits, **drawn())
    assert torch.equal(ours.codes, theirs.codes)
    assert torch.equal(ours.scale, theirs.scale)


@CASES
@given(x=values(), bits=st.integers(2, 8))
def test_weight_codes(x, bits):
    twins(lambda: known(weight_codes(x, bits)))


@CASES
@given(x=values(finite=True), grad=st.integers(0, 99))
def test_weight_backward(x, grad):
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(grad))
    twins(lambda: (weight_backward(g, x),))


def test_a_channels_last_weight_is_read_in_the_order_of_its_memory():
    w = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    g = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    twins(lambda: known(weight_codes(w, 8)))
    twins(lambda: (weight_backward(g, w), weight_backward(g.contiguous(memory_format=torch.channels_last), w)))


@pytest.mark.parametrize("size", [20_000, 40_001])
def test_pieces_shared_among_threads_are_the_same(size):
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(2)
    twins(lambda: (*known(activation_codes(x, 8)[0]), activation_codes(x, 8)[1]))
    twins(lambda: known(uniform_codes(x, amax(x), 8)))
