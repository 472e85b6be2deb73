"""Run records read from folders; a file that is no readable record is named with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import NothingMeasuredError
from bench.records.schema import RunRecord
from bench.records.store import find_records, show_path

MAX_FILES = 20  # named of one folder


@dataclass(frozen=True, slots=True)
class UnreadFile:
    """A file that was not a readable record, by its name below the folder that was asked for."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Folder:
    """Where a record lies: the folder below the one that was asked for, and the files in it by name."""

    name: str  # "" for the folder that was asked for: its own name may be anything
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a report is made of: records in reading order and the files that could not be read."""

    records: tuple[RunRecord, ...]
    problems: tuple[UnreadFile, ...]
    folders: Mapping[str, Folder] = field(default_factory=dict)  # by the record's key


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
    folders = {one.record.key: _folder(one.path, roots) for one in found}
    return Loaded(records=tuple(records), problems=unread, folders=folders)


def _folder(record_file: Path, roots: Sequence[Path]) -> Folder:
    folder = record_file.parent
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    shown = names[:MAX_FILES] + ([f"and {len(names) - MAX_FILES} more"] if len(names) > MAX_FILES else [])
    below = any(root.is_dir() and folder != root and folder.is_relative_to(root) for root in roots)
    return Folder(name=_name_below(folder, roots) if below else "", files=tuple(shown))


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
