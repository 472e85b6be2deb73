"""Which entry of a baseline answers to which of a candidate, and in what two that do not match differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.config import CellConfig, as_plain
from bench.records.entry import Entry, cell_label, config_digest

MOST_DIFFERENCES = 4  # named in one sentence


@dataclass(frozen=True, slots=True)
class Pair:
    """Two entries to compare; one of them is none where the other has no partner."""

    candidate: Entry | None
    baseline: Entry | None


def match(candidates: Iterable[Entry], baselines: Iterable[Entry]) -> list[Pair]:
    """Match cells by configuration and machine.

    A cell that was measured on another machine only, or whose configuration changed under the same name, is matched
    with that one, so that the difference can be named, unless another candidate answers for it; then it has no
    partner. A cell of the baseline that no candidate answers stands alone, unless it belongs to a machine of which the
    candidates hold nothing while they do hold others of the baseline's machines.
    """
    ours, known = newest_of_each(candidates), newest_of_each(baselines)
    exact = {(cell_key(entry), entry.fingerprint): entry for entry in known}
    compared = {cell_key(entry) for entry in ours if (cell_key(entry), entry.fingerprint) in exact}
    alive = {cell_key(entry) for entry in ours}
    same_cell: dict[str, list[Entry]] = {}
    same_name: dict[str, list[Entry]] = {}  # of those whose own configuration is gone
    for entry in known:
        same_cell.setdefault(cell_key(entry), []).append(entry)
        if cell_key(entry) not in alive:
            same_name.setdefault(cell_label(entry), []).append(entry)
    answered: set[tuple[str, str]] = set()
    pairs = []
    for candidate in ours:
        partner = exact.get((cell_key(candidate), candidate.fingerprint))
        if partner is None and cell_key(candidate) not in compared:
            partner = _nearest(
                candidate, same_cell.get(cell_key(candidate), []), same_name.get(cell_label(candidate), [])
            )
        if partner is not None:
            answered.add((cell_key(partner), partner.fingerprint))
        pairs.append(Pair(candidate, partner))

    answered_cells = {digest for digest, _ in answered}
    shared_machines = {entry.fingerprint for entry in known} & {entry.fingerprint for entry in ours}
    for entry in known:
        if shared_machines and entry.fingerprint not in shared_machines:
            continue
        if (cell_key(entry), entry.fingerprint) in answered:
            continue
        if not shared_machines and cell_key(entry) in answered_cells:
            continue
        answered_cells.add(cell_key(entry))
        pairs.append(Pair(None, entry))
    return pairs


def newest_of_each(entries: Iterable[Entry]) -> list[Entry]:
    """One entry per cell and machine: of several, that of the run which started last.

    A folder may hold a cell of two versions of metagrad-bench, one of which writes an option that the other did not
    have: two configurations, but one cell.
    """
    newest: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        earlier = newest.get((cell_key(entry), entry.fingerprint))
        if earlier is None or earlier.started_at <= entry.started_at:
            newest[cell_key(entry), entry.fingerprint] = entry
    return list(newest.values())


def differences(candidate: Entry, baseline: Entry) -> str:
    """A sentence on why two entries cannot be compared; empty where they can."""
    if cell_key(baseline) != cell_key(candidate):
        phrases = _paths(_whole_config(baseline), _whole_config(candidate))
        return f"the configuration differs: {enumerate_some(phrases)}."
    if baseline.fingerprint == candidate.fingerprint:
        return ""
    # It reads torch's build, which costs seconds to import.
    from bench.hardware.environment import describe_differences

    phrases = describe_differences(baseline.environment, candidate.environment)
    if not phrases:
        phrases = (f"fingerprint: {baseline.fingerprint} against {candidate.fingerprint}",)
    return f"the machine differs: {enumerate_some(phrases)}."


def cell_key(entry: Entry) -> str:
    """What makes two entries the same cell: a digest of the configuration.

    An option that one version did not have yet counts as at its default.
    """
    key = _KEYS.get(entry.config_digest)
    if key is None:
        key = _KEYS[entry.config_digest] = config_digest(_whole_config(entry))
    return key


def enumerate_some(phrases: tuple[str, ...]) -> str:
    """The first few phrases, and how many there are more."""
    rest = len(phrases) - MOST_DIFFERENCES
    return "; ".join(phrases[:MOST_DIFFERENCES]) + (f"; and {rest} more" if rest > 0 else "")


_KEYS: dict[str, str] = {}  # config_digest -> cell_key
_DEFAULTS = as_plain(CellConfig())


def _whole_config(entry: Entry) -> dict[str, Any]:
    return _filled(entry.config, _DEFAULTS)


def _filled(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    whole = {name: value for name, value in defaults.items() if name not in config and not isinstance(value, dict)}
    for name, value in config.items():
        default = defaults.get(name)
        whole[name] = _filled(value, default) if isinstance(value, dict) and isinstance(default, dict) else value
    return whole


def _nearest(candidate: Entry, same_cell: list[Entry], same_name: list[Entry]) -> Entry | None:
    """The baseline's entry that comes closest to a candidate without an equal one.

    First the same cell on another machine, then a cell of the same name whose own configuration is gone.
    """
    if same_cell:
        return min(same_cell, key=lambda entry: len(_paths(entry.environment, candidate.environment)))
    if same_name:
        return min(same_name, key=lambda entry: (entry.fingerprint != candidate.fingerprint, entry.config_digest))
    return None


def _paths(ours: Any, theirs: Any) -> tuple[str, ...]:
    """One phrase per leaf in which two nested values differ (``hypernet.hidden: 4 against 8``)."""
    return tuple(_walk(ours, theirs, ""))


def _walk(ours: Any, theirs: Any, place: str) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted({*ours, *theirs}):
            yield from _walk(ours.get(name), theirs.get(name), f"{place}.{name}" if place else name)
    elif json.dumps(ours, sort_keys=True) != json.dumps(theirs, sort_keys=True):  # tells 1 from 1.0 and true
        yield f"{place}: {_value(ours)} against {_value(theirs)}"


def _value(value: Any) -> str:
    """A value in a sentence, cut where it is long."""
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
