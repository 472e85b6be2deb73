"""Real runs for the proof, on this machine as it is: equal ones, slowed ones, leaking ones; each kept as it ends.

Equal runs are whole recorded runs, as ``metagrad-bench run`` leaves them. Slowed ones are single processes that take
turns with unslowed ones, as ``gate --against`` takes turns between revisions.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.app import parse_arguments, plan_cells
from bench.cell import run_cell
from bench.config import CellConfig
from bench.errors import HardwareError, RecordError
from bench.keys import code_version, weights_path
from bench.locks import device_lock
from bench.process import run_pass
from bench.records.entry import entry_of
from bench.records.schema import RunRecord, TimingRepeat
from bench.training.assemble import for_pretraining
from bench.units import Absent, format_duration
from tools.against.verb import CONFIRM, REPEATS
from tools.gate_proof.planted import Slowdown, leaking_memory_pass, slowed_timing_pass
from tools.gate_proof.runs import RUNS_VERSION, Recorded, Run, Values, read_runs, values_of, with_values, write_runs

# The demo's protocol and its cell with every phase, smaller batches: some 8 s a run on two cores.
OVERRIDES = (
    "variant=metagrad_int4_recompute", "model=resnet20", "data=digits", "hypernet.hidden=4", "protocol=demo",
    "protocol.batch_size=32", "protocol.pretrain_epochs=1", "protocol.timing_budget_s=1", "suite_name=gate_proof",
    "device=cpu", "progress=false",
)  # fmt: skip
SIZES_PCT = (3.0, 5.0, 10.0, 20.0)
PHASES = ("forward", "backward", "meta")
LEAKS_PCT = (1.0, 5.0)
_PASS_LIMIT_S = 600.0
_MEMORY_EVERY = 10  # of the equal pairs so many-th has memory passes too: they take longer than the timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much to run."""

    pairs: int = 60  # disjoint pairs of equal runs
    groups: int = 2  # of slowed processes, for each phase
    rounds: int = REPEATS * (1 + CONFIRM)  # turns in a group: repeats of each side, and as many to confirm
    leaks: int = 5  # leaking runs of each size


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One piece of work that is done or not."""

    kind: str
    number: int
    phase: str = ""
    size_pct: float = 0.0
    round: int = 0
    memory: bool = False

    def is_of(self, run: Run) -> bool:
        """Whether a run is this task's."""
        return (self.kind, self.number, self.phase, self.size_pct, self.round) == (
            run.kind, run.number, run.phase, run.size_pct, run.round,
        )  # fmt: skip


def schedule(counts: Counts) -> list[Task]:
    """All tasks in their order: groups spread among the equal pairs, so that they see the machine's whole hour."""
    pairs = [
        [Task(kind="plain", number=2 * pair + side, memory=pair % _MEMORY_EVERY == 0) for side in (0, 1)]
        for pair in range(counts.pairs)
    ]
    groups = [
        list(_group(number * len(PHASES) + place, phase, counts.rounds))
        for number in range(counts.groups)
        for place, phase in enumerate(PHASES)
    ]
    leaks = [[Task(kind="leaking", number=n, size_pct=size)] for n in range(counts.leaks) for size in LEAKS_PCT]
    # The first pair holds the peak that a leak is a share of.
    others = groups + leaks
    tasks: list[Task] = []
    for number, pair in enumerate(pairs):
        tasks += pair
        share = (len(others) * number // len(pairs), len(others) * (number + 1) // len(pairs))
        tasks += [task for group in others[slice(*share)] for task in group]
    return tasks


def _group(number: int, phase: str, rounds: int) -> Iterator[Task]:
    """Turns of one unslowed process and one of each size, there and back."""
    sizes = (0.0, *SIZES_PCT)
    for turn in range(rounds):
        for size in sizes if turn % 2 == 0 else sizes[::-1]:
            yield Task(kind="slowed", number=number, phase=phase, size_pct=size, round=turn)


def record(path: Path, scratch: Path, counts: Counts, *, tell: Callable[[str], None]) -> Recorded:
    """Do what is not done yet of the schedule.

    Args:
        path: JSON of the runs; taken up again where it exists.
        scratch: folder for weights and records that are not kept.
        counts: how much to run.
        tell: takes progress, a line each.

    Returns:
        All runs.

    Raises:
        UserError: a run failed, or the file is of another cell, code or machine.
    """
    cell = compose(scratch)
    bench = _Bench(cell=cell, path=path)
    done = read_runs(path) if path.exists() else None
    tasks = schedule(counts)
    left = [task for task in tasks if done is None or not any(map(task.is_of, done.runs))]
    if done is not None and left and done.code_version != code_version():
        raise RecordError(
            f"{path} was begun with other code ({done.code_version}): move it away and start anew, or go back to that."
        )
    started = time.monotonic()
    for number, task in enumerate(left):
        spent = time.monotonic() - started
        remaining = f", about {format_duration(spent / number * (len(left) - number))} left" if number else ""
        tell(f"[{len(tasks) - len(left) + number + 1}/{len(tasks)}] {_words(task)}{remaining}")
        done = bench.run(task, done)
        write_runs(path, done)
    assert done is not None, "a schedule has tasks"
    return done


def compose(scratch: Path, overrides: Sequence[str] = OVERRIDES) -> CellConfig:
    """The proof's cell, its records under `scratch`."""
    (cell,) = plan_cells(parse_arguments([*overrides, f"output_dir={scratch}", "fresh=true"])).cells
    return cell


@dataclass(slots=True, kw_only=True)
class _Bench:
    """Runs tasks of one cell."""

    cell: CellConfig
    path: Path

    def run(self, task: Task, done: Recorded | None) -> Recorded:
        started = dt.datetime.now(dt.UTC)
        if task.kind == "plain":
            record = self._plain(task)
            values = values_of(entry_of(record))
            if done is None:
                done = _begin(record, started)
            done.notices += [notice for notice in record.notices if "busy" in notice or "throttled" in notice]
        else:
            assert done is not None, "an equal run comes first"
            values = self._slowed(task) if task.kind == "slowed" else self._leaking(task, done)
        begun = dt.datetime.fromisoformat(done.started)
        done.runs.append(
            Run(
                kind=task.kind, number=task.number, started_s=round((started - begun).total_seconds(), 1),
                metrics=values, phase=task.phase, size_pct=task.size_pct, round=task.round,
            )
        )  # fmt: skip
        return done

    def _plain(self, task: Task) -> RunRecord:
        passes = ["timing", "memory"] if task.memory else ["timing"]
        protocol = dataclasses.replace(self.cell.protocol, passes=passes)
        record = run_cell(dataclasses.replace(self.cell, protocol=protocol))
        if record.status != "ok":
            raise HardwareError(f"A run of the proof's cell did not end well: {record.reason}.")
        return record

    def _slowed(self, task: Task) -> Values:
        slowdown = Slowdown(phase=task.phase, step_pct=task.size_pct)
        repeat: TimingRepeat = self._pass(slowed_timing_pass, slowdown=slowdown, repeat=task.round)
        series = {"step_ms": repeat.step_ms, "fp32_step_ms": repeat.fp32_step_ms}
        series |= {f"{name}_ms": values for name, values in repeat.phases_ms.items()}
        return {name: [[float(f"{value:.5g}") for value in values]] for name, values in series.items()}

    def _leaking(self, task: Task, done: Recorded) -> Values:
        peak = next(run.metrics["peak_allocated_bytes"][0][0] for run in done.runs if run.kind == "plain")
        leak_bytes = int(peak * task.size_pct / 100)
        peaks = self._pass(leaking_memory_pass, leak_bytes=leak_bytes, name="with a leak").peaks
        values = {name: getattr(peaks, name) for name in ("peak_allocated_bytes", "peak_process_bytes")}
        return {name: [[value]] for name, value in values.items() if not isinstance(value, Absent)}

    def _pass(self, function: Callable[..., Any], **arguments: Any) -> Any:
        weights = str(weights_path(for_pretraining(self.cell), device_type="cpu"))
        arguments |= {"cell": self.cell, "device": "cpu", "weights": weights}
        with device_lock("cpu"):
            outcome = run_pass(function, arguments, limit_s=_PASS_LIMIT_S, on_progress=lambda update: None)
        if outcome.status != "ok":
            raise HardwareError(f"A planted pass of the proof did not end well: {outcome.reason}.")
        return outcome.value


def _begin(record: RunRecord, started: dt.datetime) -> Recorded:
    entry = entry_of(record)
    return Recorded(
        schema_version=RUNS_VERSION,
        started=started.isoformat(timespec="seconds"),
        overrides=list(OVERRIDES),
        code_version=record.code_version,
        machine=entry.environment,
        notices=[],
        template=with_values(entry, {}),
        runs=[],
    )


def _words(task: Task) -> str:
    if task.kind == "plain":
        return f"equal run {task.number + 1}" + (" with memory" if task.memory else "")
    if task.kind == "leaking":
        return f"leak of {task.size_pct:g} %"
    return f"{task.phase} slowed by {task.size_pct:g} % of the step, turn {task.round + 1}"
