"""The stages that ``tools.scale`` measures: what a suite of many cells costs beside their measuring.

Each stage is prepared first, which is not measured, and then run once in a process of its own.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from bench.records.schema import RunRecord

Run = Callable[[], dict[str, float] | None]  # measured; answers figures of its own
STORE = "records"  # of a size's folder: what the stages read
DEMO_CELLS = 8  # of suite=demo, which ``plan`` sweeps over seeds
SLOW_EVERY, SLOW_FACTOR, NOISE = 1000, 1.3, 0.01  # of the gate's candidate against its baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a stage works on."""

    size: int  # cells
    folder: Path  # of this size
    records: Callable[[], Iterator[RunRecord]]  # so many, made one after another


def plan(work: Work) -> Run:
    """Compose, check and locate a sweep's cells, as `run` does before the first one."""
    from bench import cell as cells
    from bench.app import parse_arguments, plan_cells
    from bench.precheck import check_cells

    argv = [*_sweep(work), f"output_dir={work.folder / 'planned'}"]

    def run() -> dict[str, float]:
        start = time.perf_counter()
        plan_ = plan_cells(parse_arguments(argv))
        composed = time.perf_counter()
        check_cells(plan_.cells)
        assert len(set(cells.locate_all(plan_.cells))) == work.size, "every cell has a place of its own"
        return {"composing_s": round(composed - start, 3), "locating_s": round(time.perf_counter() - composed, 3)}

    return run


def again(work: Work) -> Run:
    """Give the command of a sweep again when all of it is measured."""
    from bench.app import parse_arguments, plan_cells
    from bench.cell import is_settled, locate_all
    from bench.records.write import write_record

    output = work.folder / "measured"
    shutil.rmtree(output, ignore_errors=True)
    argv = [*_sweep(work), f"output_dir={output}"]
    planned = plan_cells(parse_arguments(argv)).cells
    folders = locate_all(planned)
    with mock.patch("os.fsync"):
        for folder, record in zip(folders, work.records(), strict=True):
            write_record(folder, dataclasses.replace(record, key=folder.name.rpartition("-")[2]), config_yaml="")
    unsettled = [folder for cell, folder in zip(planned, folders, strict=True) if not is_settled(cell, folder)]
    assert not unsettled, f"{unsettled[0]} would be measured, not found"
    return _verb("run", *argv, "progress=false")


def write(work: Work) -> Run:
    """Write records as cells do, each flushed to the disk."""
    return _write(work, work.folder / "written")


def fill(work: Work) -> Run:
    """Write records without waiting for the disk: the store that the other stages read."""
    run = _write(work, work.folder / STORE)

    def unflushed() -> None:
        with mock.patch("os.fsync"):
            run()

    return unflushed


def _write(work: Work, target: Path) -> Run:
    from bench.records.write import write_record

    shutil.rmtree(target, ignore_errors=True)

    def run() -> None:
        for record in work.records():
            name = f"{record.variant}-{record.model_name}-seed{record.seed}"
            write_record(target / record.suite / name, record, config_yaml="")

    return run


def status(work: Work) -> Run:
    """Look at all cells, look again, print them."""
    from bench.status import StatusReader
    from tools.status import as_text

    def run() -> dict[str, float]:
        reader = StatusReader([work.folder / STORE])
        status = reader.read()
        assert len(status.cells) == work.size, "every record is a cell"
        again = time.perf_counter()
        reader.read()
        printing = time.perf_counter()
        as_text(status)
        return {"second_look_s": round(printing - again, 3), "printing_s": round(time.perf_counter() - printing, 3)}

    return run


def baseline(work: Work) -> Run:
    """Write a baseline of all cells."""
    target = work.folder / "baseline.json"
    target.unlink(missing_ok=True)  # written anew: over an earlier one the verb would also tell what moved
    return _verb("baseline", str(work.folder / STORE), "-o", str(target))


def gate(work: Work) -> Run:
    """Compare all cells with a baseline of another measurement: noise, and one cell in a thousand slower."""
    from bench.records.baseline import write_baseline
    from bench.records.entry import entry_of

    other = work.folder / "earlier.json"
    write_baseline(other, (_measured_before(entry_of(record), number) for number, record in enumerate(work.records())))
    return _verb("gate", str(work.folder / STORE), "--baseline", str(other), codes=(0, 1, 3))


def report(work: Work) -> Run:
    """Write the report of all cells; of more than one shows, a report of each variant."""
    from reports.load import MOST_RECORDS

    store = work.folder / STORE
    parts = {"report": [store]}
    if work.size > MOST_RECORDS:
        parts = {}
        for folder in sorted(store.glob("*/*")):
            parts.setdefault(f"report-{folder.name.partition('-')[0]}", []).append(folder)
    runs = [_verb("report", *map(str, folders), "-o", str(work.folder / name)) for name, folders in parts.items()]

    def run() -> None:
        for write_one in runs:
            write_one()

    return run


STAGES: dict[str, Callable[[Work], Run]] = {
    "plan": plan, "again": again, "write": write, "fill": fill, "status": status, "baseline": baseline, "gate": gate,
    "report": report,
}  # fmt: skip
READERS = ("status", "baseline", "gate", "report")  # of the store


def _sweep(work: Work) -> list[str]:
    return ["suite=demo", "device=cpu", f"seed=range(0,{work.size // DEMO_CELLS})"]


def _measured_before(entry: Any, number: int) -> Any:
    """A baseline's entry as another measurement of the same cell would have left it."""
    from bench.units import Absent

    chance = random.Random(number)
    faster = 1 / SLOW_FACTOR if number % SLOW_EVERY == SLOW_EVERY - 1 else 1.0
    metrics = {}
    for name, metric in entry.metrics.items():
        if name.endswith("_ms") and not isinstance(metric.samples, Absent):
            own = faster if name == "step_ms" else 1.0
            samples = tuple(
                tuple(value * factor for value in repeat)
                for repeat in metric.samples
                for factor in [own * chance.gauss(1, NOISE)]
            )
            metric = dataclasses.replace(metric, samples=samples)
        metrics[name] = metric
    return dataclasses.replace(entry, metrics=metrics)


def _verb(*argv: str, codes: tuple[int, ...] = (0,)) -> Run:
    from tools.cli import main as call

    def run() -> None:
        """Call it; what else it ends with ends this process, with the verb's own sentence."""
        before, sys.stdout = sys.stdout, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
        try:
            code = call(argv)
        finally:
            sys.stdout.close()
            sys.stdout = before
        if code not in codes:
            raise SystemExit(code)

    return run
