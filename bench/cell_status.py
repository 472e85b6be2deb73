"""What is known of one cell and of a suite's cells, from a record, a pulse or a plan, and how long the rest takes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from bench.pulse import Amount, Count, PlannedCell, Pulse, config_digest
from bench.records.schema import Status

State = Literal["running", "waiting", "stopped", "queued", "unreadable"] | Status


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStatus:
    """One cell. What is not known of it, or does not apply to its state, is None."""

    state: State
    suite: str
    variant: str
    model: str
    data: str
    seed: int | None
    device: str
    folder: str | None  # its name
    reason: str = ""
    host: str | None = None
    phase: str | None = None
    steps_done: int | None = None
    steps: int | None = None
    step_ms: float | None = None
    steps_per_s: float | None = None
    passes_done: int | None = None
    passes: int | None = None
    elapsed_s: float | None = None
    pass_left_s: float | None = None  # of the running pass, by its own step time
    left_s: float | None = None  # of the cell, by what finished cells of the same suite, model and data took
    overdue: bool = False  # it runs and has taken longer than they did: nothing is known of the rest
    last_seen: str | None = None  # UTC


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteStatus:
    """All cells below some folders, those at work first, and what is left of them."""

    cells: tuple[CellStatus, ...]
    counts: dict[str, int]
    left_s: float | None  # of all cells that run or wait, at least where one is overdue; None before any has finished
    runners: int  # commands and workers that are alive


class Header(msgspec.Struct):
    """What a record says about its cell; the rest is skipped while it is read."""

    key: str
    suite: str
    variant: str
    model_name: str
    data_name: str
    seed: Count
    device: str
    status: Status
    reason: str
    started_at: str
    duration_s: Amount
    cell: msgspec.Raw

    def digest(self) -> str:
        """Of the configuration, as plans give it."""
        return config_digest(msgspec.json.decode(self.cell))


def is_of(header: Header | str, pulse: Pulse) -> bool:
    """Whether a record is what a pulse told of; which is the later one is no question for clocks, which are set."""
    return isinstance(header, Header) and header.started_at == pulse.started_at


def recorded(folder: str, header: Header | str) -> CellStatus:
    """A cell with a record; a text in its place says why it cannot be read."""
    folder = folder.encode("utf-8", "backslashreplace").decode()  # JSON has no place for a name that is no Unicode
    if isinstance(header, str):
        return CellStatus(
            state="unreadable", suite="", variant=folder, model="", data="", seed=None, device="", folder=folder,
            reason=f"cannot be read: {header}",
        )  # fmt: skip
    return CellStatus(
        state=header.status, suite=header.suite, variant=header.variant, model=header.model_name,
        data=header.data_name, seed=header.seed, device=header.device, folder=folder, reason=header.reason,
        elapsed_s=header.duration_s,
    )  # fmt: skip


def pulsing(pulse: Pulse, seen: str, alive: bool, durations: dict[tuple[str, str, str], float]) -> CellStatus:
    """A cell under way, or one whose writer has ended without a word."""
    cell = pulse.cell
    steps_left = max(0, pulse.total - pulse.done)  # none where a pass goes on beyond what it planned: nobody knows then
    pass_left_s = steps_left * pulse.step_ms / 1e3 if steps_left and pulse.step_ms is not None else None
    usual_s = durations.get((cell.suite, cell.model, cell.data))
    overdue = alive and usual_s is not None and usual_s <= pulse.elapsed_s
    left_s = None if usual_s is None or overdue else max(pass_left_s or 0.0, usual_s - pulse.elapsed_s)
    state: State = "stopped" if not alive else "waiting" if pulse.phase.startswith("waiting") else "running"
    return CellStatus(
        state=state, suite=cell.suite, variant=cell.variant, model=cell.model, data=cell.data, seed=cell.seed,
        device=pulse.device, folder=pulse.folder, reason="" if alive else f"last seen {seen} on {pulse.writer.host}",
        host=pulse.writer.host, phase=pulse.phase, steps_done=pulse.done if pulse.total else None,
        steps=pulse.total or None, step_ms=pulse.step_ms,
        steps_per_s=1e3 / pulse.step_ms if pulse.step_ms else None, passes_done=pulse.passes_done,
        passes=pulse.passes, elapsed_s=pulse.elapsed_s, pass_left_s=pass_left_s if alive else None,
        left_s=left_s if alive else None, overdue=overdue, last_seen=seen,
    )  # fmt: skip


def waiting(cell: PlannedCell, seen: str, alive: bool) -> CellStatus:
    """A cell that its command has not come to."""
    return CellStatus(
        state="queued", suite=cell.suite, variant=cell.variant, model=cell.model, data=cell.data, seed=cell.seed,
        device=cell.device, folder=cell.folder, last_seen=seen,
        reason="" if alive else f"its run ended, last seen {seen}: run the suite again to go on",
    )  # fmt: skip


def usual_durations(headers: Iterable[Header]) -> dict[tuple[str, str, str], float]:
    """Median seconds of finished cells by suite, model and data."""
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for header in headers:
        if header.status == "ok":
            seconds.setdefault((header.suite, header.model_name, header.data_name), []).append(header.duration_s)
    return {key: statistics.median(values) for key, values in seconds.items()}


def all_left_s(cells: Sequence[CellStatus], durations: dict[tuple[str, str, str], float]) -> float | None:
    """Seconds until the last cell, at the pace of the finished ones and with as many at a time as run now.

    Of one that is overdue the running pass alone counts: the answer is a least one. None where that is all there is.
    """
    running = [cell for cell in cells if cell.state == "running"]
    suites = {cell.suite for cell in running}
    usual = [seconds for (suite, _, _), seconds in durations.items() if suite in suites]
    if not usual:
        return None
    usual_s = statistics.median(usual)
    work_s = sum(
        cell.pass_left_s or 0.0 if cell.overdue else cell.left_s if cell.left_s is not None else usual_s
        for cell in running
    )
    work_s += sum(
        durations.get((cell.suite, cell.model, cell.data), usual_s)
        for cell in cells
        if cell.state in ("queued", "waiting")
    )
    return work_s / len(running) if work_s else None


def order(cell: CellStatus) -> tuple[int, str, str, str, str, int]:
    """Those at work, those in trouble, those to come, those done."""
    ranks = {"running": 0, "waiting": 1, "stopped": 2, "queued": 4, "diverged": 5, "ok": 6}
    return ranks.get(cell.state, 3), cell.suite, cell.model, cell.data, cell.variant, cell.seed or 0
