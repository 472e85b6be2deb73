"""Whether a record's numbers are ones that something can have measured: of records without a seal nobody knows.

A record that carries the SHA-256 of its content is what was written. One without may be anybody's: a step of 0 ms or of
a thousand years would end a division or an axis, and stand in a table as if it were a result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from bench.records.schema import Interval, RunRecord

MOST = 1e18  # of any count: a step of the largest network has fewer operations
LONGEST = 1e12  # ms or s: no step and no run takes 30 years
LEAST_STEP_MS = 1e-6
WIDEST_RATIO = 1e9
# Differences, errors and logarithms, which may lie below zero.
SIGNED = (
    "amplification", "cosine", "span_overhead_pct", "span_rest_ms", "unattributed_pct", "train_loss",
    "final_train_loss", "hypernet_extra_allocated_bytes", "hypernet_extra_process_bytes", "hypernet_code_bytes",
    "hypernet_untouched_bytes", "phase_mark_cost_pct", "temperature_c",
)  # fmt: skip
_STEPS = ("step_ms", "fp32_step_ms")
_PLAIN = ("cell", "environment", "missing", "notices")  # settings and texts, whose numbers nobody reckons with


def find_implausible(record: RunRecord) -> str:
    """The first number that nothing can have measured, with its place; empty where there is none.

    Args:
        record: any that could be decoded, so that every value has its type.
    """
    for field in dataclasses.fields(record):
        if field.name in _PLAIN:
            continue
        for place, name, value in _numbers(getattr(record, field.name), field.name, field.name):
            if not _is_possible(name, value):
                is_short = isinstance(value, float) or abs(value) < MOST**2  # else no floating-point number is as large
                return f"{place} is {value:g}" if is_short else f"{place} is beyond all bounds"
    ratio = record.timing.time_vs_fp32 if record.timing is not None else None
    if ratio is not None and not _is_ratio(ratio):
        return f"timing.time_vs_fp32 is {ratio.value:g} between {ratio.low:g} and {ratio.high:g}"
    return ""


def _numbers(value: Any, place: str, name: str) -> Iterator[tuple[str, str, float]]:
    """Every number below a value: its place, the name that carries its unit, itself."""
    if isinstance(value, bool | str):
        return
    if isinstance(value, int | float):
        yield place, name, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            inner = name if field.name in ("median", "q1", "q3", "value", "low", "high") else field.name
            yield from _numbers(getattr(value, field.name), f"{place}.{field.name}", inner)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{place}.{key}", name)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{place}[{index}]", name)


def _is_possible(name: str, value: float) -> bool:
    if name in _STEPS:
        return LEAST_STEP_MS <= value <= LONGEST
    most = LONGEST if name.endswith(("_ms", "_s", "seconds")) else MOST
    return -most <= value <= most if name in SIGNED else 0 <= value <= most


def _is_ratio(ratio: Interval) -> bool:
    return 1 / WIDEST_RATIO <= ratio.low <= ratio.value <= ratio.high <= WIDEST_RATIO
