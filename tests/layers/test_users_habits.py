"""What people do with torch's layers they may do with ours, or are told in a sentence why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from bench.errors import ConfigError, ShapeError
from bench.kernels.workspace import clear_workspace
from bench.layers import QuantSpec, quantize_model

INT8 = QuantSpec(error="uniform", error_bits=8)


@pytest.fixture(autouse=True)
def _own_workspace() -> Iterator[None]:
    """Buffers that a test makes under inference mode are not those that the next one trains with."""
    clear_workspace()
    yield
    clear_workspace()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Flatten(), nn.Linear(72, 5),
    )  # fmt: skip


def converted(model: nn.Sequential | None = None, **options: object) -> nn.Sequential:
    model = net() if model is None else model
    quantize_model(model, QuantSpec(error="uniform", error_bits=8, **options), sample_input=images())
    return model


def images() -> Tensor:
    return random(4, 3, 8, 8, seed=1)


@pytest.mark.parametrize("training", [True, False])
def test_inference_mode_computes_the_same_and_training_goes_on_after_it(training):
    ours, other = converted().train(training), converted().train(training)
    with torch.inference_mode():
        found = ours(images())
    with torch.no_grad():
        expected = other(images())
    assert torch.equal(found, expected)
    ours.train()(images()).sum().backward()
    assert ours[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_converted_model_in_another_type_is_refused_before_anything_is_read(dtype):
    model = converted().to(dtype)
    with pytest.raises(ShapeError, match=rf"layer 0: its weight is {dtype}; keep a converted model in float32"):
        model(images().to(dtype))
    model.float()[3].bias.data = model[3].bias.data.to(dtype)
    with pytest.raises(ShapeError, match=f"layer 3: its bias is {dtype}"):
        model(images())


def test_inputs_that_lie_elsewhere_or_are_sparse_are_refused():
    model = converted()
    with pytest.raises(ShapeError, match="layer 0: its weight lies on cpu and the input on meta"):
        model(images().to("meta"))
    with pytest.raises(ShapeError, match=r"layer 7: the input is torch\.sparse_coo; give a dense"):
        model[7](torch.rand(2, 72).to_sparse())


def with_parameters(change: Callable[[Tensor], Tensor]) -> nn.Sequential:
    """A net whose bias and batch-norm tensors went through ``change``."""
    model = net()
    model[3].bias = nn.Parameter(change(random(8, seed=2)))
    for at, key in enumerate(("weight", "bias")):
        setattr(model[1], key, nn.Parameter(change(random(8, seed=3 + at))))
    model[1].running_mean, model[1].running_var = change(random(8, seed=5)), change(random(8, seed=6).abs() + 1)
    return converted(model[:6])


def every_second(values: Tensor) -> Tensor:
    return torch.stack((values, values + 100), dim=1)[:, 0]


def test_parameters_with_gaps_in_memory_are_read_where_they_are():
    gaps, dense = with_parameters(every_second), with_parameters(torch.clone)
    assert gaps[1].running_mean.stride() == gaps[3].bias.stride() == (2,)
    for _ in range(2):
        ys = [model(images()) for model in (gaps, dense)]
        assert torch.allclose(*ys, atol=1e-5)
        for y in ys:
            y.square().sum().backward()
    for mine, theirs in zip(gaps.parameters(), dense.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-3, atol=1e-2)
    for mine, theirs in zip(gaps.buffers(), dense.buffers(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_a_bias_with_gaps_in_memory_is_added_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    converted(model)
    plain = model(images())
    model[0].bias = nn.Parameter(every_second(model[0].bias.detach()))
    assert torch.equal(model(images()), plain)
    model[0].bias = nn.Parameter(torch.ones(1).expand(8))
    flat = model(images())
    model[0].bias = nn.Parameter(torch.ones(8))
    assert torch.equal(model(images()), flat)


def test_hooks_of_a_layer_go_on_and_their_handles_remove_them():
    model, seen = net(), []
    layers = [model[3], model[7]]
    handles = []
    for layer in layers:
        handles += [
            layer.register_forward_pre_hook(lambda module, inputs: seen.append((module, "before"))),
            layer.register_forward_hook(lambda module, inputs, output: seen.append((module, "after"))),
            layer.register_forward_hook(lambda module, inputs, named, output: 2 * output, with_kwargs=True),
            layer.register_full_backward_hook(lambda module, inputs, outputs: seen.append((module, "back"))),
        ]
    converted(model)
    hooked, plain = model, converted()
    seen.clear()
    hooked(images()).sum().backward()
    assert [when for _, when in seen] == ["before", "after", "before", "after", "back", "back"]
    assert {module for module, _ in seen} == {model[3], model[7]}
    assert not torch.equal(hooked(images()), plain(images()))  # a hook's answer is the output
    for handle in handles:
        handle.remove()
    seen.clear()
    assert torch.equal(hooked(images()), plain(images()))
    assert seen == []


def masked(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


def normed(layer: nn.Module) -> None:
    torch.nn.utils.spectral_norm(layer)


def doubled(layer: nn.Module) -> None:
    layer.forward = lambda x: 2 * type(layer).forward(layer, x)


def watched_state(layer: nn.Module) -> None:
    layer.register_state_dict_post_hook(lambda module, state, prefix, metadata: None)


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (masked, "its weight is made from weight_mask, weight_orig"),
        (normed, "its weight is made from weight_orig, weight_u, weight_v"),
        (doubled, "a forward of its own"),
        (watched_state, "hooks on its state dict"),
    ],
)
def test_a_layer_that_was_altered_stays_as_it_is_with_the_reason(alter, reason):
    model, plain = net(), net()
    for each in (model, plain):
        alter(each[3])
        alter(each[7])
    kept = quantize_model(model, INT8, sample_input=images()).kept
    assert {(layer.name, layer.reason) for layer in kept} == {("3", reason), ("7", reason)}
    model(images()).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert list(model.state_dict()) == list(plain.state_dict())


def test_an_activation_with_a_forward_of_its_own_is_not_taken_in():
    model = net()
    model[2].forward = torch.zeros_like
    converted(model)
    assert not model[:3](images()).any()


class Odd(nn.Module):
    """Names its arguments, reads one layer's weight past its forward, and calls another in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6()
        self.pool, self.read, self.last = nn.MaxPool2d(2), nn.Linear(72, 6), nn.Linear(6, 4)
        self.extra = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(input=self.relu(input=self.norm(input=self.conv(input=x)))).flatten(1)
        y = nn.functional.linear(y, self.read.weight)
        return self.last(input=y) + (self.extra(y) if self.training else 0)


def test_arguments_may_be_named_and_what_the_sample_never_calls_stays_float_and_says_so():
    model = Odd()
    done = quantize_model(model, INT8, sample_input=images())
    assert {layer.name for layer in done.swapped} == {"conv", "last"}
    assert {layer.name for layer in done.kept} == {"read", "extra"}
    assert all("the sample input never calls it" in layer.reason for layer in done.kept)
    model(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter is not model.read.bias)


def test_one_image_without_a_batch_is_what_it_is_in_a_batch_of_one():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    converted(model)
    image = images()[0].requires_grad_()
    y = model(image)
    assert torch.equal(y, model(image.unsqueeze(0)).squeeze(0))
    y.sum().backward()
    assert image.grad.shape == image.shape
    with pytest.raises(ShapeError, match="4 channels and the weight wants 3"):
        model(random(4, 8, 8))


@pytest.mark.parametrize("forward", ["dorefa", "minmax"])
@pytest.mark.parametrize("error", ["uniform", "daint8"])
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_none_has_torchs_shape_and_zeros_for_gradients(forward, error, training):
    def build() -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 3, (2, 1), (1, 2)), nn.ReLU6(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(80, 5)
        return nn.Sequential(*layers).train(training)

    model, plain = build(), build()
    spec = QuantSpec(forward=forward, error=error, error_bits=8, dispatch="auto")
    quantize_model(model, spec, sample_input=images())
    for empty in (images()[:0], images()[:0].requires_grad_()):
        ours, theirs = model(empty), plain(empty)
        assert ours.shape == theirs.shape
        ours.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
    assert (empty.grad.shape, ours.shape) == (empty.shape, (0, 5))
    with pytest.raises(ShapeError, match="4 channels and the weight wants 3"):
        model(torch.zeros(0, 4, 8, 8))


@pytest.mark.slow  # torch's compiler takes seconds to import
def test_a_compiled_model_or_a_compiled_part_of_it_is_refused():
    part = net()
    part[0].compile(backend="eager")
    with pytest.raises(ConfigError, match="module 0 is compiled"):
        quantize_model(part, INT8)
    whole = net()
    whole.compile(backend="eager")
    with pytest.raises(ConfigError, match="the model is compiled"):
        quantize_model(whole, INT8)
    with pytest.raises(ConfigError, match="give the network as it was"):
        quantize_model(nn.Sequential(torch.compile(net(), backend="eager")), INT8)
