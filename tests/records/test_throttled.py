from __future__ import annotations

import dataclasses

from bench.records.schema import DeviceSeries, StepWindow, TimingRepeat
from bench.records.throttled import set_throttled_aside
from bench.units import Absent

UNKNOWN = Absent("not read")


def repeat(throttled: tuple[bool | Absent, ...] | Absent) -> TimingRepeat:
    """Four blocks of two steps, cell and FP32 in turn, a second each; the device is looked at in each middle."""
    windows = tuple(
        StepWindow(name="cell" if number % 2 == 0 else "fp32", start_s=float(number), end_s=number + 0.9, steps=2)
        for number in range(8)
    )
    device = DeviceSeries(
        time_s=tuple(number + 0.45 for number in range(8)), power_w=UNKNOWN, clock_mhz=UNKNOWN,
        memory_clock_mhz=UNKNOWN, temperature_c=UNKNOWN, utilisation_pct=UNKNOWN, process_bytes=UNKNOWN,
        throttled=throttled, throttle_reasons=(), num_throttled=UNKNOWN, energy_j=UNKNOWN,
    )  # fmt: skip
    return TimingRepeat(
        step_ms=(1, 2, 3, 4, 5, 6, 7, 8), fp32_step_ms=(11, 12, 13, 14, 15, 16, 17, 18),
        phases_ms={"forward": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)}, throttled=UNKNOWN, windows=windows,
        device=device,
    )  # fmt: skip


def flags(*throttled: int) -> tuple[bool, ...]:
    return tuple(number in throttled for number in range(8))


def test_blocks_beside_a_throttled_moment_are_left_out_in_every_metric() -> None:
    left = set_throttled_aside(repeat(flags(2)))
    # Seen in the second block of the cell; the blocks of FP32 around it have it as a neighbour.
    assert left.samples["step_ms"] == (1, 2, 5, 6, 7, 8)
    assert left.samples["forward_ms"] == (0.1, 0.2, 0.5, 0.6, 0.7, 0.8)
    assert left.samples["fp32_step_ms"] == (15, 16, 17, 18)
    assert (left.set_aside, left.kept) == (6, 0)


def test_where_throttled_is_the_rule_all_samples_stay() -> None:
    left = set_throttled_aside(repeat(flags(0, 1, 2, 3, 4, 5, 6, 7)))
    assert left.samples["step_ms"] == (1, 2, 3, 4, 5, 6, 7, 8)
    assert (left.set_aside, left.kept) == (0, 16)


def test_what_was_not_seen_throttled_stays_as_it_is() -> None:
    for throttled in (flags(), UNKNOWN, (UNKNOWN,) * 8):
        left = set_throttled_aside(repeat(throttled))
        assert left.samples["fp32_step_ms"] == (11, 12, 13, 14, 15, 16, 17, 18)
        assert (left.set_aside, left.kept) == (0, 0)


def test_samples_that_do_not_fit_their_blocks_stay() -> None:
    odd = dataclasses.replace(repeat(flags(2)), step_ms=(1.0, 2.0, 3.0), fp32_step_ms=(4.0,))
    assert set_throttled_aside(odd).samples["step_ms"] == (1.0, 2.0, 3.0)


def test_blocks_and_flags_of_a_damaged_record_throttle_nothing_beyond_themselves() -> None:
    good = repeat(flags(2))
    endless = dataclasses.replace(good.windows[0], steps=10**15)
    assert set_throttled_aside(dataclasses.replace(good, windows=(endless, *good.windows[1:]))).set_aside == 4
    assert set_throttled_aside(repeat(flags(2)[:4])).set_aside == 6
