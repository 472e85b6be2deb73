"""Records found by walking folders: each once, of several with one key the newest, what cannot be read named."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bench.errors import RecordError, system_reason
from bench.printable import show_path
from bench.records.read import read_outline, read_record
from bench.records.schema import RunRecord
from bench.records.write import RECORD_FILE

SUPERSEDED = "superseded"  # a folder of runs that were measured again; never looked into

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """A record and the file that it was read from."""

    path: Path
    record: RunRecord


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that was left aside, with the sentence that says why."""

    path: Path
    reason: str
    unreadable: bool  # False: it could be read, but a newer record of the same key stands in its place


def find_records(paths: Iterable[Path], *, check_profiles: bool = False) -> tuple[list[Found], list[Problem]]:
    """Read all records in or below the given files and folders, in the order of their paths.

    Hidden folders and folders named ``superseded`` are skipped, links are followed once, and what cannot be read is
    reported while the rest is returned. Of several different records with one key, the one started last is returned
    and the others are reported; exact copies count once. A record's profile is read when it is asked for, and may then
    raise ``StoredProfileError``: its file was moved since, or no such profile was ever written by this program.

    Args:
        paths: files and folders.
        check_profiles: read every profile at once; one that cannot be is a problem as any.

    Raises:
        RecordError: if one of the given paths does not exist.
    """
    known: dict[tuple[str, bytes], Any] = {}
    found, problems = _read_all(
        paths, lambda record: _with_shared_parts(record, known), read_record if check_profiles else read_outline
    )
    return [Found(path, record) for path, record in found], problems


def read_records(paths: Iterable[Path], take: Callable[[RunRecord], T]) -> tuple[list[tuple[Path, T]], list[Problem]]:
    """The same, but only what is taken from each record stays in memory: of 100,000 records a fraction.

    Args:
        paths: files and folders.
        take: called with each record as it is read, in the order of their paths; a RecordError of it makes the record
            an unreadable one.

    Raises:
        RecordError: if one of the given paths does not exist.
    """
    return _read_all(paths, take, read_outline)


def count_records(paths: Iterable[Path]) -> int:
    """How many records lie in or below the given files and folders; none of them is read.

    Args:
        paths: as ``find_records`` takes them; what is not there counts as none.
    """
    visited: set[tuple[int, int]] = set()
    return sum(sum(1 for _ in _walk(path, visited, [])) if path.is_dir() else path.exists() for path in paths)


def _read_all(
    paths: Iterable[Path], take: Callable[[RunRecord], T], read: Callable[[Path], RunRecord]
) -> tuple[list[tuple[Path, T]], list[Problem]]:
    files: list[Path] = []
    problems: list[Problem] = []
    visited: set[tuple[int, int]] = set()
    for path in paths:
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError) as error:
            raise RecordError(
                f"The path {show_path(path)} cannot be read: {system_reason(error)}; give a folder of runs."
            ) from error
        if stat.S_ISDIR(mode):
            files.extend(_walk(path, visited, problems))
        else:
            files.append(path)

    newest: dict[str, tuple[Path, str, T]] = {}  # by key: the file, when its run started, what was taken
    for path in sorted(set(files)):
        try:
            record = read(path)
        except RecordError as error:
            problems.append(Problem(path, str(error), unreadable=True))
            continue
        other = newest.get(record.key)
        if other is not None and _holds(other[0], record):
            continue
        try:
            this = (path, record.started_at, take(record))
        except RecordError as error:
            problems.append(Problem(path, f"{show_path(path)}: {error}", unreadable=True))
            continue
        if other is None:
            newest[record.key] = this
            continue
        first, last = sorted((other, this), key=lambda item: item[1])
        newest[record.key] = last
        reason = f"The record {show_path(first[0])} is left aside: {show_path(last[0])} has its key and is newer."
        problems.append(Problem(first[0], reason, unreadable=False))
    found = sorted(((path, taken) for path, _, taken in newest.values()), key=lambda item: item[0])
    return found, sorted(problems, key=lambda item: item.path)


def _with_shared_parts(record: RunRecord, known: dict[tuple[str, bytes], Any]) -> RunRecord:
    """A record whose model, machine and settings are those of the others where they are equal: half of its memory."""

    def share(name: str, part: Any) -> Any:
        return known.setdefault((name, msgspec.json.encode(part)), part) if part else part

    parts: dict[str, Any] = {name: share(name, getattr(record, name)) for name in ("model", "data", "method", "gemms")}
    for name in ("cell", "environment"):
        parts[name] = {
            key: share(key, part) if isinstance(part, dict | list) else part
            for key, part in getattr(record, name).items()
        }
    return dataclasses.replace(record, **parts)


def _holds(path: Path, record: RunRecord) -> bool:
    """Whether a file that was read before holds an equal record: a copy."""
    try:
        return read_record(path) == record
    except RecordError:
        return False  # gone since


def _walk(folder: Path, visited: set[tuple[int, int]], problems: list[Problem]) -> Iterator[Path]:
    """Yield the record files below a folder; each real folder is entered once, so that loops of links end."""
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                names = sorted((entry.is_symlink(), entry.name, _is_folder(entry)) for entry in entries)
            for _, name, is_folder in reversed(names):
                if name == RECORD_FILE:
                    yield current / name
                elif is_folder and not name.startswith(".") and name != SUPERSEDED:
                    pending.append(current / name)
        except OSError as error:
            reason = f"The folder {show_path(current)} cannot be read: {system_reason(error)}."
            problems.append(Problem(current, reason, unreadable=True))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False
