"""Step times of the cell and of FP32 beside it, and the device meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.records.schema.values import NOT_RECORDED, Interval, Summary
from bench.units import Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWindow:
    """A stretch of uninterrupted steps of one kind."""

    name: str  # cell, fp32: a block of samples; forward, forward_backward, energy_cell, energy_fp32: for energy alone
    start_s: float  # on the machine's monotonic clock; in a record, since the process was started
    end_s: float
    steps: int


Series = tuple[float | Absent, ...] | Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSeries:
    """The device while one process was timed, watched from another: one entry a sample in every series."""

    time_s: tuple[float, ...]  # since the process was started
    power_w: Series
    clock_mhz: Series
    memory_clock_mhz: Series
    temperature_c: Series
    utilisation_pct: Series
    process_bytes: Series  # of the timing process: GPU memory, on a CPU resident memory; not the memory pass's process
    throttled: tuple[bool | Absent, ...] | Absent
    throttle_reasons: tuple[str, ...]  # all that were seen
    num_throttled: int | Absent  # samples
    energy_j: float | Absent  # of the whole window, start-up included


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingRepeat:
    """Raw samples of one fresh process; blocks of the cell's steps alternate with blocks of FP32 steps."""

    step_ms: tuple[float, ...]
    fp32_step_ms: tuple[float, ...]
    phases_ms: dict[str, tuple[float, ...]]  # data, forward, backward, meta, optimizer, unattributed; one sample a step
    throttled: bool | Absent
    # interval: both medians were narrow enough; budget: time was up; blocks: no time beyond timing_blocks was asked for
    stopped_by: str | Absent = NOT_RECORDED
    half_width_pct: float | Absent = NOT_RECORDED  # of the wider median's 95 % interval when sampling stopped
    marked_step_ms: tuple[float, ...] = ()  # steps with each phase marked `mark_repeats` times, in turn with
    unmarked_step_ms: tuple[float, ...] = ()  # steps without marks
    mark_repeats: int | Absent = NOT_RECORDED
    windows: tuple[StepWindow, ...] = ()
    throttled_steps: int | Absent = NOT_RECORDED  # samples, of both sides, in whose block the device was throttled
    energy_j: dict[str, float | Absent] = field(default_factory=dict)  # of one step, fp32_step, ...
    device: DeviceSeries | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingResult:
    """Step time against the FP32 step of the same model and batch in the same processes."""

    batch_size: int
    warmup_steps: int
    repeats: tuple[TimingRepeat, ...]
    step_ms: Summary  # over all repeats' samples
    fp32_step_ms: Summary
    time_vs_fp32: Interval  # ratio of medians, hierarchical bootstrap over processes
    phases_ms: dict[str, Summary]
    phase_share_pct: dict[str, float]  # of the mean step; sums to 100
    phase_mark_cost_pct: Interval | None = None  # what marking the phases adds to a step; None: not recorded
    throttled_steps: int | Absent = NOT_RECORDED  # samples of all repeats, both sides
    energy_j: dict[str, float | Absent] = field(default_factory=dict)  # a step, median over processes
