"""Records read from disk: what is wrong with a file is told exactly, in one sentence."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.errors import RecordError, system_reason
from bench.printable import show_path, show_text
from bench.records.encoding import decode_record
from bench.records.outline import StoredProfileError, decode_outline
from bench.records.plausible import find_implausible
from bench.records.schema import SCHEMA_VERSION, ProfileResult, RunRecord
from bench.records.text import is_as_written


def read_record(path: Path) -> RunRecord:
    """Read one ``record.json``.

    Raises:
        RecordError: the file cannot be read, is empty, no JSON, of something else, of a newer version, or holds a
            value of the wrong type; the message says which and where.
    """
    data = read_bytes(path)
    sealed_by_us = _check_seal(path, data)
    record = _decoded(path, data, decode_record)
    if not sealed_by_us:
        _check_numbers(path, record)
    return record


def read_outline(path: Path) -> RunRecord:
    """The same, but a profile that the record's SHA-256 vouches for stays in the file until it is asked for.

    Raises:
        RecordError: as ``read_record``; a profile that cannot be read later raises ``StoredProfileError``.
    """
    data = read_bytes(path)
    if not _check_seal(path, data):
        record = _decoded(path, data, decode_record)
        _check_numbers(path, record)
        return record
    return _decoded(path, data, lambda text: decode_outline(text, lambda key: _read_profile(path, key)))


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
        raise RecordError(f"The file {show_path(path)} cannot be read: {system_reason(error)}.") from error
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


def _decoded(path: Path, data: bytes, decode: Callable[[bytes], RunRecord]) -> RunRecord:
    try:
        record = decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        check_header(path, data, key="key", kind="a record", newest=SCHEMA_VERSION)
        raise RecordError(f"The record {show_path(path)} is damaged: {error}; run its cell again.") from error
    if record.schema_version != SCHEMA_VERSION:
        check_header(path, data, key="key", kind="a record", newest=SCHEMA_VERSION)
    return record


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
