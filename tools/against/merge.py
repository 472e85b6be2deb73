"""Records of several runs of one side -> one entry per cell, whose repeats are the runs in their order.

Both sides were asked for the same cells on the same machine by two versions of the code, so what only one of them
writes down (a setting or a property of the machine that the other does not know yet) cannot tell their cells apart.
It is left out on both sides, and said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.errors import RecordError
from bench.hardware.environment import FINGERPRINT_FIELDS, fingerprint
from bench.records.entry import Entry, Metric, entry_of
from bench.records.find import find_records
from bench.records.schema import STATUSES, RunRecord
from bench.units import Absent


def read_runs(folder: Path) -> list[list[RunRecord]]:
    """Read a side's records, run by run.

    Args:
        folder: holds ``run-1``, ``run-2``, ...

    Raises:
        RecordError: one cannot be read; comparing the rest would hide it.
    """
    runs = []
    for number in range(1, len(list(folder.glob("run-*"))) + 1):
        found, problems = find_records([folder / f"run-{number}"])
        unreadable = [problem.reason for problem in problems if problem.unreadable]
        if unreadable:
            raise RecordError(unreadable[0])
        runs.append([item.record for item in found])
    return runs


def align(
    base: Sequence[Sequence[RunRecord]], head: Sequence[Sequence[RunRecord]]
) -> tuple[list[list[RunRecord]], list[list[RunRecord]], tuple[str, ...]]:
    """Leave out of both sides' records what only one side's version knows.

    Returns:
        Both sides' records, run by run, and a sentence for what was left out.
    """
    sides = [[list(run) for run in side] for side in (base, head)]
    known = [_keys(record.cell for run in side for record in run) for side in sides]
    shown = [_fields(record.environment for run in side for record in run) for side in sides]
    if not all(known):
        return sides[0], sides[1], ()
    notes = []
    for what, (ours, theirs) in (("setting", known), ("property of the machine", shown)):
        for name, only in (("base", ours - theirs), ("head", theirs - ours)):
            if only:
                names = ", ".join(sorted(".".join(path) for path in only))
                notes.append(f"Only {name} knows the {what} {names}, so cells are told apart without it.")
    settings, fields = known[0] & known[1], shown[0] & shown[1]
    changed = shown[0] != shown[1]
    for side in sides:
        for run in side:
            run[:] = [_restricted(record, settings, fields if changed else None) for record in run]
    return sides[0], sides[1], tuple(notes)


def merged_entries(runs: Iterable[Iterable[RunRecord]]) -> tuple[Entry, ...]:
    """One entry per cell and machine: the repeats of all runs behind each other, the worst of their statuses."""
    grouped: dict[tuple[str, str], list[Entry]] = {}
    for run in runs:
        for entry in map(entry_of, run):
            grouped.setdefault((entry.config_digest, entry.fingerprint), []).append(entry)
    return tuple(merge(entries) for entries in grouped.values())


def merge(entries: Sequence[Entry]) -> Entry:
    """Entries of one cell as one.

    Args:
        entries: at least one, in the order in which they were measured.
    """
    worst = max(entries, key=lambda entry: STATUSES.index(entry.status))
    names = dict.fromkeys(name for entry in entries for name in entry.metrics)
    return dataclasses.replace(
        entries[-1],
        status=worst.status,
        reason=worst.reason,
        throttled_set_aside=sum(entry.throttled_set_aside for entry in entries),
        throttled_kept=sum(entry.throttled_kept for entry in entries),
        metrics={name: _joined([entry.metrics[name] for entry in entries if name in entry.metrics]) for name in names},
    )


def _joined(metrics: Sequence[Metric]) -> Metric:
    """Repeats behind each other; runs without a value add none."""
    repeats = tuple(repeat for metric in metrics if not isinstance(metric.samples, Absent) for repeat in metric.samples)
    return Metric(samples=repeats) if repeats else metrics[-1]


def _keys(configs: Iterable[dict[str, Any]]) -> set[tuple[str, ...]]:
    return {path for config in configs for path in _paths(config)}


def _paths(node: dict[str, Any], place: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _paths(value, (*place, key))
        else:
            yield (*place, key)


def _fields(environments: Iterable[dict[str, Any]]) -> set[tuple[str, ...]]:
    """Paths of the fingerprint that were written down, known or not."""
    paths = [tuple(path.split(".")) for path, _ in FINGERPRINT_FIELDS]
    return {path for environment in environments for path in paths if _has(environment, path)}


def _has(node: Any, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(node, dict) or key not in node:
            return False
        node = node[key]
    return True


def _restricted(record: RunRecord, settings: set[tuple[str, ...]], fields: set[tuple[str, ...]] | None) -> RunRecord:
    """A record with only these settings and, if given, only these properties in its fingerprint."""
    record = dataclasses.replace(record, cell=_kept(record.cell, settings))
    if fields is None:
        return record
    dropped = {tuple(path.split(".")) for path, _ in FINGERPRINT_FIELDS} - fields
    environment = _without(record.environment, dropped)
    return dataclasses.replace(record, environment=environment, fingerprint=fingerprint(environment))


def _kept(node: dict[str, Any], paths: set[tuple[str, ...]], place: tuple[str, ...] = ()) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in node.items():
        here = (*place, key)
        if isinstance(value, dict):
            inner = _kept(value, paths, here)
            if inner or not value:
                kept[key] = inner
        elif here in paths:
            kept[key] = value
    return kept


def _without(node: dict[str, Any], paths: set[tuple[str, ...]], place: tuple[str, ...] = ()) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in node.items():
        here = (*place, key)
        if here not in paths:
            kept[key] = _without(value, paths, here) if isinstance(value, dict) else value
    return kept
