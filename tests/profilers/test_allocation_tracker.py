from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.profilers.allocation_tracker import AllocationTracker
from bench.units import MEBIBYTE

KIB = 1024


def floats(num_kib: int) -> torch.Tensor:
    return torch.zeros(num_kib * KIB // 4)


def test_live_bytes_follow_birth_and_death_exactly() -> None:
    x = floats(4)
    with AllocationTracker([x]) as tracker:
        assert (tracker.baseline_bytes, tracker.live_bytes) == (4 * KIB, 4 * KIB)
        y = x * 2
        z = y + 1
        assert tracker.live_bytes == 12 * KIB
        del y
        assert tracker.live_bytes == 8 * KIB
        del z
    assert tracker.live_bytes == 4 * KIB
    assert tracker.peak_allocated_bytes == 12 * KIB


def test_an_operators_inputs_and_output_are_alive_together() -> None:
    x = floats(4)
    with AllocationTracker([x]) as tracker:
        y = x * 2
        y = y * 3  # the new y exists before the old one is freed
    assert tracker.peak_allocated_bytes == 12 * KIB
    assert tracker.live_bytes == 8 * KIB


def test_views_share_one_storage_and_keep_it_alive() -> None:
    with AllocationTracker() as tracker:
        y = torch.zeros(32, 32)
        views = [y.t(), y.view(-1), y[3:5], y.detach(), y.expand(4, 32, 32)]
        assert tracker.live_bytes == 4 * KIB
        del y
        assert tracker.live_bytes == 4 * KIB
        views.clear()
        assert tracker.live_bytes == 0


def test_existing_tensors_that_share_storage_count_once() -> None:
    x = torch.zeros(32, 32)
    assert AllocationTracker([x, x.t(), x[0]]).baseline_bytes == 4 * KIB


def test_a_tensor_that_nobody_named_counts_from_the_beginning_once_it_is_read() -> None:
    known, unknown = floats(4), floats(16)
    with AllocationTracker([known]) as tracker:
        y = known * 2
        y += unknown.sum()
    assert tracker.baseline_bytes == 20 * KIB
    assert tracker.peak_allocated_bytes == 24 * KIB + 4  # the sum is one float


def test_freeing_what_was_there_before_makes_room() -> None:
    tracked = [floats(16)]
    with AllocationTracker(tracked) as tracker:
        tracked.clear()
        assert tracker.live_bytes == 0
        y = floats(8)
        assert tracker.live_bytes == 8 * KIB
        del y
    assert tracker.peak_allocated_bytes == 16 * KIB


def test_an_operator_that_resizes_in_place_is_seen() -> None:
    with AllocationTracker() as tracker:
        x = torch.empty(0)
        x.resize_(256)
        assert tracker.live_bytes == 1 * KIB
        x.resize_(1024)
        assert tracker.live_bytes == 4 * KIB
        x.resize_(0)
        torch.add(torch.ones(2048), 1, out=x)
        assert tracker.live_bytes == 8 * KIB
    assert tracker.live_bytes == 8 * KIB


def test_in_place_operators_allocate_nothing() -> None:
    x = floats(4)
    with AllocationTracker([x]) as tracker:
        x.add_(1).mul_(2).relu_()
    assert tracker.peak_allocated_bytes == 4 * KIB


def test_what_autograd_saved_lives_until_backward() -> None:
    w = torch.randn(32, 32, requires_grad=True)
    with AllocationTracker([w]) as tracker:
        loss = torch.tanh(torch.tanh(torch.tanh(w))).sum()
        assert tracker.live_bytes == 4 * 4 * KIB + 4  # w, three results that only the graph holds, the loss
        loss.backward()
        assert tracker.live_bytes == 2 * 4 * KIB + 4  # w, its gradient, the loss


class AllocatesInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        planted = torch.zeros(64 * MEBIBYTE, dtype=torch.uint8)
        return grad + planted[0]


def test_a_tensor_planted_in_backward_is_in_the_peak_and_gone_afterwards() -> None:
    x = torch.zeros(256, requires_grad=True)
    with AllocationTracker([x]) as tracker:
        out = AllocatesInBackward.apply(x)
        out.sum().backward()
        del out
        assert tracker.live_bytes == 2 * KIB
    extra = tracker.peak_allocated_bytes - 64 * MEBIBYTE
    assert 0 < extra < 8 * KIB


def test_a_linear_layers_step_has_the_bytes_that_paper_and_pencil_give() -> None:
    layer = nn.Linear(64, 32, bias=False)
    images = torch.randn(16, 64)
    with AllocationTracker([layer.weight, images]) as tracker:
        out = layer(images)
        assert tracker.live_bytes == 4 * (64 * 32 + 16 * 64 + 16 * 32)
        out.backward(torch.ones_like(out))
    weight, out_bytes = 4 * 64 * 32, 4 * 16 * 32
    assert tracker.live_bytes == 2 * weight + 4 * 16 * 64 + out_bytes
    assert tracker.peak_allocated_bytes == 2 * weight + 4 * 16 * 64 + 2 * out_bytes  # out, ones, the new gradient


def test_the_peak_is_the_same_in_every_run() -> None:
    def peak() -> int:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
        images = torch.randn(4, 3, 8, 8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with AllocationTracker([*model.parameters(), *model.buffers(), images]) as tracker:
            for _ in range(2):
                optimizer.zero_grad()
                model(images).square().mean().backward()
                optimizer.step()
        return tracker.peak_allocated_bytes

    assert peak() == peak()


def test_only_storages_of_the_watched_device_count() -> None:
    with AllocationTracker() as tracker:
        elsewhere = torch.zeros(1024, device="meta") * 2
    assert elsewhere.shape == (1024,)
    assert tracker.peak_allocated_bytes == 0


def test_results_without_a_plain_storage_are_counted_as_unseen() -> None:
    dense = torch.eye(4)
    with AllocationTracker([dense]) as tracker:
        sparse = dense.to_sparse()
    assert sparse.is_sparse
    assert tracker.num_unseen > 0
