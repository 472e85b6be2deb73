"""Recorded runs and a baseline for the gate's tests, and records that are worse in one thing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.records.baseline import write_baseline
from bench.records.entry import entry_of
from bench.records.schema import RunRecord
from bench.records.write import write_record
from tools.gate import main

MakeRecord = Callable[..., RunRecord]


class Bench:
    """A folder with recorded runs and a baseline."""

    def __init__(self, folder: Path, make_record: MakeRecord) -> None:
        self.folder = folder
        self.make_record = make_record
        self.baseline = folder / "baseline.json"
        self.runs = folder / "runs"
        self.runs.mkdir()

    def record(self, variant: str = "a", **changes: Any) -> RunRecord:
        defaults = {"variant": variant, "key": f"key-{variant}", "cell": {"variant_name": variant, "hidden": 4}}
        return self.make_record(**(defaults | changes))

    def accept(self, *records: RunRecord) -> None:
        write_baseline(self.baseline, map(entry_of, records))

    def measure(self, *records: RunRecord) -> None:
        for number, record in enumerate(records):
            write_record(self.runs / f"run-{number}", record, config_yaml="")

    def gate(self, *arguments: str) -> int:
        return main([str(self.runs), "--baseline", str(self.baseline), *arguments])


def slower(record: RunRecord, factor: float) -> RunRecord:
    assert record.timing is not None
    repeats = tuple(
        dataclasses.replace(repeat, step_ms=tuple(value * factor for value in repeat.step_ms))
        for repeat in record.timing.repeats
    )
    return dataclasses.replace(record, timing=dataclasses.replace(record.timing, repeats=repeats))


def unsteady(record: RunRecord) -> RunRecord:
    """Slower by a tenth and more, with processes further apart than that."""
    assert record.timing is not None
    repeats = tuple(
        dataclasses.replace(repeat, step_ms=tuple(value * factor for value in repeat.step_ms))
        for repeat, factor in zip(record.timing.repeats, (1.0, 1.12, 1.3), strict=True)
    )
    return dataclasses.replace(record, timing=dataclasses.replace(record.timing, repeats=repeats))


def larger(record: RunRecord, **fields: Any) -> RunRecord:
    assert record.memory is not None
    return dataclasses.replace(record, memory=dataclasses.replace(record.memory, **fields))


def failed(record: RunRecord, status: Any = "failed") -> RunRecord:
    missing = dict.fromkeys(("timing", "memory", "accuracy", "gemms", "hypernet"), "the cell failed")
    return dataclasses.replace(
        record, status=status, reason="killed by signal 9", timing=None, memory=None, accuracy=None, gemms=None,
        hypernet=None, missing=missing,
    )  # fmt: skip
