"""How the sentences of a report say numbers: ratios with intervals, differences of accuracy, names in a row."""

from __future__ import annotations

from collections.abc import Sequence

from bench.records.schema import Interval
from bench.units import Absent
from reports.rows import Estimate, Ratio
from reports.text import plural, ratio_text, signed
from reports.values import ONE_PROCESS

NAMED = 4  # rows that one sentence names


def with_interval(ratio: Ratio, of: str) -> str:
    """A ratio of something with its interval, or why it has none."""
    if isinstance(ratio.interval, Absent):
        return f"{ratio_text(ratio.value)} {of} ({ONE_PROCESS})"
    return f"{ratio_text(ratio.interval.value)} [{ratio.interval.low:.2f}, {ratio.interval.high:.2f}] {of}"


def points_text(delta: Estimate) -> str:
    """A difference of accuracy with its interval where seeds give one."""
    if isinstance(delta.interval, Absent):
        return signed(delta.value)
    return f"{signed(delta.value)} [{signed(delta.interval.low)}, {signed(delta.interval.high)}]"


def shows_difference(delta: Estimate) -> bool:
    """Whether the interval over its seeds leaves out 0."""
    return isinstance(delta.interval, Interval) and not delta.interval.low <= 0 <= delta.interval.high


def difference_clauses(differences: Sequence[tuple[str, Estimate]]) -> list[str]:
    """Named differences of accuracy: those that their seeds show, those that they do not, those of one seed."""
    clauses = []
    for count in sorted({delta.n for _, delta in differences}, reverse=True):
        same = [(name, delta) for name, delta in differences if delta.n == count]
        single = [pair for pair in same if isinstance(pair[1].interval, Absent)]
        shown = [pair for pair in same if shows_difference(pair[1])]
        alike = [name for name, delta in same if isinstance(delta.interval, Interval) and not shows_difference(delta)]
        if shown:
            clauses.append(f"{_points_list(shown)} points over {plural(count, 'seed')}")
        if alike:
            clauses.append(f"no difference that {plural(count, 'seed')} show for {listed(alike)}")
        if single:
            clauses.append(f"{_points_list(single)} points on one seed, no statement about significance")
    return clauses


def _points_list(pairs: Sequence[tuple[str, Estimate]]) -> str:
    """A few differences one by one, many by their ends."""
    if len(pairs) <= NAMED - 1:
        return joined([f"{name} {points_text(delta)}" for name, delta in pairs])
    ordered = sorted(pairs, key=lambda pair: pair[1].value)
    (first, lowest), (last, highest) = ordered[0], ordered[-1]
    return f"{len(pairs)} low-bit rows from {points_text(lowest)} ({first}) to {points_text(highest)} ({last})"


def listed(names: Sequence[str]) -> str:
    """Names, the first few of many."""
    if len(names) <= NAMED:
        return joined(names)
    return f"{', '.join(names[: NAMED - 1])} and {len(names) - NAMED + 1} more"


def joined(parts: Sequence[str]) -> str:
    """Parts with commas and a last "and"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
