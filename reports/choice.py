"""What to take on this machine for speed, for memory and for accuracy, as far as the rows show it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.records.schema import Interval
from bench.units import Absent
from reports.aggregate import accuracy_difference
from reports.rows import Estimate, Ratio, Row, Section, machine_name
from reports.text import plural, ratio_text
from reports.wording import listed, points_text, with_interval


def choice_sentence(section: Section) -> str:
    """Which row to take on the section's machine and why, one clause a question; "" where no question has an answer.

    All rows but FP32 are candidates, bf16 among them; one with seeds that did not finish is named and not ranked.
    """
    others = [row for row in section.rows if not row.is_fp32]
    whole = [row for row in others if not row.unfinished]
    clauses = [_speed(whole), _memory(whole), "" if section.synthetic else _accuracy(section, whole)]
    cut = [_called(row) for row in others if row.unfinished]
    if cut:
        clauses.append(f"not ranked, since not all of their seeds finished: {listed(cut)}")
    if section.fp32 is not None and section.fp32.unfinished and any(clauses):
        clauses.append(f"of FP32 itself not all seeds finished: {section.fp32.named}")
    told = "; ".join(filter(None, clauses))
    return f"On {machine_name(section.rows[0].first)}, {told}." if told else ""


def _called(row: Row) -> str:
    """The row's name; of one that is not low-bit, with what it is instead."""
    if row.is_low_bit:
        return row.named
    told = ("bfloat16" if row.method.name == "bf16" else "floating point", "not low-bit", *row.labels, *row.unfinished)
    return f"{row.label} ({', '.join(told)})"


def _kind(rows: Sequence[Row]) -> str:
    """What the candidates are: "low-bit row" where all are."""
    return "low-bit row" if all(row.is_low_bit for row in rows) else "other row"


def _speed(rows: Sequence[Row]) -> str:
    ranked = [row for row in rows if _interval(row) is not None]
    faster = [row for row in ranked if (found := _interval(row)) is not None and found.high < 1]
    if not ranked:
        timed = any(row.timed_once for row in rows)
        return "for speed nothing is settled, since one process shows no order" if timed else ""
    if not faster:
        return f"for speed FP32: no {_kind(ranked)} is shown to be faster"
    best = min(faster, key=_ratio_value)
    assert isinstance(best.time_vs_fp32, Ratio), "only rows with a ratio are ranked"
    return f"for speed {_called(best)}, {with_interval(best.time_vs_fp32, 'the FP32 step’s time')}"


def _memory(rows: Sequence[Row]) -> str:
    shares = [
        (row, row.peak_allocated_bytes / row.fp32_peak_allocated_bytes)
        for row in rows
        if not isinstance(row.peak_allocated_bytes, Absent)
        and not isinstance(row.fp32_peak_allocated_bytes, Absent)
        and row.fp32_peak_allocated_bytes > 0
    ]
    if not shares:
        return ""
    share = min(of for _, of in shares)
    leanest = [_called(row) for row, of in shares if ratio_text(of) == ratio_text(share)]
    if share < 1:
        return f"for memory {listed(leanest)}, {ratio_text(share)} FP32’s peak allocated"
    kind = _kind([row for row, _ in shares])
    if len(leanest) > 1:
        return f"for memory FP32: the leanest {kind}s, {listed(leanest)}, have {ratio_text(share)} its peak allocated"
    return f"for memory FP32: the leanest {kind}, {leanest[0]}, has {ratio_text(share)} its peak allocated"


def _accuracy(section: Section, rows: Sequence[Row]) -> str:
    """The row with the highest mean, against FP32 and against the others, as far as seeds tell."""
    ranked = [row for row in rows if isinstance(row.accuracy, Estimate)]
    if not ranked or section.fp32 is None:
        return ""
    best = max(ranked, key=_accuracy_value)
    assert isinstance(best.accuracy, Estimate), "only rows with an accuracy are ranked"
    delta, mean, kind = best.accuracy_vs_fp32, f"{best.accuracy.value:.2f} %{_chance(best)}", _kind(ranked)
    if isinstance(delta, Absent):
        return f"for accuracy nothing is settled ({delta.reason}): of the {kind}s {_called(best)} has most, {mean}"
    if isinstance(delta.interval, Absent):
        highest = listed([_called(row) for row in ranked if _accuracy_value(row) == _accuracy_value(best)])
        return (
            f"for accuracy nothing is settled, since one seed shows no order: the highest of the {kind}s is "
            f"{highest} with {mean}, {points_text(delta)} points against FP32"
        )
    over = f"{points_text(delta)} points against FP32’s over {plural(delta.n, 'seed')}"
    if delta.interval.high < 0:
        return f"for accuracy FP32: the {kind} with the highest mean, {_called(best)}, has {over}"
    told = f"{mean}, {over}{'' if delta.interval.low > 0 else ', no difference that they show'}"
    return f"for accuracy {_called(best)} ({told}){_rivals(best, [row for row in ranked if row is not best])}"


def _chance(row: Row) -> str:
    """That guessing reaches about as much, where the mean is within three standard errors of its share of classes."""
    data = row.first.data
    if data is None or min(data.num_classes, data.test_samples) < 2:
        return ""
    guess = 1 / data.num_classes
    error_pct = 100 * math.sqrt(guess * (1 - guess) / data.test_samples)
    if _accuracy_value(row) > 100 * guess + 3 * error_pct:
        return ""
    return f" (no more than guessing: chance is {100 * guess:g} % for {data.num_classes:,} classes)"


def _rivals(best: Row, others: Sequence[Row]) -> str:
    """Rows that the seeds do not tell from the one with the highest mean, and which of them all is the fastest."""
    alike = [row for row in others if not _is_shown_better(best, row)]
    if not alike:
        return ""
    names = listed([_called(row) for row in alike])
    fastest = min((row for row in (best, *alike) if _interval(row) is not None), key=_ratio_value, default=None)
    of_these = f", and of all of these {_called(fastest)} takes the least time" if fastest is not None else ""
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
