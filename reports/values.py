"""A record walked to its single values, and which of them a report may show."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from bench.records.schema import RunRecord
from bench.units import Absent

#: Why a ratio of step times stands without an interval: one process knows nothing of the shifts between processes.
ONE_PROCESS = "one process, no interval"
_RATIO_ENDS = tuple(
    f"timing.{name}.{end}" for name in ("time_vs_fp32", "phase_mark_cost_pct") for end in ("low", "high")
)


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Walk a record to its single values: (dotted path, value), lists by index, ``Absent`` and None as they are."""
    found: list[tuple[str, Any]] = []
    _collect(value, path, found)
    return found


def _collect(value: Any, path: str, found: list[tuple[str, Any]]) -> None:
    if value is None or isinstance(value, str | int | float | Absent):
        found.append((path, value))
    elif isinstance(value, dict):
        if set(value) == {"reason"} and isinstance(value["reason"], str):
            found.append((path, Absent(reason=value["reason"])))
            return
        for key in sorted(value, key=str):
            _collect(value[key], f"{path}.{key}" if path else str(key), found)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _collect(item, f"{path}[{index}]", found)
    elif names := _field_names(value.__class__):
        for name in names:
            _collect(getattr(value, name), f"{path}.{name}" if path else name, found)
    else:
        found.append((path, value))


@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


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
