"""Step times of a cell beside its FP32 reference in one process: blocks in turn, until the medians are narrow.

What would favour one side is left out or alternates. A process starts slowly (the first steps of a fresh process took
6 % longer, over about ten steps): both sides run a whole uncounted round first. The step after a change of sides finds
the other's weights in the caches (3.5 % longer, ResNet-20 on two cores): it is run and not counted. A drift within a
round: every other round runs the other way round, and every other process starts with the other side.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from bench.profilers.base import NO_PHASES, Phases
from bench.profilers.phase_timer import PhaseSamples, PhaseTimer
from bench.records.schema import StepWindow
from bench.reporting import Report
from bench.stats import median_half_width
from bench.training.assemble import Parts
from bench.training.step import forward_loss, train_step

SWITCH_STEPS = 1  # run after a change of sides and not counted
MARK_PAIRS = 24  # at most, each a step with phase marks and one without
MARK_REPEATS = 32  # a mark takes microseconds: repeated, it shows above the noise of a step
_MARK_SHARE = 0.25  # of the time that sampling took, for measuring the marks


class Limits(Protocol):
    """How long to sample: the fields of ``ProtocolConfig`` that say so."""

    warmup_steps: int
    timing_blocks: int
    steps_per_block: int
    timing_interval_pct: float
    timing_budget_s: float


@dataclass(slots=True, kw_only=True)
class Side:
    """One of the two that take turns: its parts, its own stream of batches, its timer."""

    name: str
    parts: Parts
    stream: Iterator[tuple[Tensor, Tensor]]
    lr: float
    timer: PhaseTimer

    def run(self, steps: int, *, mark_repeats: int = 1) -> PhaseSamples:
        """Take whole training steps and wait for the device.

        Args:
            steps: how many.
            mark_repeats: how often each phase is marked; 0 times the step alone.
        """
        phases: Phases = self.timer if mark_repeats == 1 else NO_PHASES
        if mark_repeats > 1:
            phases = _RepeatedMarks(self.timer, mark_repeats)
        for _ in range(steps):
            with self.timer.step():
                with phases("data"):
                    images, labels = next(self.stream)
                train_step(self.parts, images, labels, self.lr, phases)
        return self.timer.read()


class _RepeatedMarks:
    """Marks each phase several times over."""

    def __init__(self, timer: PhaseTimer, repeats: int) -> None:
        self._timer = timer
        self._repeats = repeats

    def step(self) -> AbstractContextManager[None]:
        return self._timer.step()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        for _ in range(self._repeats - 1):
            with self._timer(name):
                pass
        with self._timer(name):
            yield


@dataclass(slots=True, kw_only=True)
class Sampled:
    """What sampling left: samples and the moments of each block, by side."""

    blocks: dict[str, list[PhaseSamples]]
    windows: list[StepWindow] = field(default_factory=list)
    stopped_by: str = ""  # interval, blocks or budget
    half_width_pct: float = 0.0  # of the wider of both medians' 95 % intervals

    def step_ms(self, name: str) -> tuple[float, ...]:
        """One side's samples in ms."""
        return tuple(value for block in self.blocks[name] for value in block.step_ms)


def sample_in_turn(sides: Sequence[Side], limits: Limits, *, report: Report, phase: str) -> Sampled:
    """Time two sides in turn until both medians are known well enough or the budget is spent.

    Args:
        sides: in the order of the first round; they have seen the same number of batches.
        limits: at least ``timing_blocks`` blocks of ``steps_per_block`` steps a side; then it stops where the 95 %
            interval of both medians reaches no further than ``timing_interval_pct`` to either side, or after
            ``timing_budget_s`` seconds.
        report: takes progress, under ``partial`` what answers the Sampled so far.
        phase: name shown in the progress.
    """
    for side in sides:
        side.parts.model.train()
        for done in range(limits.warmup_steps + 1):  # the first step of a delayed update has nothing pending
            side.run(1)
            report({"phase": "warm-up", "done": done + 1, "total": limits.warmup_steps + 1})
    sampled = Sampled(blocks={side.name: [] for side in sides})
    for side in sides:
        side.run(SWITCH_STEPS + limits.steps_per_block)
    gc.collect()
    gc.freeze()  # what is alive now stays: a full collection within a step would walk all of it
    try:
        _sample(sides, limits, sampled, report, phase)
    finally:
        gc.unfreeze()
    return sampled


def _sample(sides: Sequence[Side], limits: Limits, sampled: Sampled, report: Report, phase: str) -> None:
    started = time.perf_counter()
    rounds = 0
    while not sampled.stopped_by:
        for side in sides if rounds % 2 == 0 else sides[::-1]:
            side.run(SWITCH_STEPS)
            start_s = time.perf_counter()
            sampled.blocks[side.name].append(side.run(limits.steps_per_block))
            sampled.windows.append(
                StepWindow(name=side.name, start_s=start_s, end_s=time.perf_counter(), steps=limits.steps_per_block)
            )
        rounds += 1
        spent_s = time.perf_counter() - started
        mean_ms = sum(sampled.blocks["cell"][-1].step_ms) / limits.steps_per_block
        total = _rounds(limits, rounds, spent_s)
        report({"phase": phase, "done": rounds, "total": total, "step_ms": mean_ms, "partial": lambda: sampled})
        if rounds < limits.timing_blocks:
            continue
        medians = [[_median(block.step_ms) for block in sampled.blocks[side.name]] for side in sides]
        sampled.half_width_pct = 100 * max(median_half_width(values) for values in medians)
        if sampled.half_width_pct <= limits.timing_interval_pct:
            sampled.stopped_by = "interval"
        elif not limits.timing_budget_s:
            sampled.stopped_by = "blocks"
        elif spent_s + spent_s / rounds > limits.timing_budget_s:
            sampled.stopped_by = "budget"


def _rounds(limits: Limits, rounds: int, spent_s: float) -> int:
    """Rounds that the budget allows, for the progress bar."""
    return max(limits.timing_blocks, int(limits.timing_budget_s / max(spent_s / rounds, 1e-6)), rounds)


def _median(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def time_phase_marks(side: Side, *, budget_s: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Steps with and without phase marks, in turn: what timing the phases costs.

    Args:
        side: whose steps.
        budget_s: no further pair is begun after so many seconds; at least four run.

    Returns:
        Samples with each mark made ``MARK_REPEATS`` times and without any, in ms, equally many.
    """
    samples: dict[int, list[float]] = {MARK_REPEATS: [], 0: []}
    started = time.perf_counter()
    for pair in range(MARK_PAIRS):
        if pair >= 4 and time.perf_counter() - started > budget_s:
            break
        for repeats in (MARK_REPEATS, 0) if pair % 2 == 0 else (0, MARK_REPEATS):
            samples[repeats].extend(side.run(1, mark_repeats=repeats).step_ms)
    return tuple(samples[MARK_REPEATS]), tuple(samples[0])


def mark_budget_s(sampled: Sampled) -> float:
    """Seconds for measuring the marks: a share of what sampling took."""
    return _MARK_SHARE * (sampled.windows[-1].end_s - sampled.windows[0].start_s)


def energy_windows(cell: Side, fp32: Side, *, window_s: float) -> list[StepWindow]:
    """Repeat parts of the step for so long that an energy counter can tell them apart.

    A phase of a few milliseconds cannot be told from its neighbours by a counter that ticks every 10 to 100 ms; a
    window full of forward passes can. So forward is measured alone, backward as what it adds to forward, the rest of
    the step (data, hypernetwork, optimizer) as what the whole step adds to both.

    Args:
        cell: the cell's side; its weights go on training.
        fp32: the FP32 side.
        window_s: seconds of each window.

    Returns:
        Windows ``forward``, ``forward_backward``, ``energy_cell`` and ``energy_fp32``; steps as many as fitted.
    """
    images, labels = next(cell.stream)

    def forward() -> None:
        forward_loss(cell.parts, images, labels)

    def forward_backward() -> None:
        for parameter in cell.parts.model.parameters():
            parameter.grad = None
        forward_loss(cell.parts, images, labels).backward()

    def repeat(name: str, run: Callable[[], object]) -> StepWindow:
        run()  # after a change of work, uncounted
        _wait(images.device)
        start_s, steps = time.perf_counter(), 0
        while time.perf_counter() - start_s < window_s:
            run()
            steps += 1
            _wait(images.device)
        return StepWindow(name=name, start_s=start_s, end_s=time.perf_counter(), steps=steps)

    return [
        repeat("forward", forward),
        repeat("forward_backward", forward_backward),
        repeat("energy_cell", lambda: cell.run(1)),
        repeat("energy_fp32", lambda: fp32.run(1)),
    ]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
