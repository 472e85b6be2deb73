"""Run records read from folders; a file that is no readable record is named with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import NothingMeasuredError, RecordError
from bench.printable import show_path
from bench.records.find import count_records, find_records
from bench.records.schema import RunRecord

MAX_FILES = 20  # named of one folder
MOST_RECORDS = 20_000  # of one page: nobody reads a longer one, and all of them are in memory meanwhile


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
    folders: Mapping[str, Path] = field(default_factory=dict)  # of each record's files, by its key
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # named from the folder that was asked for


def load_records(paths: Sequence[Path], *, check_profiles: bool = False) -> Loaded:
    """Read every record below the paths; of several with one key the one started last counts.

    Args:
        paths: files or folders, searched to any depth.
        check_profiles: read every profile at once, not when it is asked for: ``find_records`` says what that is worth.

    Raises:
        RecordError: if a path cannot be read, or there are more records than one page shows.
        NothingMeasuredError: if no record was found.
    """
    roots = [Path(path) for path in paths]
    count = count_records(roots)
    if count > MOST_RECORDS:
        raise RecordError(
            f"there are {count:,} records, and one report shows up to {MOST_RECORDS:,}: name some of the folders, such "
            "as one suite's or one variant's (out/sweep/fp32-*)"
        )
    found, problems = find_records(roots, check_profiles=check_profiles)
    unread = tuple(
        UnreadFile(name=_name_below(p.path, roots), reason=_without_folders(p.reason, p.path, roots)) for p in problems
    )
    if not found:
        names = ", ".join(str(root) for root in roots)
        detail = f" ({unread[0].name}: {unread[0].reason})" if unread else ""
        raise NothingMeasuredError(f"no run record was found in {names}{detail}: run `metagrad-bench run` first")
    records = sorted((one.record for one in found), key=lambda record: (record.started_at, record.key))
    folders = {one.record.key: one.path.parent for one in found}
    asked = set(roots)  # thousands, where a shell wrote them: out/sweep/fp32-*
    files = {key: _files(folder, asked) for key, folder in folders.items()}
    return Loaded(records=tuple(records), problems=unread, folders=folders, files=files)


def _files(folder: Path, roots: Set[Path]) -> tuple[str, ...]:
    """Files of a folder, by name below the folder that was asked for: that one's own name may be a person's."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    below = next((place for place in (folder, *folder.parents) if place in roots), folder)
    shown = [(folder.relative_to(below) / name).as_posix() for name in names[:MAX_FILES]]
    return (*shown, f"and {len(names) - MAX_FILES} more") if len(names) > MAX_FILES else tuple(shown)


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
