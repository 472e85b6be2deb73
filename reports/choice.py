"""What to take on this machine for speed, for memory and for accuracy, as far as the rows show it."""

from __future__ import annotations

from collections.abc import Sequence

from bench.records.schema import Interval
from bench.units import Absent
from reports.aggregate import accuracy_difference
from reports.rows import Estimate, Ratio, Row, Section, machine_name
from reports.text import plural, ratio_text
from reports.wording import listed, points_text, with_interval


def choice_sentence(section: Section) -> str:
    """Which row to take on the section's machine and why, one clause a question; "" where no question has an answer."""
    low_bit = [row for row in section.rows if row.is_low_bit]
    clauses = [_speed(low_bit), _memory(low_bit), "" if section.synthetic else _accuracy(section, low_bit)]
    told = "; ".join(filter(None, clauses))
    return f"On {machine_name(section.rows[0].first)}, {told}." if told else ""


def _speed(low_bit: Sequence[Row]) -> str:
    ranked = [row for row in low_bit if _interval(row) is not None]
    faster = [row for row in ranked if (found := _interval(row)) is not None and found.high < 1]
    if not faster:
        return "for speed FP32: no low-bit row is shown to be faster" if ranked else ""
    best = min(faster, key=_ratio_value)
    assert isinstance(best.time_vs_fp32, Ratio), "only rows with a ratio are ranked"
    return f"for speed {best.named}, {with_interval(best.time_vs_fp32, 'the FP32 step’s time')}"


def _memory(low_bit: Sequence[Row]) -> str:
    shares = [
        (row, row.peak_allocated_bytes / row.fp32_peak_allocated_bytes)
        for row in low_bit
        if not isinstance(row.peak_allocated_bytes, Absent)
        and not isinstance(row.fp32_peak_allocated_bytes, Absent)
        and row.fp32_peak_allocated_bytes > 0
    ]
    if not shares:
        return ""
    share = min(of for _, of in shares)
    leanest = [row.named for row, of in shares if ratio_text(of) == ratio_text(share)]
    if share < 1:
        return f"for memory {listed(leanest)}, {ratio_text(share)} FP32’s peak allocated"
    if len(leanest) > 1:
        return (
            f"for memory FP32: the leanest low-bit rows, {listed(leanest)}, have {ratio_text(share)} its peak allocated"
        )
    return f"for memory FP32: the leanest low-bit row, {leanest[0]}, has {ratio_text(share)} its peak allocated"


def _accuracy(section: Section, low_bit: Sequence[Row]) -> str:
    """The low-bit row with the highest mean, against FP32 and against the others, as far as seeds tell."""
    ranked = [row for row in low_bit if isinstance(row.accuracy, Estimate)]
    if not ranked or section.fp32 is None:
        return ""
    best = max(ranked, key=_accuracy_value)
    assert isinstance(best.accuracy, Estimate), "only rows with an accuracy are ranked"
    delta, mean = best.accuracy_vs_fp32, f"{best.accuracy.value:.2f} %"
    if isinstance(delta, Absent):
        return f"for accuracy nothing is settled ({delta.reason}): of the low-bit rows {best.named} has most, {mean}"
    if isinstance(delta.interval, Absent):
        highest = listed([row.named for row in ranked if _accuracy_value(row) == _accuracy_value(best)])
        return (
            f"for accuracy nothing is settled, since one seed shows no order: the highest of the low-bit rows is "
            f"{highest} with {mean}, {points_text(delta)} points against FP32"
        )
    over = f"{points_text(delta)} points against FP32’s over {plural(delta.n, 'seed')}"
    if delta.interval.high < 0:
        return f"for accuracy FP32: the low-bit row with the highest mean, {best.named}, has {over}"
    told = f"{mean}, {over}{'' if delta.interval.low > 0 else ', no difference that they show'}"
    return f"for accuracy {best.named} ({told}){_rivals(best, [row for row in ranked if row is not best])}"


def _rivals(best: Row, others: Sequence[Row]) -> str:
    """Rows that the seeds do not tell from the one with the highest mean, and which of them all is the fastest."""
    alike = [row for row in others if not _is_shown_better(best, row)]
    if not alike:
        return ""
    names = listed([row.named for row in alike])
    fastest = min((row for row in (best, *alike) if _interval(row) is not None), key=_ratio_value, default=None)
    of_these = f", and of all of these {fastest.named} takes the least time" if fastest is not None else ""
    return f", from which {names} cannot be told by these seeds{of_these}"


def _is_shown_better(best: Row, other: Row) -> bool:
    delta = accuracy_difference(best, other, other.label)
    return isinstance(delta, Estimate) and isinstance(delta.interval, Interval) and delta.interval.low > 0


def _interval(row: Row) -> Interval | None:
    ratio = row.time_vs_fp32
    return ratio.interval if isinstance(ratio, Ratio) and isinstance(ratio.interval, Interval) else None


def _ratio_value(row: Row) -> float:
    interval = _interval(row)
    assert interval is not None, "only rows with an interval are ranked"
    return interval.value


def _accuracy_value(row: Row) -> float:
    assert isinstance(row.accuracy, Estimate), "only rows with an accuracy are ranked"
    return row.accuracy.value
