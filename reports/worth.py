"""Whether the hypernetwork is worth it: against the plain quantizer of the same bits, and against STE."""

from __future__ import annotations

from collections.abc import Sequence

from bench.records.schema import Interval, MethodFacts
from bench.units import Absent
from reports.aggregate import accuracy_difference, ratio_of_ratios
from reports.rows import Estimate, Ratio, Row, Section
from reports.text import plural, ratio_text
from reports.wording import joined, points_text, shows_difference, with_interval

MAX_ROWS = 2  # one of each combination of bits


def worth_parts(section: Section) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What a hypernetwork gains and costs, for up to two combinations of bits: answers, each with its comparisons.

    Of the rows of one combination the one with the lowest ratio to FP32 stands for all: what a hypernetwork is worth
    does not depend on how slowly it can be run. Empty where no row has one.
    """
    groups: dict[tuple[int, ...], list[Row]] = {}
    for row in section.rows:
        if row.has_hypernet and not (isinstance(row.time_vs_fp32, Absent) and isinstance(row.accuracy, Absent)):
            groups.setdefault(_bits(row.method), []).append(row)
    chosen = [min(rows, key=_ratio_value) for rows in groups.values()]
    told: dict[str, list[str]] = {}
    for row in chosen[:MAX_ROWS]:
        answer, comparisons = _answer_and_why(row, section.rows)
        told.setdefault(answer, []).extend(comparisons)
    return tuple((answer, tuple(comparisons)) for answer, comparisons in told.items())


def worth_sentence(parts: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The same on one line."""
    return " ".join(f"{answer}: {'; '.join(comparisons)}." for answer, comparisons in parts)


def plain_rival(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row of the same bits without a hypernetwork: of the same error quantizer, else of the highest accuracy.

    Args:
        row: with a hypernetwork.
        rows: of its section.
    """
    facts = row.method
    if facts.error_bits >= 16:  # its error signals are floating point: that is the straight-through estimator
        return None
    same = [
        other for other in rows
        if not other.has_hypernet
        and _bits(other.method)[:3] == _bits(facts)[:3]
        and other.method.forward_quantizer == facts.forward_quantizer
    ]  # fmt: skip
    return max(same, key=lambda other: _likeness(other, facts), default=None)


def ste_rival(row: Row, rows: Sequence[Row]) -> Row | None:
    """The straight-through estimator with the same forward pass.

    Args:
        row: with a hypernetwork.
        rows: of its section.
    """
    facts = row.method
    same = (
        other for other in rows
        if other.method.name == "ste"
        and _bits(other.method)[:2] == _bits(facts)[:2]
        and other.method.forward_quantizer == facts.forward_quantizer
    )  # fmt: skip
    return next(same, None)


def _answer_and_why(row: Row, rows: Sequence[Row]) -> tuple[str, list[str]]:
    plain, ste = plain_rival(row, rows), ste_rival(row, rows)
    rivals = [rival for rival in (plain, ste) if rival is not None]
    if not rivals:
        return "Whether the hypernetwork is worth it cannot be told", [
            f"beside {row.named} neither the same bits without one nor STE with its forward pass was measured"
        ]
    comparisons = []
    if plain is not None:
        floating = " (its ∇W in floating point)" if plain.method.grad_bits > row.method.grad_bits else ""
        comparisons.append(f"{_differences(row, plain)} against {plain.named}, the same bits without one{floating}")
    if ste is not None:
        comparisons.append(f"{_differences(row, ste)} against {ste.named}, which quantizes the forward pass alone")
    return _answer(row, rivals[0]), [f"{row.named} has {comparison}" for comparison in comparisons]


def _answer(row: Row, rival: Row) -> str:
    """Yes, no or unknown: by accuracy and time against the rival that is closest."""
    delta = accuracy_difference(row, rival, rival.label)
    time = ratio_of_ratios(row.time_vs_fp32, rival.time_vs_fp32)
    slower = isinstance(time, Ratio) and isinstance(time.interval, Interval) and time.interval.low > 1
    if isinstance(delta, Absent):
        return f"Whether the hypernetwork is worth it cannot be told without accuracies ({delta.reason})"
    if isinstance(delta.interval, Absent):
        return "Whether the hypernetwork is worth it cannot be told from one seed"
    if not shows_difference(delta):
        gain = f"no gain in accuracy that {plural(delta.n, 'seed')} show{', and it costs time' if slower else ''}"
        return f"The hypernetwork is not shown to be worth it ({gain})"
    if delta.value < 0:
        return f"The hypernetwork is not worth it here (it loses accuracy{' and costs time' if slower else ''})"
    return f"The hypernetwork buys accuracy{' for time' if slower else ''}"


def _differences(row: Row, rival: Row) -> str:
    parts = []
    delta = accuracy_difference(row, rival, rival.label)
    if isinstance(delta, Estimate):
        over = f" over {plural(delta.n, 'seed')}" if delta.n > 1 else ""  # of one seed the answer before it says so
        parts.append(f"{points_text(delta)} points{over}")
    time = ratio_of_ratios(row.time_vs_fp32, rival.time_vs_fp32)
    if isinstance(time, Ratio):
        parts.append(with_interval(time, "the step time"))
    own, other = row.peak_allocated_bytes, rival.peak_allocated_bytes
    if not isinstance(own, Absent) and not isinstance(other, Absent) and other > 0:
        parts.append(f"{ratio_text(own / other)} the peak allocated")
    return joined(parts) if parts else "nothing that both have measured"


def _bits(facts: MethodFacts) -> tuple[int, int, int, int]:
    return facts.weight_bits, facts.activation_bits, facts.error_bits, facts.grad_bits


def _likeness(other: Row, facts: MethodFacts) -> tuple[bool, bool, float]:
    accuracy = other.accuracy.value if isinstance(other.accuracy, Estimate) else float("-inf")
    return other.method.error_quantizer == facts.error_quantizer, other.method.grad_bits == facts.grad_bits, accuracy


def _ratio_value(row: Row) -> float:
    return row.time_vs_fp32.value if isinstance(row.time_vs_fp32, Ratio) else float("inf")
