"""The proof's real runs on disk: raw samples of every run in one JSON file, a line each, written after every run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec

from bench.errors import RecordError
from bench.printable import show_path
from bench.records.entry import Entry, Metric
from bench.records.read import read_bytes
from bench.records.write import write_atomic
from bench.units import Absent

RUNS_VERSION = 1
SIGNIFICANT_DIGITS = 5  # of a sample in ms: finer than its spread by orders

Values = dict[str, list[list[float]]]  # metric -> repeats -> samples


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One real run: a recorded run of three processes, a single process of a planted group, or a memory pass."""

    kind: str  # plain, slowed, leaking
    number: int  # plain: in time order; slowed and leaking: of its group
    started_s: float  # since the proof's first run
    metrics: Values
    phase: str = ""  # slowed: where
    size_pct: float = 0.0  # slowed: of the step; leaking: of the peak; 0: nothing was planted
    round: int = 0  # slowed: which turn of its group


class Recorded(msgspec.Struct, kw_only=True):
    """All runs of a proof, and the cell and machine that they are of."""

    schema_version: int
    started: str  # UTC
    overrides: list[str]
    code_version: str
    machine: dict[str, Any]
    notices: list[str]
    template: Entry  # of the first run, without its samples
    runs: list[Run]
    remark: str = ""  # what a reader must know of how they came about; by hand

    def of(self, kind: str) -> list[Run]:
        """Runs of a kind, in time order."""
        return [run for run in self.runs if run.kind == kind]

    def entry(self, *runs: Run, process: int | None = None) -> Entry:
        """Runs as one entry: their processes in this order, or one process of a single run."""
        values: dict[str, list[list[float]]] = {}
        for run in runs:
            for name, repeats in run.metrics.items():
                values.setdefault(name, []).extend(repeats if process is None else [repeats[process]])
        return with_values(self.template, values)


def with_values(template: Entry, values: Values) -> Entry:
    """An entry of the template's cell with these samples."""
    metrics = {
        name: Metric(samples=tuple(map(tuple, repeats)) if repeats else Absent(reason="not measured"))
        for name, repeats in values.items()
    }
    return dataclasses.replace(template, metrics=metrics)


def values_of(entry: Entry) -> Values:
    """Samples of an entry, rounded; metrics without any are left out."""
    return {
        name: [[_rounded(value) for value in repeat] for repeat in metric.samples]
        for name, metric in entry.metrics.items()
        if not isinstance(metric.samples, Absent)
    }


def write_runs(path: Path, recorded: Recorded) -> None:
    """Write all runs, a line each.

    Raises:
        RecordError: the file cannot be written.
    """
    head = msgspec.json.decode(msgspec.json.encode(recorded))
    runs = head.pop("runs")
    lines = ",\n".join(msgspec.json.encode(run).decode() for run in runs)
    text = msgspec.json.format(msgspec.json.encode(head), indent=1).decode()
    write_atomic(path, f'{text[:-2]},\n "runs": [\n{lines}\n]\n}}\n'.encode(), replace=True)


def read_runs(path: Path) -> Recorded:
    """Read the runs of an earlier call.

    Raises:
        RecordError: the file is damaged or of another version.
    """
    try:
        recorded = msgspec.json.decode(read_bytes(path), type=Recorded)
    except msgspec.MsgspecError as error:
        raise RecordError(f"{show_path(path)} is damaged ({error}): delete it, and the runs are made anew.") from error
    if recorded.schema_version != RUNS_VERSION:
        raise RecordError(f"{show_path(path)} is of another version: delete it, and the runs are made anew.")
    return recorded


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{SIGNIFICANT_DIGITS}g}")
