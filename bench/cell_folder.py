"""A cell's folder: who may fill it, what becomes of an earlier one, and where its results go if it takes none.

Nothing measured is lost with the disk: results that the output folder does not take are written to a spare place below
the temporary folder, where the next run of the cell finds them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from bench.errors import RecordError, system_reason
from bench.files import write_whole
from bench.keys import is_folder_of
from bench.printable import show_path
from bench.records.curves import write_curves
from bench.records.find import SUPERSEDED
from bench.records.read import read_record
from bench.records.schema import FINISHED, HypernetPoint, HypernetSurface, RunRecord
from bench.records.surface import write_surface
from bench.records.write import RECORD_FILE, write_record

_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFiles:
    """All that a cell leaves."""

    record: RunRecord
    config_yaml: str
    losses: tuple[float, ...]
    hypernet_points: tuple[HypernetPoint, ...]
    surface: HypernetSurface | None
    tracebacks: tuple[str, ...]
    made_by_passes: tuple[Path, ...]  # files and folders to lie beside the record


@contextlib.contextmanager
def only_here(path: Path, *, on_wait: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time fill a folder or write a file; the lock is a hidden file beside it.

    Args:
        path: of the folder or file; what it lies in is made.
        on_wait: called once if another process holds the lock.

    Raises:
        RecordError: the lock cannot be made.
    """
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            on_wait()
            lock.acquire(poll_interval=_POLL_S)
    except (OSError, NotImplementedError) as error:  # an older filelock's where a file system has no flock
        why = system_reason(error)
        raise RecordError(f"{show_path(path.parent)} cannot be used ({why}): choose another output_dir.") from error
    try:
        yield
    finally:
        lock.release()


def find_finished(folder: Path) -> RunRecord | None:
    """The record of a cell that was measured to its end before; None if there is none, it failed or is another's."""
    if not (folder / RECORD_FILE).is_file():
        return None
    try:
        record = read_record(folder / RECORD_FILE)
    except RecordError:
        return None  # damaged or newer: measured again, the old folder is set aside
    return record if record.status in FINISHED and is_folder_of(folder.name, record.key) else None


def save(folder: Path, files: CellFiles) -> None:
    """Write a cell's folder, the record last; an earlier folder is set aside first.

    Raises:
        RecordError: it cannot be written; the sentence says where the results went instead.
    """
    spare = spare_folder(folder)
    try:
        _write(folder, files)
        shutil.rmtree(spare, ignore_errors=True)  # of an earlier, failed attempt
    except RecordError as error:
        try:
            root = spare.parents[1]
            root.mkdir(mode=0o700, exist_ok=True)
            if root.lstat().st_uid != os.getuid():
                raise error from None
            _write(spare, files)
        except (OSError, RecordError):
            raise error from None
        raise RecordError(f"{error} What was measured is kept in {spare}, where the next run finds it.") from error


def fetch_spare(folder: Path) -> None:
    """Bring in what an earlier run could not write here; what cannot be brought stays where it is."""
    spare = spare_folder(folder)
    try:
        ours = stat.S_ISDIR(spare.lstat().st_mode) and spare.lstat().st_uid == os.getuid()
        if not ours or find_finished(spare) is None or find_finished(folder) is not None:
            return
        set_aside(folder)
        folder.mkdir(parents=True)
        for path in sorted(spare.iterdir(), key=lambda path: path.name == RECORD_FILE):  # the record last
            _copy(path, folder / path.name)
        shutil.rmtree(spare)
    except (OSError, RecordError):
        return


def spare_folder(folder: Path) -> Path:
    """Where a cell's results go if its own folder takes none: below the temporary folder, of this user alone."""
    place = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"metagrad-bench-spare-{os.getuid()}" / place / folder.name


def set_aside(folder: Path) -> None:
    """An earlier attempt is kept, out of the reports' way: records are never edited.

    Raises:
        RecordError: it cannot be moved.
    """
    if not os.path.lexists(folder):
        return
    superseded = folder.parent / SUPERSEDED
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S")
    try:
        superseded.mkdir(exist_ok=True)
        # Not only the time: clocks are set back.
        folder.rename(superseded / f"{folder.name}-{stamp}-{secrets.token_hex(3)}")
    except OSError as error:
        raise RecordError(f"{show_path(folder)} cannot be set aside ({system_reason(error)}): move it away.") from error


def _write(folder: Path, files: CellFiles) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        set_aside(folder)
        folder.mkdir()
        if files.tracebacks:
            write_whole(folder / "traceback.txt", "\n".join(files.tracebacks).encode())
        for path in files.made_by_passes:
            _copy(path, folder / path.name)
    except OSError as error:
        raise RecordError(
            f"{show_path(folder)} cannot be written ({system_reason(error)}): make room or choose another output_dir."
        ) from error
    write_curves(folder, files.record, files.losses, files.hypernet_points)
    if files.surface is not None:
        write_surface(folder, files.surface)
    # The record comes last: a folder with a record is whole.
    write_record(folder, files.record, config_yaml=files.config_yaml)


def _copy(path: Path, target: Path) -> None:
    """A file, or a folder with all that is in it."""
    if path.is_dir():
        target.mkdir()
        for inner in path.iterdir():
            _copy(inner, target / inner.name)
    else:
        write_whole(target, path.read_bytes())
