"""Timing samples that were taken while the device was throttled, set aside: they time the cooling, not the code."""

from __future__ import annotations

from dataclasses import dataclass

from bench.records.schema import StepWindow, TimingRepeat
from bench.units import Absent

SIDES = {"cell": "step_ms", "fp32": "fp32_step_ms"}  # a window's name -> the samples that it holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Unthrottled:
    """Samples of one process by metric (``step_ms``, ``fp32_step_ms``, ``forward_ms``, ...), in time order."""

    samples: dict[str, tuple[float, ...]]
    set_aside: int  # samples of steps, both sides
    kept: int  # throttled samples that stayed


def set_throttled_aside(repeat: TimingRepeat) -> Unthrottled:
    """Leave out the blocks in which, or right beside which, the device was seen throttled.

    Where that would take more than half of a side's samples, throttled is how the device runs, and all stay.
    """
    series = {"step_ms": repeat.step_ms, "fp32_step_ms": repeat.fp32_step_ms}
    series |= {f"{phase}_ms": values for phase, values in repeat.phases_ms.items()}
    flags = {metric: _flags(repeat, side, len(series[metric])) for side, metric in SIDES.items()}
    throttled = sum(sum(values) for values in flags.values())
    if any(2 * sum(values) > len(values) for values in flags.values()):
        return Unthrottled(samples=series, set_aside=0, kept=throttled)
    samples = {
        name: _without(values, flags["fp32_step_ms" if name == "fp32_step_ms" else "step_ms"])
        for name, values in series.items()
    }
    return Unthrottled(samples=samples, set_aside=throttled, kept=0)


def _flags(repeat: TimingRepeat, side: str, count: int) -> list[bool]:
    """For each sample of a side whether its block was throttled; all False where nothing tells."""
    blocks = [window for window in repeat.windows if window.name == side]
    if sum(max(block.steps, 0) for block in blocks) != count:  # of a damaged record: steps may be any number
        return [False] * count
    return [_is_throttled(repeat, block) for block in blocks for _ in range(block.steps)]


def _is_throttled(repeat: TimingRepeat, block: StepWindow) -> bool:
    """Whether a sample of the device within the block, or the one before or after it, was throttled."""
    device = repeat.device
    if device is None or isinstance(device.throttled, Absent):
        return False
    seen = list(zip(device.time_s, device.throttled, strict=False))  # a damaged record may hold fewer of one
    inside = [flag for time_s, flag in seen if block.start_s <= time_s <= block.end_s]
    before = [flag for time_s, flag in seen if time_s < block.start_s][-1:]
    after = [flag for time_s, flag in seen if time_s > block.end_s][:1]
    return any(flag is True for flag in (*before, *inside, *after))


def _without(values: tuple[float, ...], flags: list[bool]) -> tuple[float, ...]:
    if len(values) != len(flags):
        return values
    return tuple(value for value, flag in zip(values, flags, strict=True) if not flag)
