"""Records grouped into comparable sections and rows: seeds are aggregated, machines and code versions never are."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from bench.records.schema import RunRecord
from reports.aggregate import accuracy_difference, build_row, compare_with_retain
from reports.rows import Row, Section
from reports.values import leaves

_METHOD_ORDER = (
    "fp32", "bf16", "ste", "uniform", "dorefa", "uint8", "daint8", "sbm", "wageubn", "afp", "cpt", "fp4", "metaquant",
    "metagrad",
)  # fmt: skip
_STRATEGY_ORDER = ("none", "retain", "slim", "recompute", "tabulate")


def build_sections(records: Iterable[RunRecord]) -> tuple[Section, ...]:
    """Group records into sections and rows; the largest section first.

    Args:
        records: any number of records of any suites, machines and seeds.
    """
    by_section: dict[tuple[str, ...], list[RunRecord]] = {}
    for r in records:
        key = (r.suite, r.model_name, r.data_name, r.device, r.fingerprint, r.code_version, _batch_size(r))
        by_section.setdefault(key, []).append(r)
    sections = [_build_section(key, members) for key, members in by_section.items()]
    return tuple(
        section
        for _, section in sorted(zip(by_section, sections, strict=True), key=lambda pair: (-len(pair[1].rows), pair[0]))
    )


def _batch_size(record: RunRecord) -> str:
    protocol = record.cell.get("protocol")
    if isinstance(protocol, dict) and "batch_size" in protocol:
        return str(protocol["batch_size"])
    return str(record.timing.batch_size) if record.timing is not None else ""


def _build_section(key: tuple[str, ...], records: Sequence[RunRecord]) -> Section:
    groups: dict[tuple[bytes, str], dict[int, RunRecord]] = {}
    superseded: list[RunRecord] = []
    # A cell that failed early knows no data content; it belongs to its other seeds unless contents do differ.
    contents = {record.data.fingerprint for record in records if record.data is not None}
    for record in sorted(records, key=lambda r: (r.started_at, r.key)):
        content = record.data.fingerprint if record.data is not None and len(contents) > 1 else ""
        seeds = groups.setdefault((_config_identity(record), content), {})
        if record.seed in seeds:
            superseded.append(seeds[record.seed])
        seeds[record.seed] = record
    members = [tuple(seeds[seed] for seed in sorted(seeds)) for seeds in groups.values()]
    labels = _labels(members)
    rows = sorted((build_row(group, label) for group, label in zip(members, labels, strict=True)), key=_row_order)
    references = [row for row in rows if row.is_fp32]
    rows = [
        dataclasses.replace(row, accuracy_vs_fp32=accuracy_difference(row, _reference_of(row, references), "FP32"))
        for row in rows
    ]
    retained = {_twin_identity(row.first): row for row in rows if row.method.strategy == "retain"}
    rows = [
        dataclasses.replace(row, against_retain=compare_with_retain(row, retained.get(_twin_identity(row.first))))
        for row in rows
    ]
    suite, model_name, data_name, device, fingerprint, code_version, batch_size = key
    return Section(
        suite=suite, model_name=model_name, data_name=data_name, device=device, fingerprint=fingerprint,
        code_version=code_version, batch_size=batch_size, rows=tuple(rows), superseded=tuple(superseded),
    )  # fmt: skip


def _config_identity(record: RunRecord) -> bytes:
    """Everything that makes two records the same row: the composed config without its seed."""
    cell = {name: value for name, value in record.cell.items() if name != "seed"}
    return msgspec.json.encode([record.variant, record.method, cell], order="sorted")


def _twin_identity(record: RunRecord) -> bytes:
    """The same for all strategies of one configuration."""
    cell = {name: value for name, value in record.cell.items() if name not in {"seed", "variant_name", "strategy"}}
    return msgspec.json.encode([dataclasses.replace(record.method, strategy="none"), cell], order="sorted")


def _reference_of(row: Row, references: Sequence[Row]) -> Row | None:
    """The FP32 row trained under the same protocol where there are several."""
    protocol = row.first.cell.get("protocol")
    same = [reference for reference in references if reference.first.cell.get("protocol") == protocol]
    return next(iter(same or references), None)


def _labels(groups: Sequence[tuple[RunRecord, ...]]) -> list[str]:
    """Variant names; where configurations share one, the settings that differ follow in brackets."""
    by_variant: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        by_variant.setdefault(group[0].variant, []).append(index)
    labels = [group[0].variant for group in groups]
    for variant, indices in by_variant.items():
        if len(indices) < 2:
            continue
        configs = [dict(leaves({k: v for k, v in groups[i][0].cell.items() if k != "seed"})) for i in indices]
        names = sorted(set().union(*configs))
        differing = [name for name in names if len({repr(config.get(name)) for config in configs}) > 1]
        for index, config in zip(indices, configs, strict=True):
            detail = ", ".join(f"{name}={config.get(name)}" for name in differing[:4]) or groups[index][0].key[:8]
            labels[index] = f"{variant} ({detail})"
    seen: Counter[str] = Counter()
    for index, label in enumerate(labels):
        seen[label] += 1
        labels[index] = label if seen[label] == 1 else f"{label} #{seen[label]}"
    return labels


def _row_order(row: Row) -> tuple[Any, ...]:
    facts = row.method
    method = _METHOD_ORDER.index(facts.name) if facts.name in _METHOD_ORDER else len(_METHOD_ORDER)
    strategy = _STRATEGY_ORDER.index(facts.strategy) if facts.strategy in _STRATEGY_ORDER else len(_STRATEGY_ORDER)
    return (
        method,
        facts.name,
        -facts.error_bits,
        -facts.grad_bits,
        -facts.weight_bits,
        facts.hypernet,
        strategy,
        row.label,
    )
