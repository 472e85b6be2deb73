"""Runs training steps under the tracker that tells memory apart by category."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from bench.profilers.layer_scopes import LayerScopes
from bench.profilers.memory_categories import CategoryTracker
from bench.training.assemble import Parts
from bench.training.owners import MADE_BY_UPDATE, owners_of
from bench.training.step import train_step

MAX_SNAPSHOT_EVENTS = 200_000  # allocations and frees that a snapshot holds, the latest; about 0.5 KiB each


def track_steps(
    parts: Parts,
    batches: Sequence[tuple[Tensor, Tensor]],
    lr: float,
    device: torch.device,
    *,
    before_step: Callable[[], None] | None = None,
) -> CategoryTracker:
    """One step on each batch, tracked; a batch is let go after its step.

    Args:
        parts: of a cell; stepped in place.
        batches: images and labels on the device.
        lr: learning rate.
        device: whose storages count.
        before_step: called before each step.

    Returns:
        The tracker, whose window has ended.
    """
    left = list(batches)
    tracker = CategoryTracker(
        owners_of(parts, lambda: [tensor for batch in left for tensor in batch]),
        device=device,
        made_outside=MADE_BY_UPDATE if parts.delayed is not None else "other",
        allocator_bytes=(lambda: torch.cuda.memory_allocated(device)) if device.type == "cuda" else None,
    )
    with LayerScopes(parts.model, tracker), tracker:
        while left:
            if before_step is not None:
                before_step()
            train_step(parts, *left[0], lr, tracker.phases)
            del left[0]
    return tracker


def snapshot_steps(parts: Parts, batches: Sequence[tuple[Tensor, Tensor]], lr: float, target: Path) -> None:
    """One step on each batch while CUDA's allocator keeps its history, written for https://pytorch.org/memory_viz.

    Source: "Understanding CUDA Memory Usage" in torch's documentation, whose functions these are.

    Args:
        parts: of a cell on CUDA; stepped in place.
        batches: images and labels on the device.
        lr: learning rate.
        target: the file to write, a pickle.
    """
    torch.cuda.memory._record_memory_history(max_entries=MAX_SNAPSHOT_EVENTS)
    try:
        for images, labels in batches:
            train_step(parts, images, labels, lr, lambda name: nullcontext())
        torch.cuda.memory._dump_snapshot(str(target))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
