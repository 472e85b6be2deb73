"""What people do with torch's layers they may do with ours, or are told in a sentence why not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

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
