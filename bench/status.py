"""Where suites stand, read from their folders: records, pulses of running cells, plans of what is to come.

Reads only. A finished cell is one with a record, and a record is read once, since it is never edited; so a look at a
folder that was looked at before costs a listing and the few files that changed.
"""

from __future__ import annotations

import datetime as dt
import errno
import os
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.cell_status import (
    CellStatus,
    Header,
    SuiteStatus,
    all_left_s,
    is_of,
    order,
    pulsing,
    recorded,
    usual_durations,
    waiting,
)
from bench.errors import RecordError, system_reason
from bench.printable import show_path
from bench.pulse import (
    PLANS,
    PULSES,
    STALE_S,
    Plan,
    Pulse,
    Writer,
    started_ticks,
    this_machine,
    utc_now,
)
from bench.records.find import SUPERSEDED
from bench.records.schema import FINISHED
from bench.records.write import RECORD_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Touch:
    """When a file was touched by its writer's clock, when we met it like that by ours, and how old it was then."""

    at_ns: int
    met_s: float
    age_s: float


_Live = dict[str, tuple[Pulse, str, bool]]  # by folder name: the pulse, when last touched, whether its writer is alive
_GONE = (errno.ENOENT, errno.ENOTDIR)
_UNREADABLE = (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_headers = msgspec.json.Decoder(Header)
_plans = msgspec.json.Decoder(Plan)
_pulses = msgspec.json.Decoder(Pulse)


class StatusReader:
    """Reads the same folders again and again."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Name the folders of runs, at any height.

        Raises:
            RecordError: one of them is not a folder, or cannot be read.
        """
        self.paths = [Path(path) for path in paths]
        for path in self.paths:
            if not path.is_dir():
                raise RecordError(f"{show_path(path)} is not a folder: give a folder of runs, such as out/demo.")
            if reason := _why_shut(path):
                raise RecordError(f"{show_path(path)} cannot be read ({reason}): ask for the right to.")
        self.machine = this_machine()
        self._records: dict[Path, Header | str] = {}  # by run folder; a text says why it cannot be read
        self._shut: dict[Path, str] = {}  # folders below that cannot be listed, and why: cells may be in them
        self._measured: set[Path] = set()  # run folders that had a pulse when we last looked
        self._digests: dict[Path, str] = {}
        self._touches: dict[Path, _Touch] = {}

    def read(self) -> SuiteStatus:
        """Look at all folders.

        Returns:
            Every cell that has a record, a pulse or a place in a plan.
        """
        suites: list[tuple[Path, list[Path], _Live]] = []
        found: dict[Path, Header | str] = {}
        before, self._measured = self._measured, set()
        for suite, runs in self._suites():
            pulses = self._read_pulses(suite)
            suites.append((suite, runs, pulses))
            self._measured |= {suite / name for name in pulses}
            for run in runs:
                anew = run in self._measured or run in before  # what was read beside a pulse may be the earlier record
                known = None if anew else self._records.get(run)
                found[run] = known if isinstance(known, Header) else self._shut.get(run) or self._read_record(run)
        self._records = found
        durations = usual_durations(header for header in found.values() if isinstance(header, Header))
        cells: list[CellStatus] = []
        runners = 0
        for suite, runs, pulses in suites:
            for run in runs:
                pulse = pulses.get(run.name)
                if pulse is not None and (is_of(found[run], pulse[0]) or not pulse[2]):
                    del pulses[run.name]  # its runner ended between the record and the pulse's removal
            queued, planners = self._queued(suite, runs, pulses)
            again = pulses.keys() | queued.keys()
            cells.extend(recorded(run.name, found[run]) for run in runs if run.name not in again)
            cells.extend(pulsing(pulse, seen, alive, durations) for pulse, seen, alive in pulses.values())
            cells.extend(queued.values())
            runners += planners + sum(alive for _, _, alive in pulses.values())
        counts: dict[str, int] = {}
        for cell in cells:
            counts[cell.state] = counts.get(cell.state, 0) + 1
        cells.sort(key=order)
        return SuiteStatus(cells=tuple(cells), counts=counts, left_s=all_left_s(cells, durations), runners=runners)

    def headers(self) -> list[tuple[Path, Header]]:
        """Records of the last reading, by run folder."""
        return [(run, header) for run, header in self._records.items() if isinstance(header, Header)]

    def _suites(self) -> list[tuple[Path, list[Path]]]:
        """Folders with runs, plans or pulses in them, each with its runs' folders."""
        suites: dict[Path, list[Path]] = {}
        pending = list(dict.fromkeys(path.absolute() for path in self.paths))
        known = self._records
        visited: set[tuple[int, int]] = set()
        self._shut = {}
        while pending:
            folder = pending.pop()
            if _has_record(folder):  # a run's own folder was named
                suites.setdefault(folder.parent, []).append(folder)
                continue
            try:
                place = folder.stat()
                if (place.st_dev, place.st_ino) in visited:
                    continue  # links may go in a circle
                visited.add((place.st_dev, place.st_ino))
                with os.scandir(folder) as entries:
                    names = [entry.name for entry in entries if _is_folder(entry)]
            except OSError as error:
                if error.errno not in _GONE:
                    self._shut[folder] = system_reason(error)
                    suites.setdefault(folder.parent, []).append(folder)
                continue
            for path in (folder / PLANS, folder / PULSES):
                if path.name in names:
                    runs = suites.setdefault(folder, [])
                    if reason := _why_shut(path):
                        self._shut[path] = reason
                        runs.append(path)
            for name in sorted(names):
                if name.startswith(".") or name == SUPERSEDED:
                    continue
                path = folder / name
                if path in known or _has_record(path):
                    suites.setdefault(folder, []).append(path)
                else:
                    pending.append(path)
        return [(suite, sorted(set(runs))) for suite, runs in sorted(suites.items())]

    def _read_record(self, run: Path) -> Header | str:
        try:
            header = _headers.decode(_read_file(run / RECORD_FILE))
            header.cell = header.cell.copy()  # a view would keep the whole file in memory
            return header
        except _UNREADABLE as error:
            return system_reason(error)

    def _read_pulses(self, suite: Path) -> _Live:
        """By folder name: the pulse, when it was last touched, and whether its writer is alive."""
        pulses = {}
        for path in _files(suite / PULSES):
            read = self._read_live(path, _pulses)
            if read is not None:
                pulse, seen, alive = read
                pulses[pulse.folder] = (pulse, seen, alive)
        return pulses

    def _queued(self, suite: Path, runs: Sequence[Path], pulses: _Live) -> tuple[dict[str, CellStatus], int]:
        """Planned cells that nobody works on or has finished, by folder or digest; how many of their commands live."""
        read = [found for path in _files(suite / PLANS) if (found := self._read_live(path, _plans)) is not None]
        settled: set[str] = set()
        if any(cell.folder is None for plan, _, _ in read for cell in plan.cells):
            settled = {pulse.cell.digest for pulse, _, _ in pulses.values()}
            settled |= {self._digest(run) for run in runs}
        queued: dict[str, CellStatus] = {}
        for plan, seen, alive in sorted(read, key=lambda item: str(item[0].created_at)):
            for cell in plan.cells:
                if cell.folder is None:
                    known = cell.digest in settled
                else:
                    known = cell.folder in pulses or self._is_finished(suite / cell.folder, plan, alive)
                if not known:
                    queued[cell.folder or cell.digest] = waiting(cell, seen, alive)
        return queued, sum(alive for _, _, alive in read)

    def _is_finished(self, run: Path, plan: Plan, alive: bool) -> bool:
        """Whether a planned cell has the record that its command wants; a command that ended wants nothing more."""
        header = self._records.get(run)
        # One of a time that is still to come is of before the clock was set back.
        if not isinstance(header, Header) or not alive or plan.created_at <= header.started_at <= utc_now():
            return header is not None
        return header.status in FINISHED and not plan.fresh

    def _digest(self, run: Path) -> str:
        if run not in self._digests:
            header = self._records[run]
            self._digests[run] = header.digest() if isinstance(header, Header) else ""
        return self._digests[run]

    def _read_live(self, path: Path, decoder: msgspec.json.Decoder[Any]) -> tuple[Any, str, bool] | None:
        """A plan or pulse, when it was last touched, and whether its writer is alive; None where it is gone or torn."""
        try:
            data = _read_file(path)
            touched_ns = path.stat().st_mtime_ns
            value = decoder.decode(data)
        except _UNREADABLE:
            return None
        return value, _moment(touched_ns), self._is_alive(path, value.writer, touched_ns)

    def _is_alive(self, path: Path, writer: Writer, touched_ns: int) -> bool:
        """The system knows a writer on this machine; of another's, touches tell, whatever its clock says."""
        if self.machine and writer.machine == self.machine:
            return started_ticks(writer.pid) == writer.started_ticks != 0
        now = time.monotonic()
        before = self._touches.get(path)
        if before is None:
            before = _Touch(at_ns=touched_ns, met_s=now, age_s=max(0.0, time.time() - touched_ns / 1e9))
        elif before.at_ns != touched_ns:
            before = _Touch(at_ns=touched_ns, met_s=now, age_s=0.0)  # touched while we looked on
        self._touches[path] = before
        return before.age_s + now - before.met_s < STALE_S


def _has_record(folder: Path) -> bool:
    """Whether a record is there, or may be: reading it says why nobody can tell."""
    try:
        (folder / RECORD_FILE).stat()
    except OSError as error:
        return error.errno not in _GONE
    return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere
        return False


def _why_shut(folder: Path) -> str:
    """Why a folder cannot be listed; empty where it can, or is gone."""
    try:
        os.scandir(folder).close()
    except OSError as error:
        return "" if error.errno in _GONE else system_reason(error)
    return ""


def _read_file(path: Path) -> bytes:
    """The content of a regular file; a pipe of that name would be waited for.

    Raises:
        OSError: it is another kind of file, or cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return path.read_bytes()


def _moment(at_ns: int) -> str:
    """A file's time in UTC; a file system takes times that no calendar has."""
    try:
        return dt.datetime.fromtimestamp(at_ns / 1e9, dt.UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return "at a time that no calendar has"


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError:
        return []


def match_cells(suite: Path, digests: Sequence[str]) -> list[Path | None]:
    """The folder that holds the newest record of each configuration, whatever machine it was measured on.

    Args:
        suite: folder of the suite.
        digests: of the configurations, as ``bench.pulse.config_digest`` gives them.

    Returns:
        A run's folder, or None, in the order of the digests.
    """
    reader = StatusReader([suite]) if suite.is_dir() else None
    if reader is not None:
        reader.read()
    newest: dict[str, tuple[str, Path]] = {}
    for run, header in reader.headers() if reader is not None else ():
        digest = header.digest()
        newest[digest] = max(newest.get(digest, ("", run)), (header.started_at, run))
    return [newest[digest][1] if digest in newest else None for digest in digests]
