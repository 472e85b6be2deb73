"""A row's number as an axis needs it: its middle, its ends, in MiB; unknown ones are told apart."""

from __future__ import annotations

from bench.records.schema import Interval, Summary
from bench.units import MEBIBYTE, Absent
from reports.rows import Estimate, Ratio

Quantity = Summary | Estimate | Ratio | float | Absent


def is_known(value: Quantity) -> bool:
    """Whether there is a number."""
    return not isinstance(value, Absent)


def middle_of(value: Quantity) -> float:
    """The median of a summary, the value of anything else that is known."""
    assert not isinstance(value, Absent), "unknown values are not drawn"
    if isinstance(value, Summary):
        return value.median
    return value.value if isinstance(value, Estimate | Ratio) else float(value)


def ends_of(value: Quantity) -> tuple[float, float] | None:
    """Quartiles of a summary, the 95 % interval of an estimate or ratio; None where there is none."""
    if isinstance(value, Summary):
        return value.q1, value.q3
    if isinstance(value, Estimate | Ratio) and isinstance(value.interval, Interval):
        return value.interval.low, value.interval.high
    return None


def in_mib(num_bytes: float | Absent) -> float | Absent:
    """Bytes in MiB; unknown ones stay so."""
    return num_bytes if isinstance(num_bytes, Absent) else num_bytes / MEBIBYTE
