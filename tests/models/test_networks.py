"""Every network of the table: size, shapes, layouts, and that a converter can reach every layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.layers.shortcut import PadShortcut
from bench.models import MODELS, build_model
from bench.seeding import global_stream

PARAMETERS = {
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "vgg16": 14_724_042,
    "mobilenet_v2": 2_236_682,
}
SMALL = ("resnet20", "vgg16", "mobilenet_v2")


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_parameter_count_is_the_published_one_at_ten_classes(name: str, expected: int) -> None:
    assert count(build_model(name, num_classes=10, in_channels=3, image_size=32)) == expected


def test_parameter_count_of_the_imagenet_resnet18_is_the_published_one() -> None:
    assert count(build_model("resnet18", num_classes=1000, in_channels=3, image_size=224)) == 11_689_512


def test_every_model_of_the_table_has_its_count_tested() -> None:
    assert set(MODELS) == {*PARAMETERS, "resnet18"}


def test_option_b_adds_two_projections_with_batch_norm() -> None:
    option_b = build_model("resnet20", num_classes=10, in_channels=3, image_size=32, shortcut="B")
    projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert count(option_b) == PARAMETERS["resnet20"] + projections


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("in_channels", "image_size"), [(1, 8), (3, 9), (1, 28)])
def test_small_image_networks_train_at_any_size_from_8(name: str, in_channels: int, image_size: int) -> None:
    model = build_model(name, num_classes=7, in_channels=in_channels, image_size=image_size)
    model.to(memory_format=torch.channels_last)
    images = torch.randn(2, in_channels, image_size, image_size).contiguous(memory_format=torch.channels_last)
    logits = model(images)
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_resnet18_trains_at_its_least_size() -> None:
    model = build_model("resnet18", num_classes=5, in_channels=3, image_size=32)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("name", [*SMALL, "resnet18"])
def test_channels_last_gives_the_same_logits_as_contiguous(name: str) -> None:
    with global_stream(0, "model_init"):
        model = build_model(name, num_classes=10, in_channels=3, image_size=32).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(images)
        model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(images.contiguous(memory_format=torch.channels_last)), plain)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_option_a_takes_every_second_pixel_and_pads_channels(size: int, memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 16, size, size).contiguous(memory_format=memory_format).requires_grad_()
    out = PadShortcut(16, stride=2)(x)
    assert out.shape == (2, 32, (size + 1) // 2, (size + 1) // 2)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()
    assert out.is_contiguous(memory_format=memory_format)
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert float(grad.sum()) == 2 * 16 * ((size + 1) // 2) ** 2
    assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("name", list(MODELS))
def test_convolutions_before_batch_norm_have_no_bias(name: str) -> None:
    model = build_model(name, num_classes=10, in_channels=3, image_size=32)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(convolutions) == len(norms)
    assert all(conv.bias is None for conv in convolutions)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_product_runs_in_a_module_that_a_converter_can_swap(name: str) -> None:
    model = build_model(name, num_classes=10, in_channels=3, image_size=32)
    ran: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda *_, path=path: ran.append(path))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    products = [event for event in profile.events() if event.name in ("aten::conv2d", "aten::linear", "aten::matmul")]
    weights = [n for n, p in model.named_parameters() if n.endswith("weight") and p.dim() in (2, 4)]
    assert sorted(ran) == sorted(weight.removesuffix(".weight") for weight in weights)
    assert len(products) == len(ran)


def test_vgg16_leaves_out_the_poolings_that_would_leave_no_pixel() -> None:
    def poolings(size: int) -> int:
        model = build_model("vgg16", num_classes=10, in_channels=1, image_size=size)
        assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 13
        return sum(isinstance(m, nn.MaxPool2d) for m in model.modules())

    assert [poolings(size) for size in (8, 15, 16, 28, 31, 32)] == [3, 3, 4, 4, 4, 5]


def test_mobilenet_v2_halves_the_resolution_three_times_and_not_in_the_stem() -> None:
    model = build_model("mobilenet_v2", num_classes=10, in_channels=3, image_size=32)
    strides = [m.stride[0] for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)]
    assert strides == [2, 2, 2]
    assert model.get_submodule("stem.0").stride == (1, 1)


def test_the_same_seed_builds_the_same_weights_bitwise() -> None:
    def build(seed: int) -> dict[str, torch.Tensor]:
        with global_stream(seed, "model_init"):
            return build_model("resnet20", num_classes=10, in_channels=1, image_size=8).state_dict()

    first, again, other = build(3), build(3), build(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
