"""The lean padding shortcut gives torch's bits both ways, keeps nothing, and leaves to torch what it does not know."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench import native
from bench.layers.handover import Padding
from bench.layers.lean import make_lean
from bench.layers.shortcut import LeanPadShortcut, PadShortcut, add_padded

CASES = settings(max_examples=30, deadline=None, derandomize=True)
compiled = pytest.mark.skipif(not native.usable(torch.device("cpu")), reason=native.status())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(module: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    y.backward(upstream)
    assert x.grad is not None
    return y.detach(), x.grad


sizes = st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 19), st.integers(1, 19))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@CASES
@given(size=sizes, half=st.integers(0, 20), stride=st.integers(1, 3), planted=st.booleans())
def test_values_and_gradients_are_torchs_bits(plain, channels_last, size, half, stride, planted):
    source = PadShortcut(2 * half, stride)
    x = random(*size)
    if planted:
        x.view(-1)[0], x.view(-1)[-1] = torch.inf, torch.nan
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    upstream = random(*source(x).shape, seed=1)
    theirs = run(source, x, upstream)
    if plain:
        with native.disabled():
            ours = run(LeanPadShortcut(source, "shortcut"), x, upstream)
    else:
        ours = run(LeanPadShortcut(source, "shortcut"), x, upstream)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert torch.equal(mine.nan_to_num(nan=9.0), other.nan_to_num(nan=9.0))


@compiled
@CASES
@given(size=sizes, half=st.integers(0, 20), stride=st.integers(1, 3), turned=st.booleans())
def test_a_gradient_handed_over_is_added_where_autograd_would(size, half, stride, turned):
    source = PadShortcut(2 * half, stride)
    x, dx = random(*size), random(*size, seed=2)
    upstream = random(*source(x).shape, seed=1)
    _, gradient = run(source, x, upstream)
    ours = dx.clone(memory_format=torch.contiguous_format if turned else torch.channels_last)
    padding = Padding(half_channels=half, stride=stride)
    add_padded(ours.permute(0, 2, 3, 1), upstream.permute(0, 2, 3, 1).contiguous(), padding)
    assert torch.equal(ours, dx + gradient)


@compiled
def test_nothing_is_kept_for_backward():
    x = random(2, 4, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        LeanPadShortcut(PadShortcut(4, 2), "shortcut")(x)
    assert saved == []


@compiled
def test_other_widths_and_shapes_are_left_to_torch():
    lean = LeanPadShortcut(PadShortcut(4, 2), "shortcut")
    for x in (random(2, 4, 6, 6).double(), random(4, 6, 6), random(2, 4, 6, 6).bfloat16()):
        x.requires_grad_()
        y = lean(x)
        assert y.grad_fn is not None
        assert "_Pad" not in y.grad_fn.name()
        assert torch.equal(y, PadShortcut(4, 2)(x))


def test_conversion_swaps_it_and_leaves_a_watched_one_and_a_subclass():
    class Other(PadShortcut):
        pass

    watched = PadShortcut(4, 2)
    watched.register_forward_hook(lambda *_: None)
    model = nn.Sequential(PadShortcut(4, 2), watched, Other(4, 2)).eval()
    report = make_lean(model)
    assert report.shortcuts == ("0",)
    assert [type(module) for module in model] == [LeanPadShortcut, PadShortcut, Other]
    assert not model[0].training
