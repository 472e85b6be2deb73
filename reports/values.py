"""A record walked to its single values, and which of them a report may show."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from bench.records.schema import RunRecord
from bench.units import Absent

#: Why a ratio of step times stands without an interval: one process knows nothing of the shifts between processes.
ONE_PROCESS = "one process, no interval"
_RATIO_ENDS = tuple(
    f"timing.{name}.{end}" for name in ("time_vs_fp32", "phase_mark_cost_pct") for end in ("low", "high")
)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Walk a record to its single values: (dotted path, value), lists by index, ``Absent`` and None as they are."""
    if isinstance(value, Absent):
        yield path, value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}" if path else field.name)
    elif isinstance(value, dict):
        if set(value) == {"reason"} and isinstance(value["reason"], str):
            yield path, Absent(reason=value["reason"])
            return
        for key in sorted(value, key=str):
            yield from leaves(value[key], f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, value


def is_synthetic(record: RunRecord) -> bool:
    """Whether the data is random: its accuracy is never shown."""
    return record.data.synthetic if record.data is not None else record.data_name == "synthetic"


def shown_value(record: RunRecord, path: str, value: Any) -> Any:
    """A record's value as a report may show it: no accuracy on random data, no interval from one process.

    Args:
        record: that holds the value.
        path: of the value, as ``leaves`` gives it.
        value: at that path.
    """
    if path.endswith("_accuracy_pct") and is_synthetic(record):
        return Absent(reason="synthetic data")
    if path in _RATIO_ENDS and record.timing is not None and len(record.timing.repeats) < 2:
        return Absent(reason=ONE_PROCESS)
    return value
