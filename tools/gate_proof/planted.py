"""Slowdowns and leaks that the proof plants into real passes: the gate has to find what is known to be there.

The passes are the product's own; only the child process of the proof puts something between them and the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

import bench.passes.memory
import bench.timing
import bench.training.memory
from bench.config import CellConfig
from bench.passes import MemoryAnswer
from bench.profilers.base import Phases
from bench.records.schema import TimingRepeat
from bench.training.assemble import Parts
from bench.training.step import train_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """One phase takes longer, by a share of the whole step."""

    phase: str
    step_pct: float  # percent of the step's own time; 0: nothing is planted


class SlowedSteps:
    """Training steps of one side in which a phase waits, busily, before it ends."""

    def __init__(self, slowdown: Slowdown) -> None:
        """Plant a slowdown from the second step on: the first says how long a step takes."""
        self._slowdown = slowdown
        self._own_s = 0.0  # the last step without what was planted in it

    def __call__(self, parts: Parts, images: Any, labels: Any, lr: float, phases: Phases) -> Any:
        """One step; a phase that comes several times in it waits once."""
        planted_s = self._own_s * self._slowdown.step_pct / 100
        waited = False

        @contextmanager
        def slowed(name: str) -> Iterator[None]:
            nonlocal waited
            with phases(name):
                yield
                if name == self._slowdown.phase and not waited:
                    waited = True
                    wait_busily(planted_s)

        started = time.perf_counter()
        loss = train_step(parts, images, labels, lr, slowed)
        self._own_s = time.perf_counter() - started - planted_s * waited
        return loss


def wait_busily(seconds: float) -> None:
    """Keep the core at work for so long, as slower code would."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def slowed_timing_pass(*, slowdown: Slowdown, cell: CellConfig, **arguments: Any) -> TimingRepeat:
    """The timing pass with a slowdown in the cell's steps; the FP32 steps between them stay as they are."""
    slowed = SlowedSteps(slowdown)

    def step(parts: Parts, images: Any, labels: Any, lr: float, phases: Phases) -> Any:
        is_cell = parts.conversion is not None  # the FP32 side was not converted
        run: Callable[..., Any] = slowed if is_cell else train_step
        return run(parts, images, labels, lr, phases)

    with mock.patch.object(bench.timing, "train_step", step):
        return bench.passes.timing_pass(cell=cell, **arguments)


def leaking_memory_pass(*, leak_bytes: int, cell: CellConfig, **arguments: Any) -> MemoryAnswer:
    """The memory pass whose every step keeps `leak_bytes` that nobody needs, and lets go of those of the step before.

    So all of its windows, for the process and for the storages, hold the leak once, from their first step on.
    """
    kept: list[torch.Tensor] = []

    def step(parts: Parts, images: Any, labels: Any, lr: float, phases: Phases) -> Any:
        kept.clear()
        kept.append(torch.ones(leak_bytes, dtype=torch.uint8, device=images.device))
        return train_step(parts, images, labels, lr, phases)

    # The window for the process, then the one for the storages.
    with (
        mock.patch.object(bench.passes.memory, "train_step", step),
        mock.patch.object(bench.training.memory, "train_step", step),
    ):
        return bench.passes.memory_pass(cell=cell, **arguments)
