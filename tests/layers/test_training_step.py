"""What a converted model's training step runs, keeps, repeats, and does with values that are not finite."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.kernels.int_mm import record_gemms
from bench.kernels.spans import record_spans
from bench.layers import QuantSpec, quantize_model, quantized_layers

ALL_INTEGER = [
    QuantSpec(error="uniform", error_bits=8),
    QuantSpec(weight_bits=4, activation_bits=4, error="uniform", error_bits=4, error_rounding="stochastic"),
    QuantSpec(error="uint8", error_bits=8, error_rounding="stochastic"),
    QuantSpec(error="daint8", error_bits=8, error_rounding="stochastic"),
    QuantSpec(error="dorefa", error_bits=6, error_rounding="stochastic"),
    QuantSpec(forward="bwn_f", weight_bits=1, error="uniform", error_bits=8),
]


@pytest.mark.parametrize("spec", ALL_INTEGER, ids=["uniform8", "uniform4", "uint8", "daint8", "dorefa", "bwn_f"])
def test_all_products_of_a_step_are_integer_and_none_floats(small_resnet, images, labels, float_products, spec):
    model = small_resnet()
    quantize_model(model, spec)
    loss = F.cross_entropy(model(images), labels)
    loss.backward()  # UINT8's first clip search is behind it
    with float_products() as products, record_gemms() as calls:
        F.cross_entropy(model(images), labels).backward()
    assert products.seen == []
    names = set(quantized_layers(model))
    ran = {(call.gemm, call.layer) for call in calls}
    assert {layer for gemm, layer in ran if gemm == "fprop"} == names
    assert {layer for gemm, layer in ran if gemm == "wgrad"} == names
    assert {layer for gemm, layer in ran if gemm == "dgrad"} == names - {"stem"}  # pixels need no gradient
    assert all(call.padded[0] > 16 and call.padded[1] % 8 == call.padded[2] % 8 == 0 for call in calls)


def test_with_float_error_signals_only_fprop_is_integer(small_resnet, images, labels, float_products):
    model = small_resnet()
    quantize_model(model, QuantSpec())
    with record_gemms() as calls:
        with float_products() as forward_products:
            loss = F.cross_entropy(model(images), labels)
        with float_products() as backward_products:
            loss.backward()
    assert forward_products.seen == []
    assert backward_products.seen.count("convolution_backward") == 7, "both products of a layer are one call"
    assert {call.gemm for call in calls} == {"fprop"}
    assert {call.layer for call in calls} == set(quantized_layers(model))


def test_floating_point_products_are_told_apart_where_spans_are_recorded_with_the_same_bits(
    small_resnet, images, labels, float_products
):
    gradients = []
    for recorded in (False, True):
        torch.manual_seed(0)
        model = small_resnet()
        quantize_model(model, QuantSpec())
        loss = F.cross_entropy(model(images), labels)
        with record_spans(images.device) if recorded else nullcontext([]) as spans, float_products() as products:
            loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert products.seen.count("convolution_backward") == 7 + 6, "wgrad of all, dgrad of all but the first"
    timed = [(span.gemm, span.layer) for span in spans if span.piece == "gemm" and span.layer != "classifier"]
    assert len(timed) == len(set(timed)) == 7 + 6
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_simulation_runs_no_integer_product(small_resnet, images, labels):
    model = small_resnet()
    quantize_model(model, QuantSpec(error="uniform", error_bits=8, dispatch="simulate"))
    with record_gemms() as calls:
        F.cross_entropy(model(images), labels).backward()
    assert calls == []
    assert all(layer.weight.grad is not None for layer in quantized_layers(model).values())


def test_what_is_saved_for_backward_is_codes_and_masks(small_resnet, images):
    model = small_resnet()
    quantize_model(model, QuantSpec(error="uniform", error_bits=8))
    saved: list[torch.Tensor] = []
    layer = model.block1.conv1
    x = torch.rand(4, 16, 8, 8, requires_grad=True)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    floats = [tensor for tensor in saved if tensor.is_floating_point() and tensor.dim() > 0]
    assert [tensor.data_ptr() for tensor in floats] == [layer.weight.data_ptr()]
    codes = sum(tensor.nbytes for tensor in saved if tensor.dtype in (torch.int8, torch.uint8))
    assert codes == x.numel() * 9 // 8 + layer.weight.numel()  # one byte of code and one bit of mask per input value


def test_evaluation_gives_the_same_integers_and_keeps_nothing(small_resnet, images):
    model = small_resnet()
    quantize_model(model, QuantSpec(error="uniform", error_bits=8))
    layer, x = model.block1.conv1, torch.rand(4, 16, 8, 8)
    trained = layer(x)
    model.eval()
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with (
        torch.no_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        record_gemms() as calls,
    ):
        evaluated = layer(x)
    assert torch.equal(trained, evaluated)
    assert saved == []
    assert evaluated.grad_fn is None
    assert [call.gemm for call in calls] == ["fprop"]


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("spec", ALL_INTEGER, ids=["uniform8", "uniform4", "uint8", "daint8", "dorefa", "bwn_f"])
def test_two_runs_with_one_seed_are_bitwise_the_same_and_learn(small_resnet, images, labels, spec):
    runs = []
    for _ in range(2):
        model = small_resnet()
        quantize_model(model, spec, generator=torch.Generator().manual_seed(7))
        runs.append((train(model, images, labels, 12), [p.detach().clone() for p in model.parameters()]))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    share = 0.7 if spec.weight_bits > 1 else 0.8  # signs flip late
    assert runs[0][0][-1] < runs[0][0][0] * share


def test_the_generator_of_the_conversion_is_the_one_that_rounds(small_resnet, images, labels):
    model = small_resnet()
    spec = QuantSpec(error="uniform", error_bits=4, error_rounding="stochastic")
    generator = quantize_model(model, spec).generator
    gradients = []
    state = generator.get_state()
    for restore in (False, False, True):
        if restore:
            generator.set_state(state)
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        gradients.append(model.stem.weight.grad.clone())
    assert torch.equal(gradients[0], gradients[2])
    assert not torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_input_that_is_not_finite_makes_the_loss_nan_instead_of_integers(small_resnet, images, labels, bad):
    model = small_resnet()
    quantize_model(model, QuantSpec(error="uniform", error_bits=8))
    images[0, 0, 0, 0] = bad
    loss = F.cross_entropy(model(images), labels).item()
    assert loss != loss, "the training loop reads it and says that training diverged"


def test_a_weight_that_is_not_finite_makes_the_output_nan(small_resnet, images):
    model = small_resnet()
    quantize_model(model, QuantSpec())
    with torch.no_grad():
        model.block1.conv1.weight[0, 0, 0, 0] = float("inf")
    assert model(images).isnan().any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("error", "bits", "rounding"),
    [
        *((name, 8, "stochastic") for name in ("uniform", "uint8", "daint8", "dorefa", "sbm", "wageubn")),
        ("afp", 8, "nearest"),
        ("fp4", 4, "nearest"),
    ],
)
def test_an_error_signal_that_is_not_finite_makes_every_gradient_not_finite(bad, error, bits, rounding):
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    quantize_model(model, QuantSpec(error=error, error_bits=bits, error_rounding=rounding))
    y = model(torch.rand(2, 4, 4, 4))
    gradient = torch.ones_like(y)
    gradient[0, 0] = bad
    y.backward(gradient)
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.isfinite().any()
