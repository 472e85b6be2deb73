"""A baseline: what a candidate is compared with, as one JSON file to review and to keep in a repository.

One entry per cell and machine. The file depends on the records alone: equal records give equal bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.errors import RecordError
from bench.printable import show_path
from bench.records.entry import Entry, cell_label, check_samples, config_digest, entry_order, shared_parts
from bench.records.read import check_header, read_bytes
from bench.records.text import pretty_json
from bench.records.write import RECORD_FILE, write_atomic

BASELINE_VERSION = 2
RENEW = "write it again with `metagrad-bench baseline CANDIDATE -o FILE`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A file of entries."""

    schema_version: int
    created: str  # UTC; the start of the newest run in it
    entries: tuple[Entry, ...]


class _File(msgspec.Struct):
    """A baseline whose entries are still text."""

    schema_version: int
    created: str
    entries: list[msgspec.Raw]


_files = msgspec.json.Decoder(_File)
_entries = msgspec.json.Decoder(Entry)


def encode_baseline(entries: Iterable[Entry]) -> Iterator[bytes]:
    """A baseline as indented JSON, entries sorted, one line per repeat; entry by entry, since they may be many.

    Args:
        entries: at least one.
    """
    ordered = sorted(entries, key=entry_order)
    assert ordered, "a baseline needs an entry"
    created = max(entry.started_at for entry in ordered)
    frame = Baseline(schema_version=BASELINE_VERSION, created=created, entries=())
    head, _, tail = pretty_json(msgspec.json.encode(frame)).rpartition(b"[]")
    before = head + b"[\n"
    for entry in ordered:
        text = pretty_json(msgspec.json.encode(entry)).rstrip()
        yield before + b"    " + text.replace(b"\n", b"\n    ")
        before = b",\n"
    yield b"\n  ]" + tail


def write_baseline(path: Path, entries: Iterable[Entry]) -> None:
    """Write a baseline atomically in place of an older one; a link is followed.

    Raises:
        RecordError: if it cannot be written; the older one stays as it was.
    """
    write_atomic(Path(os.path.realpath(path)), encode_baseline(entries), replace=True)


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        RecordError: it cannot be read, is no baseline, of a newer version, damaged or edited by hand so that it
            contradicts itself; the message says where.
    """
    data, name = read_bytes(path), show_path(path)

    def check_version() -> None:
        check_header(
            path, data, key="entries", kind="a baseline", newest=BASELINE_VERSION, oldest=BASELINE_VERSION, renew=RENEW
        )

    try:
        file = _files.decode(data)
        if file.schema_version != BASELINE_VERSION:
            check_version()
        entries = tuple(_decode_entries(file.entries))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        check_version()
        raise RecordError(f"The baseline {name} is damaged: {error}; restore it or write it again.") from error
    try:
        json.loads(_without_entries(data, file.entries), object_pairs_hook=_refuse_twins)
        _check(entries, file.entries)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"The baseline {name} is damaged: {error}; restore it or write it again.") from error
    return Baseline(schema_version=file.schema_version, created=file.created, entries=entries)


def _decode_entries(texts: Iterable[msgspec.Raw]) -> Iterator[Entry]:
    """Entries one by one, what they have in common shared; an error names its place in the file."""
    for number, text in enumerate(texts):
        try:
            entry = _entries.decode(text)
        except msgspec.MsgspecError as error:
            place = f"`$.entries[{number}]"
            raise type(error)(
                str(error).replace("`$", place) if "`$" in str(error) else f"{error} - at {place}`"
            ) from None
        yield dataclasses.replace(entry, environment=shared_parts(entry.environment), config=shared_parts(entry.config))


def _without_entries(data: bytes, texts: Iterable[msgspec.Raw]) -> bytes:
    """What stands around the entries."""
    around, start = [], 0
    for text in map(bytes, texts):
        at = data.index(text, start)
        around.append(data[start:at] + b"0")
        start = at + len(text)
    return b"".join(around) + data[start:]


def is_baseline(path: Path) -> bool:
    """Whether a path is a file that calls itself a baseline, whole or not."""
    if not path.is_file():
        return False
    try:
        return b'"entries"' in path.read_bytes() and path.name != RECORD_FILE
    except OSError:
        return False


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that stands twice in one object, as a careless merge leaves it."""
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twin!a} stands twice in one object")
    return content


def _check(entries: Sequence[Entry], texts: Sequence[msgspec.Raw]) -> None:
    """Refuse entries that contradict themselves or each other."""
    seen = set()
    for number, (entry, text) in enumerate(zip(entries, texts, strict=True)):
        place = f"`$.entries[{number}]`"
        json.loads(bytes(text), object_pairs_hook=_refuse_twins)
        identity = (entry.config_digest, entry.fingerprint)
        if identity in seen:
            raise ValueError(f"{place} is a second entry for {cell_label(entry)!a} on {entry.fingerprint!a}")
        seen.add(identity)
        if config_digest(entry.config) != entry.config_digest:
            raise ValueError(f"{place} has a config that does not belong to its config_digest (edited by hand?)")
        try:
            check_samples(entry)
        except ValueError as error:
            raise ValueError(f"{place} {error}") from error
