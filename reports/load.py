"""Run records read from folders and laid out as data frames; an absent value is an empty cell, its reason beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import NothingMeasuredError
from bench.records.schema import RunRecord
from bench.records.store import find_records, show_path
from bench.units import Absent

#: Why a ratio of step times stands without an interval: one process knows nothing of the shifts between processes.
ONE_PROCESS = "one process, no interval"
_RATIO_ENDS = tuple(
    f"timing.{name}.{end}" for name in ("time_vs_fp32", "phase_mark_cost_pct") for end in ("low", "high")
)


@dataclass(frozen=True, slots=True)
class UnreadFile:
    """A file that was not a readable record, by its name below the folder that was asked for."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a report is made of: records in reading order and the files that could not be read."""

    records: tuple[RunRecord, ...]
    problems: tuple[UnreadFile, ...]


def load_records(paths: Sequence[Path]) -> Loaded:
    """Read every record below the paths; of several with one key the one started last counts.

    Args:
        paths: files or folders, searched to any depth.

    Raises:
        RecordError: if a path cannot be read.
        NothingMeasuredError: if no record was found.
    """
    roots = [Path(path) for path in paths]
    found, problems = find_records(roots)
    unread = tuple(
        UnreadFile(name=_name_below(p.path, roots), reason=_without_folders(p.reason, p.path, roots)) for p in problems
    )
    if not found:
        names = ", ".join(str(root) for root in roots)
        detail = f" ({unread[0].name}: {unread[0].reason})" if unread else ""
        raise NothingMeasuredError(f"no run record was found in {names}{detail}: run `metagrad-bench run` first")
    records = sorted((one.record for one in found), key=lambda record: (record.started_at, record.key))
    return Loaded(records=tuple(records), problems=unread)


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


def cells_frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """One row per record, one column per single value; ``<column>.reason`` says why a value is not there."""
    return pd.DataFrame([_flat_row(record) for record in records])


def samples_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row per measured step: its time, phases (ms), whether it was the cell's or the FP32 reference's step."""
    phases = sorted({n for r in records if r.timing for repeat in r.timing.repeats for n in repeat.phases_ms})
    columns: dict[str, list[Any]] = {}
    for record in records:
        for index, repeat in enumerate(record.timing.repeats if record.timing is not None else ()):
            for of, steps, parts in (("cell", repeat.step_ms, repeat.phases_ms), ("fp32", repeat.fp32_step_ms, {})):
                count = len(steps)
                for name, value in (*_identity(record).items(), ("repeat", index), ("of", of)):
                    columns.setdefault(name, []).extend([value] * count)
                columns.setdefault("sample", []).extend(range(count))
                columns.setdefault("step_ms", []).extend(steps)
                for name in phases:
                    values = parts.get(name, ())
                    columns.setdefault(f"{name}_ms", []).extend((*values, *[None] * (count - len(values))))
    return pd.DataFrame(columns)


def curves_frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """One row per epoch of each record; synthetic data has no accuracy."""
    rows: list[dict[str, Any]] = []
    for record in records:
        if record.accuracy is None:
            continue
        for point in record.accuracy.curve:
            row = {
                **_identity(record),
                **_with_reasons({f.name: getattr(point, f.name) for f in dataclasses.fields(point)}),
            }
            if is_synthetic(record):
                row["test_accuracy_pct"] = None
                row["test_accuracy_pct.reason"] = "synthetic data"
            rows.append(row)
    return pd.DataFrame(rows)


def layers_frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """One row per convolution or linear layer of each record."""
    rows: list[dict[str, Any]] = []
    for record in records:
        for layer in record.model.layers if record.model else ():
            values = {f.name: getattr(layer, f.name) for f in dataclasses.fields(layer)}
            values["weight_shape"] = "x".join(map(str, layer.weight_shape))
            rows.append({**_identity(record), **_with_reasons(values)})
    return pd.DataFrame(rows)


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


def _identity(record: RunRecord) -> dict[str, Any]:
    names = ("suite", "variant", "model_name", "data_name", "seed", "device", "fingerprint", "key")
    return {name: getattr(record, name) for name in names}


def _flat_row(record: RunRecord) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for path, value in leaves(_without_lists(record)):
        if "[" in path:
            continue
        row |= _with_reasons({path: shown_value(record, path, value)})
    return row


def _without_lists(record: RunRecord) -> RunRecord:
    """The record without what has one value per step, layer or epoch, and without its nested config."""
    model, accuracy, timing = record.model, record.accuracy, record.timing
    return dataclasses.replace(
        record,
        model=None if model is None else dataclasses.replace(model, layers=()),
        accuracy=None if accuracy is None else dataclasses.replace(accuracy, curve=()),
        timing=None if timing is None else dataclasses.replace(timing, repeats=()),
        cell={},
        environment={},
        notices=(),
    )


def _with_reasons(values: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in values.items():
        row[name] = None if isinstance(value, Absent) else value
        if isinstance(value, Absent):
            row[f"{name}.reason"] = value.reason
    return row


def _name_below(path: Path, roots: Sequence[Path]) -> str:
    """The file's name as seen from the folder asked for: a report must not carry a home path."""
    for root in roots:
        if root.is_dir() and path.is_relative_to(root):
            return str(path.relative_to(root))
    return path.name


def _without_folders(reason: str, path: Path, roots: Sequence[Path]) -> str:
    for root in roots:
        folder = root if root.is_dir() else root.parent
        reason = reason.replace(f"{show_path(folder)}/", "")
    return reason.replace(show_path(path), path.name)
