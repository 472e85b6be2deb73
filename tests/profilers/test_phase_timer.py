from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.profilers.base import UNATTRIBUTED
from bench.profilers.phase_timer import HostClock, PhaseTimer


class PlantedClock:
    """Time that passes only where a test plants it; counts who waits for it."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.num_settled = 0
        self.in_use: set[int] = set()
        self._next = 0
        self._times: dict[int, int] = {}

    def spend(self, ms: int) -> None:
        self.now_ms += ms

    def mark(self) -> int:
        self._next += 1
        self._times[self._next] = self.now_ms
        self.in_use.add(self._next)
        return self._next

    def settle(self, last: int) -> None:
        self.num_settled += 1

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(self._times[end] - self._times[start])

    def release(self, marks: list[int]) -> None:
        self.in_use.difference_update(marks)


@pytest.fixture
def clock() -> PlantedClock:
    return PlantedClock()


@pytest.fixture
def timer(clock: PlantedClock) -> PhaseTimer:
    return PhaseTimer(torch.device("cpu"), clock=clock)


def test_planted_costs_show_in_their_phases_and_the_rest_is_unattributed(
    timer: PhaseTimer, clock: PlantedClock
) -> None:
    with timer.step():
        clock.spend(1)
        with timer("forward"):
            clock.spend(10)
        clock.spend(2)
        with timer("backward"):
            clock.spend(20)
        clock.spend(4)
    samples = timer.read()
    assert samples.step_ms == (37.0,)
    assert samples.phases_ms == {"forward": (10.0,), "backward": (20.0,), UNATTRIBUTED: (7.0,)}
    assert samples.unattributed_pct == pytest.approx(100 * 7 / 37)


def test_a_nested_phase_is_taken_off_the_outer_one(timer: PhaseTimer, clock: PlantedClock) -> None:
    with timer.step(), timer("backward"):
        clock.spend(5)
        with timer("quantize"):
            clock.spend(3)
            with timer("meta"):
                clock.spend(2)
            clock.spend(1)
        clock.spend(7)
    assert timer.read().phases_ms == {"backward": (12.0,), "quantize": (4.0,), "meta": (2.0,), UNATTRIBUTED: (0.0,)}


def test_a_phase_inside_itself_is_counted_once(timer: PhaseTimer, clock: PlantedClock) -> None:
    with timer.step(), timer("forward"):
        clock.spend(1)
        with timer("forward"):
            clock.spend(2)
    assert timer.read().phases_ms["forward"] == (3.0,)


def test_repeated_phases_add_up_within_a_step_and_not_across_steps(timer: PhaseTimer, clock: PlantedClock) -> None:
    for cost in (1, 10):
        with timer.step():
            for _ in range(3):
                with timer("quantize"):
                    clock.spend(cost)
    assert timer.read().phases_ms["quantize"] == (3.0, 30.0)


def test_a_phase_that_a_step_lacks_took_no_time_there(timer: PhaseTimer, clock: PlantedClock) -> None:
    with timer.step(), timer("forward"):
        clock.spend(1)
    with timer.step(), timer("meta"):
        clock.spend(2)
    assert timer.read().phases_ms == {"forward": (1.0, 0.0), "meta": (0.0, 2.0), UNATTRIBUTED: (0.0, 0.0)}


def test_time_between_steps_belongs_to_none(timer: PhaseTimer, clock: PlantedClock) -> None:
    for _ in range(2):
        with timer.step(), timer("forward"):
            clock.spend(1)
        clock.spend(100)
    assert timer.read().step_ms == (1.0, 1.0)


def test_nothing_waits_for_the_device_before_the_window_ends(timer: PhaseTimer, clock: PlantedClock) -> None:
    for _ in range(5):
        with timer.step(), timer("forward"):
            clock.spend(1)
    assert clock.num_settled == 0
    timer.read()
    assert clock.num_settled == 1
    assert clock.in_use == set()


def test_windows_are_apart(timer: PhaseTimer, clock: PlantedClock) -> None:
    with timer.step(), timer("forward"):
        clock.spend(1)
    timer.read()
    with timer.step(), timer("meta"):
        clock.spend(2)
    assert timer.read().phases_ms == {"meta": (2.0,), UNATTRIBUTED: (0.0,)}
    empty = timer.read()
    assert (empty.step_ms, empty.phases_ms, empty.unattributed_pct) == ((), {UNATTRIBUTED: ()}, 0.0)


def test_a_step_that_fails_leaves_no_sample_and_the_next_one_is_clean(timer: PhaseTimer, clock: PlantedClock) -> None:
    def fail() -> None:
        with timer.step(), timer("forward"):
            clock.spend(9)
            raise KeyError("out of the step")

    with pytest.raises(KeyError):
        fail()
    with timer.step(), timer("forward"):
        clock.spend(1)
    assert timer.read().step_ms == (1.0,)


@pytest.mark.parametrize("misuse", ["phase outside", "nested step", "read inside"])
def test_misuse_is_an_error_of_the_program(timer: PhaseTimer, misuse: str) -> None:
    def phase_outside() -> None:
        with timer("forward"):
            pass

    def nested_step() -> None:
        with timer.step(), timer.step():
            pass

    def read_inside() -> None:
        with timer.step():
            timer.read()

    with pytest.raises(AssertionError):
        {"phase outside": phase_outside, "nested step": nested_step, "read inside": read_inside}[misuse]()


PROGRAM = st.recursive(
    st.integers(0, 50),
    lambda inner: st.tuples(st.sampled_from(["forward", "backward", "meta"]), st.lists(inner, max_size=4)),
    max_leaves=12,
)


@given(st.lists(st.lists(PROGRAM, max_size=5), min_size=1, max_size=4))
def test_phases_and_the_rest_always_add_up_to_the_step(steps: list[list[object]]) -> None:
    clock = PlantedClock()
    timer = PhaseTimer(torch.device("cpu"), clock=clock)

    def run(part: object) -> None:
        if isinstance(part, int):
            clock.spend(part)
            return
        name, inner = part  # type: ignore[misc]
        with timer(name):
            for piece in inner:
                run(piece)

    for parts in steps:
        with timer.step():
            for part in parts:
                run(part)
    samples = timer.read()
    for index, step_ms in enumerate(samples.step_ms):
        assert sum(values[index] for values in samples.phases_ms.values()) == step_ms


def test_the_host_clock_counts_milliseconds() -> None:
    assert HostClock().elapsed_ms(1_000_000, 3_500_000) == 2.5


def test_a_real_step_on_the_cpu_adds_up() -> None:
    timer = PhaseTimer(torch.device("cpu"))
    x = torch.randn(64, 64)
    for _ in range(3):
        with timer.step():
            with timer("forward"):
                y = x @ x
            with timer("backward"):
                y = y @ x
    samples = timer.read()
    assert len(samples.step_ms) == 3
    for index, step_ms in enumerate(samples.step_ms):
        assert step_ms > 0
        assert sum(values[index] for values in samples.phases_ms.values()) == pytest.approx(step_ms)
