from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from bench.profilers.device_sensors import StateSample
from bench.profilers.nvml_sampler import DeviceState, summarise
from bench.records.schema import MemoryPhase, MemoryResult, RunRecord, StepWindow, TimingRepeat
from bench.timing_summary import memory_notices, timing_notices, timing_result, with_device_state
from bench.units import Absent

WINDOWS = (
    StepWindow(name="cell", start_s=100.5, end_s=100.9, steps=4),
    StepWindow(name="fp32", start_s=102.2, end_s=102.6, steps=3),
    StepWindow(name="forward", start_s=104.0, end_s=106.0, steps=100),
    StepWindow(name="forward_backward", start_s=106.0, end_s=108.0, steps=50),
    StepWindow(name="energy_cell", start_s=108.0, end_s=110.0, steps=40),
    StepWindow(name="energy_fp32", start_s=110.0, end_s=112.0, steps=80),
)


@pytest.fixture
def repeat(make_record: Callable[..., RunRecord]) -> TimingRepeat:
    timing = make_record().timing
    assert timing is not None
    return dataclasses.replace(timing.repeats[0], windows=WINDOWS)


def state(*, watts: float = 100.0, hot_at: float = -1.0, energy: Absent | None = None) -> DeviceState:
    """Thirteen seconds at constant power, throttled in one of the samples a second."""
    samples = tuple(
        StateSample(
            time_s=float(second), power_w=watts, clock_mhz=1000.0, temperature_c=50.0,
            clock_reasons=("sw_power_cap",) if second == hot_at else (), memory_clock_mhz=1.0, utilisation_pct=90.0,
            process_bytes=1.0, energy_j=watts * second if energy is None else energy,
        )
        for second in range(14)
    )  # fmt: skip
    return summarise(samples, watts * 13 if energy is None else energy, start_s=100.0)


def test_energy_of_a_step_and_its_phases_follows_from_windows_full_of_each(repeat: TimingRepeat) -> None:
    watched = with_device_state(repeat, state())
    assert watched.energy_j == pytest.approx(
        {"forward": 2.0, "backward": 2.0, "rest": 1.0, "step": 5.0, "fp32_step": 2.5}
    )
    assert watched.windows[0] == StepWindow(name="cell", start_s=0.5, end_s=0.9, steps=4)
    assert watched.device is not None
    assert watched.device.energy_j == 1300.0


def test_a_counter_that_is_not_there_gives_its_reason_for_every_phase(repeat: TimingRepeat) -> None:
    gone = Absent("this GPU does not report it")
    assert set(with_device_state(repeat, state(energy=gone)).energy_j.values()) == {gone}
    unasked = dataclasses.replace(repeat, windows=WINDOWS[:2])
    assert set(with_device_state(unasked, state()).energy_j.values()) == {Absent("protocol.energy_window_s is 0")}


@pytest.mark.parametrize(("second", "steps"), [(-1, 0), (1, 4), (2, 3), (5, 0)])
def test_steps_beside_a_throttled_sample_are_counted(repeat: TimingRepeat, second: int, steps: int) -> None:
    assert with_device_state(repeat, state(hot_at=second)).throttled_steps == steps


def test_a_result_sums_throttled_steps_and_says_so(repeat: TimingRepeat) -> None:
    repeats = [with_device_state(repeat, state(hot_at=second)) for second in (1, 2, -1)]
    result = timing_result(repeats, batch_size=8, warmup_steps=2)
    assert result.throttled_steps == 7
    assert result.energy_j["step"] == pytest.approx(5.0)
    (notice,) = timing_notices(result)
    assert notice == "7 of 24 timed steps ran while the device was throttled (sw_power_cap)."
    assert timing_notices(timing_result([repeats[2]], batch_size=8, warmup_steps=2)) == ()
    assert timing_notices(None) == ()


def test_what_marking_costs_is_the_difference_over_the_number_of_repeated_marks(repeat: TimingRepeat) -> None:
    def marked(step_ms: float) -> TimingRepeat:
        return dataclasses.replace(
            repeat, marked_step_ms=(step_ms,) * 6, unmarked_step_ms=(100.0,) * 6, mark_repeats=32
        )

    result = timing_result([marked(116.0)], batch_size=8, warmup_steps=2)
    assert result.phase_mark_cost_pct is not None
    assert result.phase_mark_cost_pct.value == pytest.approx(0.5)
    assert timing_notices(result) == ()
    (notice,) = timing_notices(timing_result([marked(164.0)], batch_size=8, warmup_steps=2))
    assert notice == "Marking the phases added 2.0 % to the step; the times hold it."


def test_time_in_no_phase_and_memory_in_no_category_are_told_above_their_bounds(
    make_record: Callable[..., RunRecord],
) -> None:
    record = make_record()
    assert record.timing is not None
    assert record.memory is not None
    assert timing_notices(record.timing) == ()
    shares = record.timing.phase_share_pct | {"unattributed": 3.4}
    (notice,) = timing_notices(dataclasses.replace(record.timing, phase_share_pct=shares))
    assert notice == "3.4 % of the step's time lies in no phase."

    def memory(other_bytes: int) -> MemoryResult:
        phases = tuple(
            MemoryPhase(
                phase=name, peak_bytes=100, categories={"weights": 100 - held, "other": held}, layer="",
                allocator_bytes=Absent("a CPU"),
            )
            for name, held in (("forward", 1), ("backward", other_bytes))
        )  # fmt: skip
        assert record.memory is not None
        return dataclasses.replace(record.memory, phases=phases)

    assert memory_notices(memory(5)) == ()
    assert memory_notices(memory(6)) == ("6 % of the memory at the peak of the phase backward is in no category.",)
    assert memory_notices(record.memory) == memory_notices(None) == ()
