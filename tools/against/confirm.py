"""``gate RUNS --baseline FILE --confirm N``: cells of recorded runs that would fail are measured again, here and now.

That holds only where the record was made: by this code, on this machine. Elsewhere the verdicts stay as they are, and
a note says why.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.errors import RecordError, UserError
from bench.gating import Comparison, Policy, compare
from bench.printable import show_path
from bench.records.entry import Entry, Metric, cell_label, entry_of
from bench.records.find import Found
from bench.units import Absent
from tools.against.lifetime import ended_by_signal
from tools.against.rounds import WEIGHTS, tell_on_stderr
from tools.against.verb import suspects

PASSES = ["timing", "memory"]  # a training would end in the same accuracy


def confirm_recorded(
    comparison: Comparison,
    candidates: Sequence[Entry],
    found: Iterable[Found],
    baselines: Sequence[Entry],
    release: Sequence[Entry],
    policy: Policy,
    *,
    times: int,
) -> tuple[Comparison, tuple[str, ...]]:
    """Measure suspects of recorded runs again and judge them on all their repeats.

    Args:
        comparison: of the recorded runs.
        candidates: its candidates.
        found: the candidates' records and where they lie.
        baselines: what they were compared with.
        release: the pinned baseline, if there is one.
        policy: of recorded runs, with its alpha shared among all looks.
        times: how often at most.

    Returns:
        The comparison after that, and notes.
    """
    records = {_identity(entry_of(item.record)): item for item in found}
    entries = {_identity(entry): entry for entry in candidates}
    notes: list[str] = []
    place = Path("out", "confirm", dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S")).absolute()
    for attempt in range(times):
        names = set(suspects(comparison))
        again = [key for key, entry in entries.items() if cell_label(entry) in names]
        if not again:
            break
        for key in again:
            label = cell_label(entries[key])
            tell_on_stderr(f"measuring again ({attempt + 1} of {times}): {label}")
            try:
                with ended_by_signal():
                    entries[key] = _joined(entries[key], _measure(records.get(key), place / f"run-{attempt + 1}"))
            except UserError as error:
                return comparison, (*notes, f"{label} was not measured again: {error}")
        comparison = compare(list(entries.values()), baselines, policy, release=release)
        measured = ", ".join(cell_label(entries[key]) for key in again)
        notes.append(f"Measured again and judged on all repeats: {measured}; records: {show_path(place)}.")
    return comparison, tuple(notes)


def _measure(item: Found | None, output: Path) -> Entry:
    """Run a recorded cell once more.

    Raises:
        RecordError: it was not recorded here, by this code.
        UserError: it cannot be run any more.
    """
    from omegaconf import OmegaConf  # Hydra and torch, only where they are needed

    from bench.cell import locate, run_cell
    from bench.composing.cells import to_cell
    from bench.keys import code_version

    if item is None:
        raise RecordError("it comes from a baseline file, which does not say how to run it.")
    record = item.record
    if record.code_version != code_version():
        raise RecordError(f"it was measured by other code ({record.code_version}) than runs here ({code_version()}).")
    cell = to_cell(OmegaConf.create(record.cell))
    if locate(cell)[1] != record.key:
        raise RecordError("it was measured on another machine, or from data that are not here.")
    passes = [name for name in cell.protocol.passes if name in PASSES]
    if not passes:
        raise RecordError("it has no timing and no memory pass, and a training would end in the same accuracy.")
    output.mkdir(parents=True, exist_ok=True)
    weights = item.path.absolute().parent.parent.parent / WEIGHTS  # above / there is /
    if weights.is_dir() and not (output / WEIGHTS).exists():
        (output / WEIGHTS).symlink_to(os.path.relpath(weights, output), target_is_directory=True)
    protocol = dataclasses.replace(cell.protocol, passes=passes)
    return entry_of(run_cell(dataclasses.replace(cell, protocol=protocol, output_dir=str(output), fresh=True)))


def _joined(entry: Entry, again: Entry) -> Entry:
    """The recorded entry with the new repeats of its times and peaks behind its own."""
    metrics = dict(entry.metrics)
    for name, metric in again.metrics.items():
        ours = metrics.get(name, metric).samples
        if name.endswith(("_ms", "_bytes")) and not isinstance(metric.samples, Absent) and not isinstance(ours, Absent):
            metrics[name] = Metric(samples=(*ours, *metric.samples))
    return dataclasses.replace(entry, metrics=metrics)


def _identity(entry: Entry) -> tuple[str, str]:
    return entry.config_digest, entry.fingerprint
