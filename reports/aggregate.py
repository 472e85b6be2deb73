"""Seeds of one configuration made one row: means, medians, peaks and ratios, each with what it is unsure of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.records.schema import Interval, RunRecord, Summary
from bench.stats import mean_interval, ratio_interval, summarize
from bench.units import Absent
from reports.rows import PHASES, AgainstRetain, Estimate, Ratio, Row, missing_reason
from reports.values import ONE_PROCESS, is_synthetic

POOLED_RESAMPLES = (
    400  # over several seeds; against 1000 an end moves by 4 % of the width on average (20 simulated rows)
)


def build_row(records: tuple[RunRecord, ...], label: str) -> Row:
    """Aggregate the records of one configuration; what needs another row beside it is filled in later.

    Args:
        records: one a seed, by seed.
        label: the row's name.
    """
    phases = _phase_samples(records)
    return Row(
        label=label,
        records=records,
        accuracy=_accuracy(records),
        accuracy_vs_fp32=Absent(reason="not compared yet"),
        step_ms=_summary(records, lambda repeat: repeat.step_ms, lambda t: t.step_ms),
        fp32_step_ms=_summary(records, lambda repeat: repeat.fp32_step_ms, lambda t: t.fp32_step_ms),
        time_vs_fp32=_time_vs_fp32(records),
        phases_ms=_phase_medians(records, phases),
        phase_share_pct=_phase_shares(records, phases),
        peak_allocated_bytes=_largest(records, "peak_allocated_bytes"),
        peak_process_bytes=_largest(records, "peak_process_bytes"),
        peak_reserved_bytes=_largest(records, "peak_reserved_bytes"),
        peak_device_bytes=_largest(records, "peak_device_bytes"),
        fp32_peak_allocated_bytes=_largest(records, "fp32_peak_allocated_bytes"),
        hypernet_extra_allocated_bytes=_largest(records, "hypernet_extra_allocated_bytes"),
        hypernet_extra_process_bytes=_largest(records, "hypernet_extra_process_bytes"),
        hypernet_bound_bytes=_largest(records, "hypernet_bound_bytes"),
        hypernet_code_bytes=_largest(records, "hypernet_code_bytes"),
        against_retain=None,
    )


def _accuracy(records: Sequence[RunRecord]) -> Estimate | Absent:
    if any(is_synthetic(record) for record in records):
        return Absent(reason="synthetic data")
    present = [record.accuracy.test_accuracy_pct for record in records if record.accuracy is not None]
    if not present:
        return Absent(reason=_why_none(records, "accuracy"))
    known = [value for value in present if not isinstance(value, Absent)]
    absent = [value for value in present if isinstance(value, Absent)]
    return _estimate(known) if known else absent[0]


def _estimate(values: Sequence[float]) -> Estimate:
    if len(values) < 2:
        return Estimate(value=values[0], interval=Absent(reason="one seed"), n=1)
    interval = mean_interval(values)
    if isinstance(interval, Absent):
        return Estimate(value=math.fsum(values) / len(values), interval=interval, n=len(values))
    return Estimate(value=interval.value, interval=interval, n=len(values))


def accuracy_difference(row: Row, other: Row | None, name: str) -> Estimate | Absent:
    """Mean difference over the seeds that both rows have, trained for as many epochs."""
    if isinstance(row.accuracy, Absent):
        return row.accuracy
    if other is None:
        return Absent(reason=f"no {name} row beside it")
    if isinstance(other.accuracy, Absent):
        return Absent(reason=f"{name} has no accuracy: {other.accuracy.reason}")
    mine, theirs = _accuracy_by_seed(row), _accuracy_by_seed(other)
    shared = sorted(set(mine) & set(theirs))
    if not shared:
        return Absent(reason=f"no seed in common with {name}")
    if any(mine[seed][1] != theirs[seed][1] for seed in shared):
        return Absent(reason=f"{name} trained for {theirs[shared[0]][1]} epochs, this row for {mine[shared[0]][1]}")
    return _estimate([mine[seed][0] - theirs[seed][0] for seed in shared])


def _accuracy_by_seed(row: Row) -> dict[int, tuple[float, int]]:
    pairs: dict[int, tuple[float, int]] = {}
    for record in row.records:
        if record.accuracy is not None and not isinstance(record.accuracy.test_accuracy_pct, Absent):
            pairs[record.seed] = (record.accuracy.test_accuracy_pct, record.accuracy.epochs)
    return pairs


def _timed(records: Sequence[RunRecord]) -> list[Any]:
    return [record.timing for record in records if record.timing is not None]


def _why_none(records: Sequence[RunRecord], part: str) -> str:
    """The most frequent reason for a part that no record has."""
    reasons = Counter(missing_reason(record, part) for record in records)
    return reasons.most_common(1)[0][0]


def _summary(
    records: Sequence[RunRecord], samples: Callable[[Any], Sequence[float]], ready: Callable[[Any], Summary]
) -> Summary | Absent:
    timings = _timed(records)
    if not timings:
        return Absent(reason=_why_none(records, "timing"))
    if len(timings) == 1:
        return ready(timings[0])
    return summarize([value for timing in timings for repeat in timing.repeats for value in samples(repeat)])


def _time_vs_fp32(records: Sequence[RunRecord]) -> Ratio | Absent:
    timings = _timed(records)
    if not timings:
        return Absent(reason=_why_none(records, "timing"))
    repeats = [repeat for timing in timings for repeat in timing.repeats]
    if len(repeats) < 2:
        return Ratio(value=timings[0].time_vs_fp32.value, interval=Absent(reason=ONE_PROCESS))
    interval: Interval = timings[0].time_vs_fp32
    if len(timings) > 1:
        interval = ratio_interval(
            [r.step_ms for r in repeats], [r.fp32_step_ms for r in repeats], seed=0, resamples=POOLED_RESAMPLES
        )
    return Ratio(value=interval.value, interval=interval)


def _phase_samples(records: Sequence[RunRecord]) -> dict[str, list[float]]:
    """The samples of each phase over all seeds and processes, as the step's are; in the phases' order."""
    repeats = [repeat for timing in _timed(records) for repeat in timing.repeats]
    names = _in_order({name for repeat in repeats for name in repeat.phases_ms})
    return {name: [value for repeat in repeats for value in repeat.phases_ms.get(name, ())] for name in names}


def _phase_medians(records: Sequence[RunRecord], phases: Mapping[str, Sequence[float]]) -> Mapping[str, float] | Absent:
    timings = _timed(records)
    if not timings:
        return Absent(reason=_why_none(records, "timing"))
    if len(timings) == 1:
        return {name: timings[0].phases_ms[name].median for name in _in_order(timings[0].phases_ms)}
    return {name: summarize(values).median for name, values in phases.items() if values}


def _phase_shares(records: Sequence[RunRecord], phases: Mapping[str, Sequence[float]]) -> Mapping[str, float] | Absent:
    """Shares of the mean step over all samples, percent."""
    timings = _timed(records)
    if not timings:
        return Absent(reason=_why_none(records, "timing"))
    if len(timings) == 1:
        return {name: timings[0].phase_share_pct[name] for name in _in_order(timings[0].phase_share_pct)}
    total = math.fsum(value for values in phases.values() for value in values)
    return {name: 100 * math.fsum(values) / total for name, values in phases.items() if values}


def _in_order(names: Iterable[str]) -> list[str]:
    present = set(names)
    return [*(name for name in PHASES if name in present), *sorted(present - set(PHASES))]


def _largest(records: Sequence[RunRecord], name: str) -> float | Absent:
    """The largest of the seeds' peaks."""
    present = [getattr(record.memory, name) for record in records if record.memory is not None]
    if not present:
        return Absent(reason=_why_none(records, "memory"))
    known = [value for value in present if not isinstance(value, Absent)]
    absent = [value for value in present if isinstance(value, Absent)]
    return max(known) if known else absent[0]


def compare_with_retain(row: Row, twin: Row | None) -> AgainstRetain | Absent | None:
    """Compare a row with the one that keeps the whole graph; None for a row without a hypernetwork.

    Args:
        row: any.
        twin: the ``retain`` row of the same setting, if there is one.
    """
    if not row.has_hypernet:
        return None
    if twin is None:
        return Absent(reason="no retain row of the same setting")
    return AgainstRetain(
        time=ratio_of_ratios(row.time_vs_fp32, twin.time_vs_fp32),
        peak_allocated=_ratio(row.peak_allocated_bytes, twin.peak_allocated_bytes),
        hypernet_extra_allocated=_ratio(row.hypernet_extra_allocated_bytes, twin.hypernet_extra_allocated_bytes),
        hypernet_extra_process=_ratio(row.hypernet_extra_process_bytes, twin.hypernet_extra_process_bytes),
        accuracy_points=accuracy_difference(row, twin, "retain"),
    )


def ratio_of_ratios(one: Ratio | Absent, other: Ratio | Absent) -> Ratio | Absent:
    """Divide two independent ratios; their intervals add in quadrature on the log scale."""
    if isinstance(one, Absent):
        return one
    if isinstance(other, Absent):
        return other
    value = one.value / other.value
    mine, theirs = one.interval, other.interval
    if isinstance(mine, Absent):
        return Ratio(value=value, interval=mine)
    if isinstance(theirs, Absent):
        return Ratio(value=value, interval=theirs)
    if one is other:
        return Ratio(value=1.0, interval=Interval(value=1.0, low=1.0, high=1.0))
    below = math.hypot(math.log(mine.value / mine.low), math.log(theirs.high / theirs.value))
    above = math.hypot(math.log(mine.high / mine.value), math.log(theirs.value / theirs.low))
    return Ratio(
        value=value, interval=Interval(value=value, low=value * math.exp(-below), high=value * math.exp(above))
    )


def _ratio(one: float | Absent, other: float | Absent) -> float | Absent:
    if isinstance(one, Absent):
        return one
    if isinstance(other, Absent):
        return other
    if other <= 0:
        return Absent(reason="the retained graph added no measurable memory")
    if one < 0:
        return Absent(reason="no measurable memory added")
    return one / other
