from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.app import parse_arguments, plan_cells
from bench.data import build_data
from bench.data.loader import TrainBatches
from bench.kernels.workspace import clear_workspace
from bench.profilers.layer_scopes import LayerScopes
from bench.profilers.memory_categories import CategoryTracker, MemoryProfile, Owner
from bench.records.schema import MEMORY_CATEGORIES, LayerMemory, MemoryPhase
from bench.training.assemble import Parts, build_parts
from bench.training.drawn_layer import take_largest_layer
from bench.training.memory import track_steps
from bench.units import MEBIBYTE, Absent

CPU = torch.device("cpu")
MAX_OTHER_PCT = 5


@pytest.fixture(autouse=True)
def no_buffers_of_other_tests() -> None:
    clear_workspace()


def parts_of(*argv: str) -> Parts:
    (cell,) = plan_cells(parse_arguments([*argv, "data.train_limit=64", "data.test_limit=64"])).cells
    return build_parts(cell, build_data("digits", train_limit=64, test_limit=64), CPU)


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    data = build_data("digits", train_limit=64, test_limit=64)
    drawn = TrainBatches(data, batch_size=16, seed=0, device=CPU)
    return [drawn.batch(0, step) for step in range(count)]


def profile_of(*argv: str, steps: int = 3) -> MemoryProfile:
    parts = parts_of(*argv)
    take_largest_layer(parts)
    tracker = track_steps(parts, batches(steps), 0.01, CPU)
    profile = tracker.profile()
    assert max(phase.peak_bytes for phase in profile.phases) == tracker.peak_allocated_bytes
    assert tracker.num_unseen == 0
    return profile


def phase(profile: MemoryProfile, name: str) -> MemoryPhase:
    return next(entry for entry in profile.phases if entry.phase == name)


@pytest.mark.parametrize(
    "variant",
    [
        "fp32", "uint8_int8", "metagrad_int4_slim", "metaquant_lstm_fc_recompute",
        *(pytest.param(name, marks=pytest.mark.slow) for name in (
            "bf16", "ste_int8", "dorefa_int4", "daint8_int8", "uniform_int4", "metagrad_int4_retain",
            "metagrad_int8_recompute", "metagrad_int4_tabulate",
        )),
    ],
)  # fmt: skip
def test_at_every_phases_peak_the_categories_add_up_and_little_is_left_over(variant: str) -> None:
    hidden = [] if "meta" not in variant else ["hypernet.hidden=4"]
    profile = profile_of(f"variant={variant}", *hidden)
    assert {"forward", "backward", "optimizer"} <= {entry.phase for entry in profile.phases}
    for entry in profile.phases:
        assert set(entry.categories) == set(MEMORY_CATEGORIES)
        assert sum(entry.categories.values()) == entry.peak_bytes
        assert min(entry.categories.values()) >= 0
        assert 100 * entry.categories["other"] <= MAX_OTHER_PCT * entry.peak_bytes, entry
        assert isinstance(entry.allocator_bytes, Absent)


def test_weights_gradients_and_optimizer_state_have_the_bytes_of_their_numbers() -> None:
    parts = parts_of("variant=metagrad_int4_recompute", "hypernet.hidden=4")
    parameters = 4 * sum(parameter.numel() for parameter in parts.model.parameters())
    buffers = sum(buffer.nbytes for buffer in parts.model.buffers())
    quantized = 4 * sum(weight.numel() for weight in parts.weights)
    psi = 4 * sum(parameter.numel() for parameter in parts.delayed.hypernet.parameters()) if parts.delayed else 0
    profile = track_steps(parts, batches(3), 0.01, CPU).profile()
    backward, optimizer = phase(profile, "backward").categories, phase(profile, "optimizer").categories
    assert backward["weights"] == parameters + buffers
    assert backward["optimizer_state"] == parameters + 2 * psi, "momentum of all, Adam's moments of psi"
    assert backward["hypernet_parameters"] == psi
    assert backward["pending_gradients"] == quantized
    assert optimizer["gradients"] >= parameters - quantized, "the others' gradients are there while they step"
    assert phase(profile, "meta").categories["hypernet_activations"] > 0


@pytest.mark.parametrize(
    ("argv", "bytes_per_code"), [(["variant=ste_int8"], 1), (["variant=uniform_int4", "compact=true"], 0.5)]
)
def test_codes_of_weights_and_saved_activations_are_told_apart(argv: list[str], bytes_per_code: float) -> None:
    parts = parts_of(*argv)
    codes = bytes_per_code * sum(weight.numel() for weight in parts.weights)
    profile = track_steps(parts, batches(2), 0.01, CPU).profile()
    forward = phase(profile, "forward").categories
    assert codes * 0.9 < forward["integer_copies"] < codes * 1.2
    assert forward["activations"] > 16 * bytes_per_code * forward["data"]
    plain = phase(profile_of("variant=fp32"), "forward").categories
    assert plain["integer_copies"] == 0


def test_retain_keeps_its_graph_through_the_backward_and_recompute_does_not() -> None:
    retain, recompute = (
        phase(profile_of(f"variant=metagrad_int4_{name}", "hypernet.hidden=4"), "backward").categories
        for name in ("retain", "recompute")
    )
    assert retain["hypernet_activations"] > 100 * recompute["hypernet_activations"]
    for name in ("weights", "activations", "pending_gradients", "hypernet_parameters"):
        assert retain[name] == recompute[name]


class Planted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        block = torch.zeros(64 * MEBIBYTE, dtype=torch.uint8)
        return grads[0] + block[0]


class AllocatesInBackward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = Planted.apply(x)
        return result


def test_a_layer_that_allocates_in_backward_shows_in_that_phase_layer_and_category() -> None:
    parts = parts_of("variant=uniform_int8")
    first = parts.model.get_submodule("blocks.4")
    first.relu1 = nn.Sequential(first.relu1, AllocatesInBackward())
    profile = track_steps(parts, batches(2), 0.01, CPU).profile()
    backward = phase(profile, "backward")
    assert max(profile.phases, key=lambda entry: entry.peak_bytes) == backward
    assert backward.layer == "blocks.4.relu1.1"
    assert 64 * MEBIBYTE <= backward.categories["workspaces"] < 68 * MEBIBYTE
    assert phase(profile, "forward").peak_bytes < 64 * MEBIBYTE
    extra = {layer.name: layer.backward_extra_bytes for layer in profile.layers}
    assert extra.pop("blocks.4.relu1.1") >= 64 * MEBIBYTE
    assert max(extra.values()) < 8 * MEBIBYTE


def test_a_layer_that_keeps_memory_for_backward_shows_in_the_forward() -> None:
    class Keeps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + (x.flatten()[:1].exp().repeat(4 * MEBIBYTE).square().sum() * 0.0)

    parts = parts_of("variant=fp32")
    first = parts.model.get_submodule("blocks.4")
    first.relu1 = nn.Sequential(first.relu1, Keeps())
    profile = track_steps(parts, batches(2), 0.01, CPU).profile()
    kept = {layer.name: layer.kept_bytes for layer in profile.layers}
    assert 16 * MEBIBYTE <= kept.pop("blocks.4.relu1.1") < 17 * MEBIBYTE, "square keeps its input"
    assert max(kept.values()) < MEBIBYTE
    assert phase(profile, "backward").categories["activations"] > 16 * MEBIBYTE


def test_a_layers_figures_are_those_of_paper_and_pencil() -> None:
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.Tanh())
    images = torch.randn(16, 64)
    tracker = CategoryTracker(
        lambda: [
            Owner("weights", list(model.parameters())),
            Owner("data", [images]),
            Owner("gradients", [p.grad for p in model.parameters() if p.grad is not None]),
        ]
    )
    with LayerScopes(model, tracker), tracker:
        with tracker.phases("forward"):
            loss = model(images).sum()
        with tracker.phases("backward"):
            loss.backward()
    weight, out = 4 * 64 * 32, 4 * 16 * 32
    profile = tracker.profile()
    table = {layer.name: layer for layer in profile.layers}
    assert table["0"] == LayerMemory(name="0", kept_bytes=0, forward_extra_bytes=out, backward_extra_bytes=weight)
    assert table["1"] == LayerMemory(name="1", kept_bytes=out, forward_extra_bytes=out, backward_extra_bytes=out)
    forward = phase(profile, "forward")
    assert {name: held for name, held in forward.categories.items() if held} == {
        "weights": weight, "data": 4 * 16 * 64, "activations": 2 * out,
    }, "tanh keeps its own output alone"  # fmt: skip
    at_end = tracker.held(10**9)
    assert (at_end["gradients"], at_end["weights"]) == (weight, weight)


def test_a_gradient_that_waits_for_the_next_step_was_a_gradient_before() -> None:
    weight = torch.ones(256, requires_grad=True)
    pending: list[Tensor] = []
    tracker = CategoryTracker(
        lambda: [Owner("weights", [weight]), Owner("pending_gradients", pending, from_now=True),
                 Owner("gradients", [weight.grad] if weight.grad is not None else [])]
    )  # fmt: skip
    with tracker:
        with tracker.phases("backward"):
            weight.square().sum().backward()
        before = tracker.held(10**9)
        with tracker.phases("optimizer"):
            assert weight.grad is not None
            pending.append(weight.grad)
            weight.grad = None
        after = tracker.held(10**9)
    assert (before["gradients"], before["pending_gradients"]) == (1024, 0)
    assert (after["gradients"], after["pending_gradients"]) == (0, 1024)


def test_every_category_is_defined_in_one_line() -> None:
    assert all(line and "\n" not in line for line in MEMORY_CATEGORIES.values())
