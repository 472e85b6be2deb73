"""Entries that differ in one thing, and what their comparison finds."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench.gating import Policy, Row, Verdict, compare
from bench.records.entry import Entry, Metric, config_digest
from bench.units import Absent


def scaled(entry: Entry, **factors: float) -> Entry:
    """The entry with each named metric's samples multiplied."""
    metrics = dict(entry.metrics)
    for name, factor in factors.items():
        samples = metrics[name].samples
        assert not isinstance(samples, Absent)
        metrics[name] = Metric(samples=tuple(tuple(value * factor for value in repeat) for repeat in samples))
    return dataclasses.replace(entry, metrics=metrics)


def with_value(entry: Entry, name: str, value: float | Absent) -> Entry:
    samples = value if isinstance(value, Absent) else ((value,),)
    return dataclasses.replace(entry, metrics=entry.metrics | {name: Metric(samples=samples)})


def with_samples(entry: Entry, name: str, samples: tuple[tuple[float, ...], ...]) -> Entry:
    return dataclasses.replace(entry, metrics=entry.metrics | {name: Metric(samples=samples)})


def configured(entry: Entry, **config: Any) -> Entry:
    return dataclasses.replace(entry, config=config, config_digest=config_digest(config))


def judge(baseline: Entry, candidate: Entry, policy: Policy | None = None) -> list[Row]:
    return list(compare([candidate], [baseline], policy).rows)


def judge_all(baseline: list[Entry], candidates: list[Entry]) -> list[Row]:
    return list(compare(candidates, baseline).rows)


def verdicts(rows: list[Row]) -> dict[str, str]:
    """Verdicts that are not ok, by metric."""
    return {row.metric: row.verdict.value for row in rows if row.verdict is not Verdict.OK}


def of(rows: list[Row], metric: str) -> Row:
    return next(row for row in rows if row.metric == metric)
