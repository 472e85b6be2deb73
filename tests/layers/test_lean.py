"""Lean norms, activations and poolings compute what torch's do, keep less, and go only where they may."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench import native
from bench.layers import QuantSpec, quantize_model
from bench.layers.activation import LeanReLU
from bench.layers.lean import make_lean
from bench.layers.norm import LeanBatchNorm2d
from bench.layers.pool import LeanMaxPool2d

CASES = settings(max_examples=50, deadline=None, derandomize=True)
RELUS: dict[float, Callable[[], nn.Module]] = {0.0: nn.Identity, math.inf: nn.ReLU, 6.0: nn.ReLU6}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm_of(channels: int, seed: int = 0, **options) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, **options)
    norm.weight.data, norm.bias.data = random(channels, seed=seed) * 2, random(channels, seed=seed + 1)
    return norm


def lean(norm: nn.BatchNorm2d, **options) -> LeanBatchNorm2d:
    return LeanBatchNorm2d(copy.deepcopy(norm), "bn", **options)


def run(module: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    y.backward(upstream.to(y.dtype))
    return [y.detach(), x.grad, *(parameter.grad for parameter in module.parameters())]


def agree(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 2e-5) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert (mine.double() - other.double()).abs().max() <= tolerance * other.double().abs().max().clamp_min(1)


@CASES
@given(
    channels=st.integers(1, 70),
    n=st.integers(1, 4),
    size=st.sampled_from([(1, 1), (1, 2), (3, 5), (8, 8)]),
    ceiling=st.sampled_from(list(RELUS)),
    momentum=st.sampled_from([0.1, 1.0, None]),
    tracked=st.booleans(),
    twin=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 999),
)
def test_a_norm_with_its_relu_agrees_with_torch_in_float64(
    channels, n, size, ceiling, momentum, tracked, twin, last, seed
):
    n = max(n, 2) if size == (1, 1) else n
    norm = norm_of(channels, seed, momentum=momentum, track_running_stats=tracked)
    ours = lean(norm, ceiling=ceiling)
    theirs = nn.Sequential(copy.deepcopy(norm).double(), RELUS[ceiling]())
    for step in range(2):
        x = random(n, channels, *size, seed=seed + step) * 3 + 1
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        upstream = random(n, channels, *size, seed=seed + 7)
        ours.zero_grad(), theirs.zero_grad()
        expected = run(theirs, x.double(), upstream)
        edge = norm_edge(theirs[0], x, ceiling)
        if edge:  # a value so near the ReLU's corner that rounding decides
            return
        if twin:
            with native.disabled():
                got = run(ours, x, upstream)
        else:
            got = run(ours, x, upstream)
        # two rows that almost agree have a tiny deviation, which divides the rounding of their mean
        deviation = x.double().var((0, 2, 3), correction=0).sqrt().min().clamp(max=1.0)
        agree(got, expected, 2e-5 / float(deviation))
    for (name, mine), other in zip(ours.named_buffers(), theirs[0].buffers(), strict=True):
        assert torch.allclose(mine.double(), other.double(), rtol=1e-5, atol=1e-6), name


def norm_edge(norm: nn.BatchNorm2d, x: Tensor, ceiling: float) -> bool:
    y = F.batch_norm(x.double(), None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
    return ceiling != 0 and bool(((y.abs() < 1e-4) | ((y - ceiling).abs() < 1e-4)).any())


@pytest.mark.parametrize("mean", [0.0, 100.0, 1_000.0])
def test_a_large_mean_over_a_small_deviation_is_no_worse_than_torchs(mean):
    x, upstream = random(16, 8, 8, 8) * 0.1 + mean, random(16, 8, 8, 8, seed=2)
    norm = norm_of(8)
    exact = run(copy.deepcopy(norm).double(), x.double(), upstream)
    for got, theirs, expected in zip(
        run(lean(norm), x, upstream), run(copy.deepcopy(norm), x, upstream), exact, strict=True
    ):
        worst, torchs = ((value.double() - expected).abs().max() for value in (got, theirs))
        assert worst <= 2 * torchs + 1e-5 * expected.abs().max()


@pytest.mark.parametrize("ceiling", [0.0, math.inf, 6.0])
def test_in_evaluation_it_is_torchs_and_a_dead_channel_takes_no_gradient(ceiling):
    norm = norm_of(3)
    norm.weight.data[0] = norm.bias.data[0] = 0  # exactly zero, where a ReLU's gradient is zero
    theirs = nn.Sequential(copy.deepcopy(norm), RELUS[ceiling]()).eval()
    x, upstream = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=3)
    for mine, other in zip(run(lean(norm, ceiling=ceiling).eval(), x, upstream), run(theirs, x, upstream), strict=True):
        assert torch.equal(mine, other)


def test_what_torch_refuses_is_refused():
    for shape in ((1, 3, 1, 1), (2, 4, 4, 4), (2, 3, 4)):
        with pytest.raises((RuntimeError, ValueError)):
            lean(nn.BatchNorm2d(3))(random(*shape).requires_grad_())
    with pytest.raises(RuntimeError):
        lean(nn.BatchNorm2d(1, track_running_stats=False))(random(2, 5, 4, 4).requires_grad_())


@pytest.mark.parametrize("twin", [True, False])
def test_compact_changes_the_input_that_backward_sees_by_its_stated_bound(twin):
    x, upstream, norm = random(8, 5, 6, 6), random(8, 5, 6, 6, seed=2), norm_of(5)
    with native.disabled() if twin else torch.enable_grad():
        exact, got = (run(lean(norm, compact=compact), x, upstream) for compact in (False, True))
    assert torch.equal(got[0], exact[0])
    assert torch.equal(got[3], exact[3])  # the bias's gradient reads no input
    assert not torch.equal(got[1], exact[1])
    n, deviations = x.numel() / 5, x.abs().amax() / x.std((0, 2, 3), correction=0)
    weight_bound = 2**-9 * deviations * upstream.abs().sum((0, 2, 3))
    assert ((got[2] - exact[2]).abs() <= weight_bound + 1e-5).all()
    dx_bound = norm.weight.abs() / x.std((0, 2, 3), correction=0) * 2 * weight_bound * deviations / n
    assert ((got[1] - exact[1]).abs().amax((0, 2, 3)) <= dx_bound * 2 + 1e-5).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_reaches_output_and_gradients(bad):
    x = random(2, 3, 4, 4)
    x[0, 0, 0, 0] = bad
    for result in run(lean(norm_of(3)), x, torch.ones(2, 3, 4, 4))[:3]:  # the bias's gradient reads no input
        assert result.isnan().any()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "neither": lambda x: x.transpose(2, 3),
    "part": lambda x: x[:, ::2],
    "three axes": lambda x: x[0],
    "one": lambda x: x[:1, :1, :1, :1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("twin", [True, False])
def test_relu_is_torchs_for_every_layout_and_odd_value(layout, inplace, kind, twin):
    x = random(3, 5, 7, 6) * 5
    odd = torch.tensor([0.0, -0.0, 6.0, math.nan, math.inf, -math.inf, 5.9999995])
    x.view(-1)[:7], x.view(-1)[-7:] = odd, odd
    x = LAYOUTS[layout](x)
    results = []
    for module in (LeanReLU(kind(inplace=inplace), "relu"), kind(inplace=inplace)):
        for upstream in (random(*x.shape, seed=1), random(*x.shape[::-1], seed=1).permute(*range(x.dim())[::-1])):
            leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            with native.disabled() if twin else torch.enable_grad():
                y = module(leaf * 1)
                y.backward(upstream)
            results.append((y.detach().nan_to_num(nan=-1.0), leaf.grad))
    for ours, theirs in zip(results[:2], results[2:], strict=True):
        assert torch.equal(ours[0], theirs[0])
        known = ~x.isnan() if kind is nn.ReLU6 else ...  # torch's ReLU6 passes a NaN's gradient in some lanes only
        assert torch.equal(ours[1][known], theirs[1][known])


@CASES
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(5, 11), st.integers(5, 11)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.integers(1, 2),
    padded=st.booleans(),
    planted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_max_pooling_is_torchs(size, kernel, stride, dilation, padded, planted, seed):
    source = nn.MaxPool2d(kernel, stride, (kernel[0] // 2 * padded, kernel[1] // 2 * padded), dilation)
    x = random(*size, seed=seed).mul(2).round()  # ties
    if planted:
        x.view(-1)[seed % x.numel()], x.view(-1)[0] = math.nan, -math.inf
    upstream = random(*source(x).shape, seed=seed)
    ours, theirs = run(LeanMaxPool2d(source, "pool"), x, upstream), run(source, x, upstream)
    assert torch.equal(ours[0].nan_to_num(nan=9.0), theirs[0].nan_to_num(nan=9.0))
    assert torch.allclose(ours[1], theirs[1], atol=1e-5)


def net(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2), *extra)


def test_parameters_and_keys_stay_the_very_same():
    model = net()
    before = dict(model.state_dict(keep_vars=True))
    report = make_lean(model)
    after = dict(model.state_dict(keep_vars=True))
    assert list(after) == list(before)
    assert all(after[key] is before[key] for key in before)
    assert (report.norms, report.activations, report.pools, report.fused) == (("1",), ("2",), ("3",), ("1",))
    assert isinstance(model[2], nn.Identity)


def test_a_converted_model_is_copied_and_pickled_and_computes_the_same():
    model = net()
    quantize_model(model, QuantSpec(error="uniform", error_bits=8))
    x, upstream = random(2, 4, 8, 8), random(2, 6, 3, 3, seed=5)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    expected = run(model, x, upstream)
    for other in copies:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(run(other, x, upstream), expected, strict=True))


class Twice(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.bn, self.relu, self.how = nn.BatchNorm2d(3), nn.ReLU(), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        if self.how == "norm twice":
            return self.relu(self.bn(y))
        if self.how == "two consumers":
            return self.relu(y) + y
        if self.how == "relu twice":
            return self.relu(self.relu(y) - 1)
        if self.how == "functional":
            return F.relu(y)
        if self.how == "untraceable" and float(y.detach().sum()) > 1e9:
            return y
        if self.how == "not in evaluation" and not self.training:
            return y
        return self.relu(y)


@pytest.mark.parametrize(
    ("how", "fused"),
    [
        ("one after the other", True),
        ("norm twice", False),
        ("two consumers", False),
        ("relu twice", False),
        ("functional", False),
        ("untraceable", False),
        ("not in evaluation", False),
    ],
)
def test_a_relu_is_taken_in_only_where_the_trace_proves_it(how, fused):
    model = Twice(how)
    theirs = copy.deepcopy(model)
    assert make_lean(model).fused == (("bn",) if fused else ())
    x, upstream = random(4, 3, 5, 5) * 2 + 1, random(4, 3, 5, 5, seed=4)
    agree(run(model, x, upstream), run(theirs, x, upstream))
    model.eval(), theirs.eval()
    agree([model(x)], [theirs(x)])
    assert model.relu.training is False


@pytest.mark.parametrize("watched", ["bn", "relu"])
def test_a_watched_module_stays_and_its_hook_is_called(watched):
    model, seen = Twice("one after the other"), []
    getattr(model, watched).register_forward_hook(lambda *_: seen.append(1))
    assert make_lean(model).fused == ()
    model(random(2, 3, 4, 4))
    assert seen == [1]


def test_an_in_place_relu_right_after_a_convolution_trains():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    quantize_model(model, QuantSpec(error="uniform", error_bits=8))
    x = torch.rand(2, 3, 8, 8).requires_grad_()
    model(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_pooling_that_torch_refuses_is_left_to_torch():
    model = nn.Sequential(nn.MaxPool2d(2, padding=2), nn.MaxPool2d(2, ceil_mode=True))
    assert make_lean(model).pools == ()


@pytest.mark.parametrize(
    ("compact", "bits", "of_norm", "of_codes"), [(False, 8, 4, 1), (True, 8, 2, 1), (False, 4, 4, 1), (True, 4, 2, 0.5)]
)
def test_what_a_small_net_keeps_is_counted_byte_by_byte(compact, bits, of_norm, of_codes):
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.MaxPool2d(2),
    )  # fmt: skip
    quantize_model(
        model, QuantSpec(weight_bits=bits, activation_bits=bits, error="uniform", error_bits=bits, compact=compact)
    )
    x = torch.rand(4, 8, 16, 16).requires_grad_()
    saved: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.setdefault(t.data_ptr(), t), lambda t: t):
        model(x)
    size, parameters = x.numel(), {parameter.data_ptr() for parameter in model.parameters()}
    large = [tensor for at, tensor in saved.items() if tensor.numel() >= size // 8 and at not in parameters]
    masks = 1 if native.usable(x.device) else 2  # compiled pieces keep the ReLU's bits and the clip's in one mask
    # two inputs as codes, the norm's input, the masks, a tap per pooled value
    assert sum(tensor.nbytes for tensor in large) == (
        2 * of_codes * size + of_norm * size + masks * size // 8 + size // 4
    )
