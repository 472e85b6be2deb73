from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.profilers.allocation_tracker import AllocationTracker
from tests.tools.kernels.works import tiny_work
from tools.kernels.passes import MIN_ROUNDS, SavedBytes, count_saved, steps_pass, turn_order
from tools.kernels.sides import SIDES, build_side, make_batches


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_without_a_compiler_the_compiled_sides_are_absent_with_the_reason(
    own_net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (None, "/nonexistent/g++"))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    monkeypatch.syspath_prepend(str(own_net))
    answer = steps_pass(
        report=lambda _: None, work=tiny_work(model="custom", factory="kernelnet:make"),
        names=("fp32", "fp32_compiled"), steps=1, warmup_steps=0, budget_s=1.0,
    )  # fmt: skip
    assert set(answer.step_ms) == {"fp32"}
    assert "torch.compile failed here" in answer.absent["fp32_compiled"].reason
    assert "compiler" in answer.absent["fp32_compiled"].reason


def test_rounds_end_when_the_budget_is_spent_but_not_before_three() -> None:
    answer = steps_pass(
        report=lambda _: None, work=tiny_work(), names=("fp32", "int8"), steps=50, warmup_steps=0, budget_s=1e-9
    )
    assert {side: len(samples) for side, samples in answer.step_ms.items()} == {"fp32": MIN_ROUNDS, "int8": MIN_ROUNDS}
    assert answer.labels == {"int8": "integer"}
    assert answer.not_finite == ()


def test_everybody_begins_equally_often_and_nobody_always_follows_the_same_one() -> None:
    names = list(SIDES)
    orders = [turn_order(names, turn) for turn in range(2 * len(names))]
    assert all(sorted(order) == sorted(names) for order in orders)
    firsts = [order[0] for order in orders]
    assert all(firsts.count(name) == 2 for name in names)
    for name in names:
        before = {order[order.index(name) - 1] for order in orders if order[0] != name}
        assert len(before) > 1


def test_bytes_saved_are_those_of_a_network_counted_by_hand() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 5, bias=False))
    x = torch.randn(6, 4)
    # ReLU keeps its result, which is the second layer's input: 6 × 3 float32, once. Weights and x do not count.
    found = count_saved(lambda: model(x).sum(), apart=[x, *model.parameters()])
    assert found == SavedBytes(total_bytes=6 * 3 * 4, by_dtype={"float32": 72})
    # Cross-entropy adds log-probabilities 6 × 5 float32, the labels 6 int64 and the sum of weights, one float32.
    labels = torch.zeros(6, dtype=torch.int64)
    found = count_saved(lambda: F.cross_entropy(model(x), labels), apart=[x, *model.parameters()])
    assert found == SavedBytes(total_bytes=72 + 120 + 48 + 4, by_dtype={"float32": 196, "int64": 48})


def test_a_saved_view_holds_its_whole_storage_and_counts_once() -> None:
    weight = torch.randn(100, requires_grad=True)

    def forward() -> Tensor:
        doubled = weight * 2
        return (doubled[:10] ** 2).sum() + (doubled[5:20] ** 2).sum()

    assert count_saved(forward, apart=[weight]).total_bytes == 100 * 4


@pytest.mark.parametrize("side", ["fp32", "int8", "int4_compact"])
def test_no_side_keeps_memory_for_backward_that_the_count_does_not_see(side: str) -> None:
    work = tiny_work(batch_size=8)
    images, labels = make_batches(work, torch.device("cpu"))[0]
    parts = build_side(side, work, images)
    alive = [images, labels, *parts.model.parameters(), *parts.model.buffers()]
    with AllocationTracker():  # workspaces are there from now on, also those of code that a tracker runs eagerly
        F.cross_entropy(parts.model(images), labels).backward()
    saved = count_saved(lambda: F.cross_entropy(parts.model(images), labels), apart=alive)
    with AllocationTracker(alive) as tracker:
        loss = F.cross_entropy(parts.model(images), labels)
        held = tracker.live_bytes - tracker.baseline_bytes
    assert loss.requires_grad
    # Beside what is saved only the loss and numbers of that size are alive.
    assert held <= saved.total_bytes + 4096
