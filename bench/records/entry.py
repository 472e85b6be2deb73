"""An entry: what a comparison needs of one cell on one machine, taken from its record.

A cell is its configuration without the code version, so that it is found again after a change of code; a machine is
the fingerprint of its environment.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import RecordError
from bench.privacy import without_places
from bench.records.schema import RunRecord, Status
from bench.records.throttled import Unthrottled, set_throttled_aside
from bench.units import Absent

# Of the configuration, without effect on what one pass measures; the machine is told by the fingerprint.
NO_EFFECT_KEYS = (("device",), ("protocol", "pass_limit_s"), ("protocol", "passes"))
DIGITS = 6  # significant ones of a time
LONGEST_MS = 1e12  # 30 years: no step takes as long
LARGEST_BYTES = 2**60  # an exbibyte: no machine holds as much
EXCERPT = {
    "device": ("kind", "name", "sm", "memory_bytes", "power_limit_w", "driver"),
    "torch": ("version", "cuda_build", "cpu_capability", "threads"),
    "cpu": ("model", "instruction_sets", "usable_cores", "governor"),
    "kernel_variables": None,  # as a whole
    "allocator": None,
    "python": ("version",),
    "os": ("system", "machine"),
}  # of the environment block: what the fingerprint is made of, for saying in what two machines differ
Samples = tuple[tuple[int | float, ...], ...]
_MOST_SHARED = 4096  # parts of configurations and environments, which are few however many the cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Raw values: one list of numbers per repeat, in the unit that the metric's name carries."""

    samples: Samples | Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One cell on one machine."""

    suite: str
    variant: str
    model: str
    data: str
    seed: int
    config_digest: str  # of `config`: equal digests, equal cells
    fingerprint: str
    status: Status
    reason: str
    throttled_set_aside: int  # samples, of both sides, that were taken while the device was throttled and left out
    throttled_kept: int  # such samples of processes in which they are the most, so that none would be left
    code_version: str  # what was measured; no part of the cell's identity
    started_at: str
    environment: dict[str, Any]
    config: dict[str, Any]
    metrics: dict[str, Metric]


def cell_label(entry: Entry) -> str:
    """Name a cell for a reader (``demo/metagrad_int4_slim resnet20 digits seed 0``)."""
    return f"{entry.suite}/{entry.variant} {entry.model} {entry.data} seed {entry.seed}"


def is_measured(entry: Entry) -> bool:
    """Whether an entry holds a measurement, or a divergence, which is a result."""
    return entry.status == "diverged" or any(
        not isinstance(metric.samples, Absent) for metric in entry.metrics.values()
    )


def entry_of(record: RunRecord) -> Entry:
    """Take from a record what a comparison needs.

    Raises:
        RecordError: a sample is one that no measurement gives, such as a step of 0 ms.
    """
    config = _without_keys(record.cell, NO_EFFECT_KEYS)
    repeats = [set_throttled_aside(repeat) for repeat in record.timing.repeats] if record.timing else []
    entry = Entry(
        suite=record.suite,
        variant=record.variant,
        model=record.model_name,
        data=record.data_name,
        seed=record.seed,
        config_digest=config_digest(config),
        fingerprint=record.fingerprint,
        status=record.status,
        reason=without_places(record.reason),
        throttled_set_aside=sum(repeat.set_aside for repeat in repeats),
        throttled_kept=sum(repeat.kept for repeat in repeats),
        code_version=record.code_version,
        started_at=record.started_at,
        environment=shared_parts(_excerpt(record.environment)),
        config=shared_parts(config),
        metrics={name: Metric(samples=samples) for name, samples in _metrics(record, repeats).items()},
    )
    try:
        _check_processes(repeats)
        check_samples(entry)
    except ValueError as error:
        raise RecordError(f"The record of {cell_label(entry)!a} is damaged: it {error}; run its cell again.") from error
    return entry


def newest_entries(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """One entry per cell and machine, of the run that started last, sorted by name.

    A folder of runs keeps those of earlier code versions; they are not what is to be compared.
    """
    newest: dict[tuple[str, str], Entry] = {}
    for entry in sorted(entries, key=lambda item: (item.started_at, item.code_version)):
        newest[entry.config_digest, entry.fingerprint] = entry
    return tuple(sorted(newest.values(), key=entry_order))


def config_digest(config: dict[str, Any]) -> str:
    """16 hex digits of a configuration's content, whatever the order of its keys."""
    text = json.dumps(config, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def entry_order(entry: Entry) -> tuple[str, ...]:
    """What entries are sorted by: names first."""
    return (
        entry.suite, entry.variant, entry.model, entry.data, f"{entry.seed:020d}", entry.config_digest,
        entry.fingerprint,
    )  # fmt: skip


def check_samples(entry: Entry) -> None:
    """Refuse samples that no measurement gives: compared, a step of 0 ms would pass as improved.

    Raises:
        ValueError: what the entry holds, as the end of a sentence.
    """
    for name, metric in entry.metrics.items():
        if isinstance(metric.samples, Absent):
            continue
        if not metric.samples or not all(metric.samples):
            raise ValueError(f"holds no samples of {name!a} in a repeat")
        for value in (value for repeat in metric.samples for value in repeat):
            if not _is_finite(value):
                raise ValueError(f"holds a sample of {name!a} that is no finite number")
            if not _is_possible(name, value):
                raise ValueError(f"holds a sample of {name!a} that nothing can measure, {value:g}")


def shared_parts(value: dict[str, Any]) -> dict[str, Any]:
    """A nested block with its parts exchanged for equal ones that other entries have too; none is ever changed."""
    return {name: _shared(json.dumps(part)) if isinstance(part, dict | list) else part for name, part in value.items()}


def _metrics(record: RunRecord, repeats: list[Unthrottled]) -> dict[str, Samples | Absent]:
    """Raw values of every metric that can be compared, absent ones with their reason."""
    values: dict[str, Samples | Absent] = {}
    not_timed = _missing(record, "timing")
    names = dict.fromkeys(("step_ms", "fp32_step_ms", *(name for repeat in repeats for name in repeat.samples)))
    for name in names:
        values[name] = _series([repeat.samples.get(name, ()) for repeat in repeats], not_timed)
    for name in (
        "peak_allocated_bytes", "peak_process_bytes", "hypernet_extra_allocated_bytes", "hypernet_extra_process_bytes",
    ):  # fmt: skip
        values[name] = _single(getattr(record.memory, name) if record.memory else _missing(record, "memory"))
    if record.data is not None and record.data.synthetic:
        values["test_accuracy_pct"] = Absent(reason="synthetic data has no accuracy")
    else:
        accuracy = record.accuracy.test_accuracy_pct if record.accuracy else _missing(record, "accuracy")
        values["test_accuracy_pct"] = _single(accuracy)
    values["integer_share_pct"] = _single(record.gemms.integer_share_pct if record.gemms else _missing(record, "gemms"))
    return values


def _series(repeats: list[tuple[float, ...]], absent: Absent) -> Samples | Absent:
    """Keep the repeats that hold samples, rounded: a clock's noise is far above the seventh digit."""
    return tuple(tuple(float(f"{value:.{DIGITS}g}") for value in repeat) for repeat in repeats if repeat) or absent


def _single(value: float | Absent) -> Samples | Absent:
    return Absent(reason=without_places(value.reason)) if isinstance(value, Absent) else ((value,),)


def _missing(record: RunRecord, part: str) -> Absent:
    if getattr(record, part) is not None:
        return Absent(reason="no samples were taken")
    return Absent(reason=without_places(record.missing.get(part) or record.reason or "not measured"))


def _excerpt(environment: dict[str, Any]) -> dict[str, Any]:
    excerpt: dict[str, Any] = {}
    for part, names in EXCERPT.items():
        value = environment.get(part)
        if isinstance(value, dict) and names is not None:
            value = {name: value[name] for name in names if name in value}
        if value is not None:
            excerpt[part] = value
    return excerpt


@functools.lru_cache(maxsize=_MOST_SHARED)
def _shared(text: str) -> Any:
    return json.loads(text)


def _without_keys(config: dict[str, Any], paths: Iterable[tuple[str, ...]]) -> dict[str, Any]:
    """Copy a nested configuration without the values at the given paths."""
    copy = {name: dict(value) if isinstance(value, dict) else value for name, value in config.items()}
    for *parents, last in paths:
        node: Any = copy
        for parent in parents:
            node = node.get(parent, {})
        if isinstance(node, dict):
            node.pop(last, None)
    return copy


def _check_processes(repeats: Sequence[Unthrottled]) -> None:
    """Refuse steps that some processes lack: left out, a process would be divided by another's FP32 steps."""
    for name in ("step_ms", "fp32_step_ms"):
        counts = [len(repeat.samples[name]) for repeat in repeats]
        if any(counts) and not all(counts):
            raise ValueError(f"holds no samples of {name!a} in a process")


def _is_possible(name: str, value: float) -> bool:
    """Whether a value lies where its unit can: hypernetworks' extra bytes are differences and may be below zero."""
    if name.endswith("_ms"):  # a phase may be too short for a coarse clock, a step not
        return (value >= 0 if name not in ("step_ms", "fp32_step_ms") else value > 0) and value <= LONGEST_MS
    if name.endswith("_pct"):
        return 0 <= value <= 100
    if name.endswith("_bytes"):
        return abs(value) <= LARGEST_BYTES and (value > 0 or not name.startswith("peak_"))
    return True


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
