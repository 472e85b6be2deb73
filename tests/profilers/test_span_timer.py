"""Where the time of a step goes: planted costs show at their place, and the places add up to the step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from bench.kernels.spans import span
from bench.profilers.float_spans import float_spans
from bench.profilers.span_timer import REST, Place, Places, SpanTimer, watch_places

CPU = torch.device("cpu")


class PlantedClock:
    """A clock that stands still but for what a test plants."""

    def __init__(self) -> None:
        self.now_ms = 0.0

    def mark(self) -> float:
        return self.now_ms

    def settle(self, last: float) -> None:
        pass

    def elapsed_ms(self, start: float, end: float) -> float:
        return end - start

    def release(self, marks: list[Any]) -> None:
        pass


class _Slow(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Slow) -> Tensor:
        ctx.layer = layer
        layer.clock.now_ms += 7
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.layer.clock.now_ms += 30
        with span("quantize", gemm="wgrad"):
            ctx.layer.clock.now_ms += 200
        return grads[0], None


class Slow(nn.Module):
    """Seven ms forward; thirty backward, and two hundred in a piece of it."""

    def __init__(self, clock: PlantedClock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Slow.apply(x, self)
        return y


def timed(model: nn.Module, clock: PlantedClock) -> dict[Place, float]:
    timer = SpanTimer(CPU, clock=clock)
    places = Places(timer)
    x = torch.randn(2, 4, requires_grad=True)
    with watch_places(places, model), places.step():
        clock.now_ms += 1
        with places("forward"):
            loss = model(x).sum()
        with places("backward"):
            loss.backward()
    (step,) = timer.read()
    assert timer.read() == []
    return {place: span_ms for place, span_ms in step.items() if span_ms}


def test_a_planted_cost_shows_in_its_phase_layer_and_piece_and_nowhere_else() -> None:
    clock = PlantedClock()
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Slow(clock)), nn.ReLU())
    assert timed(model, clock) == {
        Place("unattributed", "", "", REST): 1,
        Place("forward", "1.0", "", REST): 7,
        Place("backward", "1.0", "", REST): 30,
        Place("backward", "1.0", "wgrad", "quantize"): 200,
    }


def test_a_slow_norm_or_activation_is_told_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = PlantedClock()

    def slow_relu(x: Tensor, inplace: bool = False) -> Tensor:
        clock.now_ms += 5
        return torch.relu(x)

    def slow_norm(*args: Any) -> Tensor:
        clock.now_ms += 11
        return args[0]

    monkeypatch.setattr(F, "relu", slow_relu)
    monkeypatch.setattr(F, "batch_norm", slow_norm)
    spans = timed(nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), clock)
    assert spans[Place("forward", "0", "", "norm")] == 11
    assert spans[Place("forward", "1", "", "activation")] == 5


def test_float_products_are_told_apart_in_every_layer_that_has_them() -> None:
    clock = CountingClock()
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3))
    timer = SpanTimer(CPU, clock=clock)
    places = Places(timer)
    with watch_places(places, model), places.step():
        with places("forward"):
            loss = model(torch.randn(2, 2, 6, 6)).sum()
        with places("backward"):
            loss.backward()
    (step,) = timer.read()
    products = {(place.phase, place.layer, place.gemm) for place in step if place.piece == "gemm"}
    assert products == {
        ("forward", "0", "fprop"), ("backward", "0", "wgrad"),
        ("forward", "1", "fprop"), ("backward", "1", "dgrad"), ("backward", "1", "wgrad"),
        ("forward", "3", "fprop"), ("backward", "3", "dgrad"), ("backward", "3", "wgrad"),
    }  # fmt: skip
    assert sum(step.values()) == clock.last - clock.first, "the places of a step add up to it"
    assert not any("forward" in vars(module) for module in model.modules())


class CountingClock(PlantedClock):
    """Each mark is one later than the last."""

    first, last = -1, 0

    def mark(self) -> float:
        self.last += 1
        self.first = self.last if self.first < 0 else self.first
        return self.last


@pytest.mark.parametrize("autocast", [False, True])
def test_products_with_spans_give_the_very_same_gradients(autocast: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding="same", bias=False),
        nn.Conv2d(4, 4, (1, 3), padding="valid", groups=4, dilation=(1, 2)), nn.Flatten(), nn.Linear(64, 5),
        nn.Linear(5, 3, bias=False),
    )  # fmt: skip
    x = torch.randn(3, 2, 8, 16, requires_grad=True)

    def gradients() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(x).float().square().sum()
        return list(torch.autograd.grad(loss, [x, *model.parameters()]))

    plain = gradients()
    with float_spans(model):
        spanned = gradients()
    for one, other in zip(plain, spanned, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_a_convolution_that_pads_otherwise_and_a_replaced_forward_are_left_alone() -> None:
    circular = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")
    replaced = nn.Linear(2, 2)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    with float_spans(nn.ModuleList([circular, replaced])):
        assert "forward" not in vars(circular)
        assert replaced(1) == 1
    assert replaced(1) == 1
