"""From the raw samples of a cell's timing processes to its result: summaries, energy of a step, what to beware of."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import TypeVar

from bench.profilers.base import UNATTRIBUTED
from bench.profilers.nvml_sampler import DeviceState
from bench.records.schema import Interval, MemoryResult, Summary, TimingRepeat, TimingResult
from bench.stats import ratio_interval, summarize
from bench.units import Absent

Number = TypeVar("Number", int, float)
_BUSY_SPREAD, _BUSY_APART = 0.5, 1.25
_MARKS_COST_TOO_MUCH_PCT = 1.0
MAX_UNATTRIBUTED_PCT, MAX_OTHER_PCT = 3.0, 5.0  # of a step's time that no phase, of memory that no category claims


def with_device_state(repeat: TimingRepeat, state: DeviceState) -> TimingRepeat:
    """Lay what was seen of the device over the windows in which steps ran: throttled samples, energy of a step."""
    blocks = [window for window in repeat.windows if window.name in ("cell", "fp32")]
    flags = [state.throttled_between(window.start_s, window.end_s) for window in blocks]
    return dataclasses.replace(
        repeat,
        throttled=state.throttled,
        throttled_steps=_total(
            [
                flag if isinstance(flag, Absent) else flag * block.steps
                for flag, block in zip(flags, blocks, strict=True)
            ]
        ),
        energy_j=step_energy_j(repeat, state),
        device=state.series(),
        windows=tuple(
            dataclasses.replace(
                window, start_s=round(window.start_s - state.start_s, 6), end_s=round(window.end_s - state.start_s, 6)
            )
            for window in repeat.windows
        ),
    )


def step_energy_j(repeat: TimingRepeat, state: DeviceState) -> dict[str, float | Absent]:
    """Joules of one step and of its parts, from windows full of each; backward and rest are differences."""

    def of(name: str) -> float | Absent:
        window = next((window for window in repeat.windows if window.name == name), None)
        if window is None:
            return state.energy_j if isinstance(state.energy_j, Absent) else Absent("protocol.energy_window_s is 0")
        energy_j = state.energy_between_j(window.start_s, window.end_s)
        return energy_j if isinstance(energy_j, Absent) else energy_j / window.steps

    step, forward, both = of("energy_cell"), of("forward"), of("forward_backward")
    return {
        "step": step,
        "fp32_step": of("energy_fp32"),
        "forward": forward,
        "backward": difference(both, forward),
        "rest": difference(step, both),
    }


def timing_result(repeats: list[TimingRepeat], *, batch_size: int, warmup_steps: int) -> TimingResult:
    """Summaries of the raw samples of all processes."""
    cell_ms = [list(repeat.step_ms) for repeat in repeats]
    fp32_ms = [list(repeat.fp32_step_ms) for repeat in repeats]
    names = list(repeats[0].phases_ms)
    phases = {name: [value for repeat in repeats for value in repeat.phases_ms[name]] for name in names}
    total = sum(sum(values) for values in phases.values())
    return TimingResult(
        batch_size=batch_size,
        warmup_steps=warmup_steps,
        repeats=tuple(repeats),
        step_ms=summarize([value for values in cell_ms for value in values]),
        fp32_step_ms=summarize([value for values in fp32_ms for value in values]),
        time_vs_fp32=ratio_interval(cell_ms, fp32_ms, seed=0),
        phases_ms={name: summarize(values) for name, values in phases.items()},
        phase_share_pct={name: 100 * sum(values) / total for name, values in phases.items()},
        phase_mark_cost_pct=_mark_cost_pct(repeats),
        throttled_steps=_total([repeat.throttled_steps for repeat in repeats]),
        energy_j={
            name: _median_or_reason([repeat.energy_j[name] for repeat in repeats]) for name in repeats[0].energy_j
        },
    )


def _mark_cost_pct(repeats: list[TimingRepeat]) -> Interval | None:
    """What one mark of each phase adds to a step: the marks were repeated, the difference is divided."""
    repeats = [repeat for repeat in repeats if repeat.marked_step_ms]  # a process that was ended may have none
    times = repeats[0].mark_repeats if repeats else None
    if times is None or isinstance(times, Absent):
        return None
    ratio = ratio_interval(
        [repeat.marked_step_ms for repeat in repeats], [repeat.unmarked_step_ms for repeat in repeats], seed=0
    )
    value, low, high = (100 * (bound - 1) / times for bound in (ratio.value, ratio.low, ratio.high))
    return Interval(value=value, low=low, high=high)


def _total(counts: list[int | Absent]) -> int | Absent:
    absent = next((count for count in counts if isinstance(count, Absent)), None)
    return absent if absent is not None else sum(count for count in counts if not isinstance(count, Absent))


def _median_or_reason(values: list[float | Absent]) -> float | Absent:
    known = [value for value in values if not isinstance(value, Absent)]
    return statistics.median(known) if known else next(value for value in values if isinstance(value, Absent))


def busy_notices(timing: TimingResult | None) -> tuple[str, ...]:
    """Whether other work ran beside the timing: the FP32 steps, which are the same in every cell, show it."""
    if timing is None:
        return ()
    return busy_sentences(timing.fp32_step_ms, [summarize(repeat.fp32_step_ms).median for repeat in timing.repeats])


def busy_sentences(reference: Summary, process_medians: Sequence[float]) -> tuple[str, ...]:
    """A sentence if FP32 steps vary more than they do on an idle machine.

    Args:
        reference: FP32 steps of all processes, in ms.
        process_medians: their median in each process.
    """
    spread = (reference.q3 - reference.q1) / reference.median
    apart = max(process_medians) / min(process_medians)
    if spread <= _BUSY_SPREAD and apart <= _BUSY_APART:
        return ()
    between = f" and by {apart:.2f}× between processes" if len(process_medians) > 1 else ""
    return (
        "The machine was busy while this was timed: the FP32 steps beside it vary by "
        f"{100 * spread:.0f} % between quartiles{between}; time it again on an idle one.",
    )


def timing_notices(timing: TimingResult | None) -> tuple[str, ...]:
    """What a reader of the times must know: throttled samples, and marks or an unclaimed rest above their bounds."""
    notices: list[str] = []
    if timing is None:
        return ()
    count, marks = timing.throttled_steps, timing.phase_mark_cost_pct
    total = sum(len(repeat.step_ms) + len(repeat.fp32_step_ms) for repeat in timing.repeats)
    if not isinstance(count, Absent) and count:
        seen = sorted({name for repeat in timing.repeats if repeat.device for name in repeat.device.throttle_reasons})
        notices.append(f"{count} of {total} timed steps ran while the device was throttled ({', '.join(seen)}).")
    if marks is not None and marks.low > _MARKS_COST_TOO_MUCH_PCT:
        notices.append(f"Marking the phases added {marks.value:.1f} % to the step; the times hold it.")
    unclaimed = timing.phase_share_pct.get(UNATTRIBUTED, 0.0)
    if unclaimed > MAX_UNATTRIBUTED_PCT:
        notices.append(f"{unclaimed:.1f} % of the step's time lies in no phase.")
    return tuple(notices)


def memory_notices(memory: MemoryResult | None) -> tuple[str, ...]:
    """A sentence if more of a phase's peak than may is in no category."""
    if memory is None or isinstance(memory.phases, Absent):
        return ()
    shares = {entry.phase: 100 * entry.categories.get("other", 0) / max(1, entry.peak_bytes) for entry in memory.phases}
    phase, share = max(shares.items(), key=lambda item: item[1], default=("", 0.0))
    if share <= MAX_OTHER_PCT:
        return ()
    return (f"{share:.0f} % of the memory at the peak of the phase {phase} is in no category.",)


def difference(more: Number | Absent, less: Number | Absent) -> Number | Absent:
    """One number less another; where either is not known, its reason."""
    if isinstance(more, Absent):
        return more
    return less if isinstance(less, Absent) else more - less
