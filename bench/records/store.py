"""Records on disk: written once and atomically, read with exact errors, found by walking folders.

A run's folder holds ``config.yaml``, ``samples.csv`` and, last, ``record.json``: where that file is, the run is whole.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bench.errors import RecordError
from bench.files import write_whole
from bench.records.outline import StoredProfileError, decode_outline
from bench.records.plausible import find_implausible
from bench.records.schema import SCHEMA_VERSION, ProfileResult, RunRecord
from bench.records.text import is_as_written, pretty_json, sealed

RECORD_FILE = "record.json"
CONFIG_FILE = "config.yaml"
SAMPLES_FILE = "samples.csv"
SUPERSEDED = "superseded"  # a folder of runs that were measured again; never looked into
SAMPLE_COLUMNS = ("repeat", "index", "series", "metric", "value")

_decoder = msgspec.json.Decoder(RunRecord)
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


def write_record(folder: Path, record: RunRecord, *, config_yaml: str) -> Path:
    """Write a run's folder: the configuration, the samples and, last, the record.

    Args:
        folder: the run's own folder; made where it does not exist.
        record: finite numbers and plain values only.
        config_yaml: the composed configuration as text.

    Returns:
        The path of ``record.json``.

    Raises:
        RecordError: if the folder holds a record already, or cannot be written.
    """
    target = folder / RECORD_FILE
    data = encode_record(record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = os.path.lexists(target)
    except OSError as error:
        raise RecordError(_cannot_write(target, error)) from error
    if taken:
        raise RecordError(_already_there(target))
    write_atomic(folder / CONFIG_FILE, config_yaml.encode(), replace=True)
    if record.timing is not None:
        write_samples(folder, record)
    write_atomic(target, sealed(data), replace=False)
    return target


def write_samples(folder: Path, record: RunRecord) -> Path:
    """Write the raw timing samples as one flat table (``samples.csv``).

    Columns: ``repeat`` and ``index`` count processes and steps from 0, ``series`` is ``cell`` or ``fp32``, ``metric``
    carries its unit (``step_ms``, ``forward_ms``), ``value`` is exact to the last bit.

    Raises:
        RecordError: if it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SAMPLE_COLUMNS)
    writer.writerows(_sample_rows(record))
    target = folder / SAMPLES_FILE
    write_atomic(target, text.getvalue().encode(), replace=True)
    return target


def encode_record(record: RunRecord) -> bytes:
    """Encode a record as indented JSON, a list of numbers to a line; ``Absent`` reads ``{"reason": ...}``.

    Raises:
        RecordError: if a number is not finite or a text is no Unicode; the message names the field.
    """
    _check_values(record, "$")
    data = pretty_json(msgspec.json.encode(record))
    try:
        _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise AssertionError(f"a record must read back: {error}") from error
    return data


def write_atomic(path: Path, data: bytes | Iterable[bytes], *, replace: bool) -> None:
    """Write a whole file or none: a temporary file beside it, flushed to disk, then moved into place.

    Args:
        path: in a folder that exists.
        data: the content, or its parts one after another.
        replace: whether an existing file may be replaced; otherwise the first writer wins, also across processes.

    Raises:
        RecordError: if it exists and must not be replaced, or cannot be written; nothing is left behind.
    """
    try:
        write_whole(path, data, replace=replace)
    except FileExistsError as error:
        raise RecordError(_already_there(path)) from error
    except OSError as error:
        raise RecordError(_cannot_write(path, error)) from error


def read_record(path: Path) -> RunRecord:
    """Read one ``record.json``.

    Raises:
        RecordError: the file cannot be read, is empty, no JSON, of something else, of a newer version, or holds a
            value of the wrong type; the message says which and where.
    """
    data = read_bytes(path)
    sealed_by_us = _check_seal(path, data)
    record = _decoded(path, data, _decoder.decode)
    if not sealed_by_us:
        _check_numbers(path, record)
    return record


def _read_outline(path: Path) -> RunRecord:
    """The same, but a profile that the record's SHA-256 vouches for stays in the file until it is asked for."""
    data = read_bytes(path)
    if not _check_seal(path, data):
        record = _decoded(path, data, _decoder.decode)
        _check_numbers(path, record)
        return record
    return _decoded(path, data, lambda text: decode_outline(text, lambda key: _read_profile(path, key)))


def _check_numbers(path: Path, record: RunRecord) -> None:
    """Look through a record that no SHA-256 vouches for.

    Raises:
        RecordError: it holds a number that nothing can have measured.
    """
    found = find_implausible(record)
    if found:
        raise RecordError(
            f"The record {show_path(path)} is damaged: {show_text(found)}, which nothing can measure; run its cell "
            "again."
        )


def _check_seal(path: Path, data: bytes) -> bool:
    """Whether a record holds the SHA-256 of its content; older ones hold none.

    Raises:
        RecordError: it holds another one.
    """
    as_written = is_as_written(data)
    if as_written is False:
        raise RecordError(
            f"The record {show_path(path)} is damaged: it is not what was written (its SHA-256 differs); run its cell "
            "again."
        )
    return as_written is True


def _read_profile(path: Path, key: str) -> ProfileResult:
    """The profile of a record that was read before."""
    try:
        record = read_record(path)
    except RecordError as error:
        raise StoredProfileError(str(error)) from error
    if record.key != key or record.profile is None:
        raise StoredProfileError(f"The record {show_path(path)} changed while it was in use; give the command again.")
    return record.profile


def _decoded(path: Path, data: bytes, decode: Callable[[bytes], RunRecord]) -> RunRecord:
    try:
        record = decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        check_header(path, data, key="key", kind="a record", newest=SCHEMA_VERSION)
        raise RecordError(f"The record {show_path(path)} is damaged: {error}; run its cell again.") from error
    if record.schema_version != SCHEMA_VERSION:
        check_header(path, data, key="key", kind="a record", newest=SCHEMA_VERSION)
    return record


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
        paths, lambda record: _with_shared_parts(record, known), read_record if check_profiles else _read_outline
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
    return _read_all(paths, take, _read_outline)


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
                f"The path {show_path(path)} cannot be read: {_why(error)}; give a folder of runs."
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


def count_records(paths: Iterable[Path]) -> int:
    """How many records lie in or below the given files and folders; none of them is read.

    Args:
        paths: as ``find_records`` takes them; what is not there counts as none.
    """
    visited: set[tuple[int, int]] = set()
    return sum(sum(1 for _ in _walk(path, visited, [])) if path.is_dir() else path.exists() for path in paths)


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


def read_bytes(path: Path) -> bytes:
    """Read a regular file.

    Raises:
        RecordError: if it is no regular file, cannot be read or is empty.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise RecordError(
                f"The path {show_path(path)} is not a regular file; give a file that metagrad-bench wrote."
            )
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise RecordError(f"The file {show_path(path)} cannot be read: {_why(error)}.") from error
    if not data or data.isspace():
        raise RecordError(f"The file {show_path(path)} is empty; write it again.")
    return data


def check_header(
    path: Path, data: bytes, *, key: str, kind: str, newest: int, oldest: int = 0, renew: str = ""
) -> None:
    """Say what is wrong with a file that does not decode, if its first level shows that already.

    Args:
        path: for the message.
        data: the content.
        key: a field beside ``schema_version`` that tells our files from others.
        kind: what the file should be, with its article.
        newest: the newest schema version that can be read.
        oldest: the oldest one.
        renew: how to come by a file of today's version.

    Raises:
        RecordError: not JSON, not of ours, or of another schema version.
    """
    name = show_path(path)
    try:
        header = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.ValidationError, RecursionError):
        raise RecordError(f"The file {name} is not {kind} of metagrad-bench.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"The file {name} is not valid JSON (cut off?): {error}; write it again.") from None
    try:
        version = msgspec.json.decode(header["schema_version"], type=int)
    except (KeyError, msgspec.MsgspecError):
        version = 0
    if version > newest:
        raise RecordError(
            f"The file {name} has schema version {version} and up to {newest} can be read; update metagrad-bench."
        )
    if key in header and "schema_version" in header and 0 <= version < oldest:
        raise RecordError(f"The file {name} has schema version {version} of an older metagrad-bench; {renew}.")
    if key not in header or version < 1:
        raise RecordError(f"The file {name} is not {kind} of metagrad-bench.")


def show_path(path: Path) -> str:
    """A path as it may be printed."""
    return show_text(str(path))


def show_text(text: str) -> str:
    """Escape the characters that a terminal would obey or cannot encode."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _sample_rows(record: RunRecord) -> Iterator[tuple[int, int, str, str, float]]:
    assert record.timing is not None, "a record without timing has no samples"
    for number, repeat in enumerate(record.timing.repeats):
        columns = [("cell", "step_ms", repeat.step_ms), ("fp32", "step_ms", repeat.fp32_step_ms)]
        columns += [("cell", f"{name}_ms", samples) for name, samples in repeat.phases_ms.items()]
        for series, metric, samples in columns:
            for index, value in enumerate(samples):
                yield number, index, series, metric, value


def _check_values(value: Any, field: str) -> None:
    """Walk a record; what JSON would silently change is refused with its field's name."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise RecordError(f"{field} of the record is not valid Unicode: {value!a}.")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise RecordError(f"{field} of the record is {value}, and a record holds finite numbers only.")
    elif dataclasses.is_dataclass(value):
        for part in dataclasses.fields(value):
            _check_values(getattr(value, part.name), f"{field}.{part.name}")
    elif isinstance(value, dict):
        for name, item in value.items():
            assert isinstance(name, str), f"{field} has the key {name!r}, not a text"
            _check_values(name, field)
            _check_values(item, f"{field}.{name}")
    elif isinstance(value, (list, tuple)):
        if all(map(_is_finite_float, value)):  # samples, by the thousand
            return
        for index, item in enumerate(value):
            _check_values(item, f"{field}[{index}]")
    else:
        assert value is None or isinstance(value, (bool, int)), f"{field} is a {type(value).__name__}, no plain value"


def _is_finite_float(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


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
            reason = f"The folder {show_path(current)} cannot be read: {_why(error)}."
            problems.append(Problem(current, reason, unreadable=True))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _already_there(path: Path) -> str:
    return f"The file {show_path(path)} exists already and is never overwritten; move it away or write elsewhere."


def _cannot_write(path: Path, error: OSError) -> str:
    return f"The file {show_path(path)} cannot be written: {_why(error)}; free space or choose another place."


def _why(error: Exception) -> str:
    """The system's own words for an error, without the path that it repeats."""
    return str(getattr(error, "strerror", None) or error)
