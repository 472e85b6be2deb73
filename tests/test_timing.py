from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from bench.app import parse_arguments, plan_cells
from bench.data import build_data
from bench.data.loader import TrainBatches
from bench.profilers.phase_timer import PhaseSamples, PhaseTimer
from bench.timing import MARK_REPEATS, Side, energy_windows, sample_in_turn, time_phase_marks
from bench.training.assemble import build_parts

CPU = torch.device("cpu")


@dataclass
class Limits:
    warmup_steps: int = 2
    timing_blocks: int = 6
    steps_per_block: int = 4
    timing_interval_pct: float = 1.0
    timing_budget_s: float = 1e9


@dataclass
class Machine:
    """Whose step took how long: a fresh process is slow, and so is the step after a change of sides."""

    steps: int = 0
    last: str = ""
    log: list[str] = field(default_factory=list)

    def step_ms(self, name: str) -> float:
        ms = 10.0 + (3.0 if self.steps < 10 else 0.0) + (2.0 if self.last != name else 0.0)
        self.steps, self.last = self.steps + 1, name
        self.log.append(name)
        return ms


class PlantedSide:
    """A side whose steps take what the machine says, times a factor of its own."""

    def __init__(self, name: str, machine: Machine, factors: Sequence[float] = (1.0,)) -> None:
        self.name, self.machine, self.factors = name, machine, itertools.cycle(factors)
        self.parts = type("Parts", (), {"model": nn.Identity()})

    def run(self, steps: int) -> PhaseSamples:
        step_ms = tuple(self.machine.step_ms(self.name) * next(self.factors) for _ in range(steps))
        return PhaseSamples(step_ms=step_ms, phases_ms={"unattributed": step_ms})


def sample(names: Sequence[str] = ("cell", "fp32"), limits: Limits | None = None, **factors: Sequence[float]) -> Any:
    machine = Machine()
    sides: Any = [PlantedSide(name, machine, factors.get(name, (1.0,))) for name in names]
    sampled = sample_in_turn(sides, limits or Limits(), report=lambda progress: None, phase="timing")
    return sampled, machine


@pytest.mark.parametrize("names", [("cell", "fp32"), ("fp32", "cell")])
def test_neither_a_slow_start_nor_a_change_of_sides_is_in_any_sample(names: Sequence[str]) -> None:
    sampled, _ = sample(names)
    assert set(sampled.step_ms("cell")) == set(sampled.step_ms("fp32")) == {10.0}


def test_sides_take_turns_there_and_back_and_see_equally_many_batches() -> None:
    sampled, machine = sample()
    assert [window.name for window in sampled.windows[:6]] == ["cell", "fp32", "fp32", "cell", "cell", "fp32"]
    assert machine.log.count("cell") == machine.log.count("fp32")
    assert {window.steps for window in sampled.windows} == {4}
    assert all(window.end_s >= window.start_s for window in sampled.windows)


def test_sampling_stops_when_both_medians_are_narrow() -> None:
    sampled, _ = sample()
    assert (sampled.stopped_by, sampled.half_width_pct, len(sampled.blocks["cell"])) == ("interval", 0.0, 6)


def test_one_noisy_side_keeps_sampling_until_its_median_is_narrow_too() -> None:
    noisy = tuple(1 + 0.05 * ((7 * n) % 11 - 5) / 5 for n in range(11))
    sampled, _ = sample(fp32=noisy)
    assert sampled.stopped_by == "interval"
    assert sampled.half_width_pct <= 1.0
    assert len(sampled.blocks["fp32"]) == len(sampled.blocks["cell"]) > 6


def test_a_spent_budget_ends_sampling_after_the_blocks_that_were_asked_for() -> None:
    sampled, _ = sample(limits=Limits(timing_blocks=3, timing_budget_s=1e-9))
    assert (sampled.stopped_by, len(sampled.blocks["cell"])) == ("budget", 3)
    assert sampled.half_width_pct == float("inf")


def test_without_a_budget_sampling_ends_as_asked_and_not_for_want_of_time() -> None:
    sampled, _ = sample(limits=Limits(timing_blocks=3, timing_budget_s=0.0))
    assert (sampled.stopped_by, len(sampled.blocks["cell"])) == ("blocks", 3)


class MarkClock:
    """Every mark takes a millisecond, and nothing else takes any time."""

    def __init__(self) -> None:
        self.now = 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def settle(self, last: int) -> None:
        pass

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(end - start)

    def release(self, marks: list[int]) -> None:
        pass


def real_side(variant: str, timer: PhaseTimer) -> Side:
    (cell,) = plan_cells(parse_arguments([f"variant={variant}", "hypernet.hidden=2"])).cells
    data = build_data("digits", train_limit=32, test_limit=16)
    batch = TrainBatches(data, batch_size=4, seed=0, device=CPU).batch(0, 0)
    return Side(name="cell", parts=build_parts(cell, data, CPU), stream=itertools.repeat(batch), lr=0.01, timer=timer)


@pytest.mark.parametrize("variant", ["fp32", "metagrad_int4_tabulate"])
def test_the_cost_of_the_phase_marks_is_that_of_the_marks_alone(variant: str) -> None:
    side = real_side(variant, PhaseTimer(CPU, clock=MarkClock()))
    side.run(2)
    phases_marked = side.run(1).step_ms[0] - 1  # a step without phases has two marks, a millisecond apart
    marked, unmarked = time_phase_marks(side, budget_s=0.0)
    assert len(marked) == len(unmarked) == 4
    assert set(unmarked) == {1.0}
    assert set(marked) == {1 + MARK_REPEATS * phases_marked}


def test_energy_windows_are_full_of_their_own_work_and_training_goes_on() -> None:
    side = real_side("metagrad_int4_tabulate", PhaseTimer(CPU))
    side.run(2)
    windows = energy_windows(side, side, window_s=0.1)
    assert [window.name for window in windows] == ["forward", "forward_backward", "energy_cell", "energy_fp32"]
    for window, after in itertools.pairwise(windows):
        assert window.end_s <= after.start_s
    assert all(window.steps >= 1 and window.end_s - window.start_s >= 0.1 for window in windows)
    assert side.run(1).step_ms[0] > 0
