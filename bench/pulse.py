"""What a running suite leaves for ``metagrad-bench status``: a plan of its cells, and a pulse for each cell that runs.

Both lie in hidden folders beside the cells, are written whole or not at all, and are gone when their work has ended; a
finished cell is told by its record alone. Nothing that is measured waits for them: where they cannot be written, status
knows less. A thread touches the file every few seconds: one that nobody touches tells of a runner that was killed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec

from bench.config import CellConfig, as_plain
from bench.records.write import RECORD_FILE

PLANS = ".plans"
PULSES = ".pulses"
BEAT_S = 5.0  # how often a file is touched
STALE_S = 60.0  # untouched for so long, its writer counts as gone
DAY_S = 86400.0  # a file of another machine that nobody touched for so long is nobody's, whatever the clocks say
WRITE_S = 1.0  # how often a pulse is written at most

# What a file may say: numbers that can be reckoned with, so that one of somebody else's is refused where it is read.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e12)]  # s or ms: thirty thousand years at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """The process that writes; only on the same machine, since the same boot, does its id mean anything."""

    host: str
    machine: str  # boot and process namespace; "" where the system does not tell
    pid: int
    started_ticks: int  # tells it from a later process of the same id; 0 where the system does not tell


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    """A cell that a command is going to run."""

    suite: str
    variant: str
    model: str
    data: str
    seed: Count
    device: str  # as configured
    digest: str  # of its configuration
    folder: str | None = None  # name of its folder; None where another machine decides it


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cells of one command, those of one suite folder."""

    created_at: str  # UTC
    launcher: str
    fresh: bool
    writer: Writer
    cells: tuple[PlannedCell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """Where a running cell stands."""

    folder: str
    cell: PlannedCell
    device: str  # as found
    writer: Writer
    started_at: str  # UTC
    elapsed_s: Amount
    phase: str = "starting"
    done: Count = 0  # steps of the phase
    total: Count = 0  # 0 where the phase does not count
    step_ms: Amount | None = None
    passes_done: Count = 0
    passes: Count = 1


_plans = msgspec.json.Decoder(Plan)


def config_digest(plain: dict[str, Any]) -> str:
    """Sixteen hex digits over a cell's configuration, as a record holds it, the same on every machine."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def planned(cell: CellConfig, folder: str | None = None) -> PlannedCell:
    """A cell as a plan lists it."""
    return PlannedCell(
        suite=cell.suite_name,
        variant=cell.variant_name,
        model=cell.model.name,
        data=cell.data.name,
        seed=cell.seed,
        device=cell.device,
        digest=config_digest(as_plain(cell)),
        folder=folder,
    )


def this_writer() -> Writer:
    """This process."""
    pid = os.getpid()
    return Writer(host=socket.gethostname(), machine=this_machine(), pid=pid, started_ticks=started_ticks(pid))


def this_machine() -> str:
    """The boot and the process namespace in which a process id means what it means here; "" where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def started_ticks(pid: int) -> int:
    """When a process started, in ticks since boot, which no change of the clock moves; 0 where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


class Beating:
    """A file that a thread keeps touching until the block ends, which removes it unless ``keep`` is set."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is written by ``write``."""
        self.path = path
        self.keep = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="pulse")

    def __enter__(self) -> Self:
        """Start touching."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop, and remove the file."""
        self._stop.set()
        self._thread.join()
        if not self.keep:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def write(self, value: Any) -> None:
        """Replace the file's content; not flushed to disk, since a power cut ends what it tells of."""
        temporary = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(value))
            temporary.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.path)


class CellPulse(Beating):
    """The pulse of one cell."""

    def __init__(self, folder: Path, cell: CellConfig, *, device: str) -> None:
        """Name the cell.

        Args:
            folder: the cell's own; the pulse lies in a hidden folder beside it.
            cell: its configuration.
            device: on which it runs.
        """
        super().__init__(folder.parent / PULSES / f"{folder.name}.json")
        self.started_at = utc_now()  # the cell's record says the same, which tells it from an earlier one
        self._begun = time.monotonic()
        self._written = -WRITE_S
        self._facts: dict[str, Any] = {
            "folder": folder.name, "cell": planned(cell, folder.name), "device": device, "writer": this_writer(),
            "started_at": self.started_at,
        }  # fmt: skip
        self._last: dict[str, Any] = {}

    def __enter__(self) -> Self:
        """Write it for the first time."""
        self.update()
        return super().__enter__()

    def update(self, **standing: Any) -> None:
        """Where the cell stands: fields of ``Pulse``; written at once where the phase changes, else once a second."""
        if self._stop.is_set():
            return
        now = time.monotonic()
        changed = standing.get("phase") != self._last.get("phase")
        self._last = standing
        if changed or now - self._written >= WRITE_S:
            self._written = now
            self.write(Pulse(**self._facts, elapsed_s=round(now - self._begun, 1), **standing))


@contextlib.contextmanager
def announced(folders: Sequence[tuple[CellConfig, Path | None]], *, launcher: str) -> Iterator[None]:
    """Plans of a command's cells, one in each suite's folder, until all of them have records.

    Args:
        folders: each cell with its folder; None where another machine decides it.
        launcher: as the reader knows it.
    """
    suites: dict[Path, list[tuple[CellConfig, Path | None]]] = {}
    for cell, folder in folders:
        suites.setdefault(Path(cell.output_dir) / cell.suite_name, []).append((cell, folder))
    with contextlib.ExitStack() as stack:
        beating = []
        for suite, cells in suites.items():
            name = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.json"
            listed = tuple(planned(cell, None if folder is None else folder.name) for cell, folder in cells)
            _remove_replaced(suite, listed)
            plan = stack.enter_context(Beating(suite / PLANS / name))
            plan.keep = True
            fresh = any(cell.fresh for cell, _ in cells)
            plan.write(Plan(created_at=utc_now(), launcher=launcher, fresh=fresh, writer=this_writer(), cells=listed))
            beating.append(plan)
        yield
        for plan in beating:
            plan.keep = False  # the run came to its end: what it left are records


def _remove_replaced(suite: Path, cells: Sequence[PlannedCell]) -> None:
    """Delete plans of killed commands whose cells are planned again or have a record: nobody else ever would."""
    again = {cell.digest for cell in cells}
    machine = this_machine()
    for path in sorted((suite / PLANS).glob("*.json")):
        try:
            if not path.is_file():  # a pipe would be waited for
                continue
            plan = _plans.decode(path.read_bytes())
            if plan.writer.machine == machine != "":
                gone = started_ticks(plan.writer.pid) != plan.writer.started_ticks
            else:
                gone = time.time() - path.stat().st_mtime > DAY_S
            if gone and all(cell.digest in again or _is_recorded(suite, cell) for cell in plan.cells):
                path.unlink()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue  # removed by another command, or nobody's of us


def _is_recorded(suite: Path, cell: PlannedCell) -> bool:
    return cell.folder is not None and (suite / cell.folder / RECORD_FILE).is_file()


def utc_now() -> str:
    """The time of now, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
