"""Several sections at a glance: one line each, and equal rows of different machines side by side, never averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from bench.records.schema import Interval
from bench.units import Absent
from reports.rows import Ratio, Row, Section, machine_name
from reports.tables.cells import bytes_cell, difference_cell, interval_cell, summary_cell
from reports.tables.model import Cell, absent_cell
from reports.text import plural

_NO_LOW_BIT = Absent(reason="no low-bit row")
MAX_COMPARED = 60  # rows of different machines side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewLine:
    """One section."""

    title: str
    anchor: str
    cells: tuple[Cell, ...]  # in the order of ``OVERVIEW_HEADERS``


@dataclass(frozen=True, slots=True, kw_only=True)
class AcrossMachines:
    """Rows of one suite, model, data set and batch size as several machines measured them."""

    title: str
    machines: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]  # label; the step's ratio to FP32 on each machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What stands on top of a report of several sections."""

    lines: tuple[OverviewLine, ...]
    across: tuple[AcrossMachines, ...]
    headers: tuple[str, ...] = (
        "Section", "Cells", "FP32 step", "Fastest low-bit row", "Its step vs FP32", "Its Δ to FP32, points",
        "Smallest peak, low-bit",
    )  # fmt: skip


def build_overview(sections: Sequence[Section], titles: Sequence[str], anchors: Sequence[str]) -> Overview:
    """Lay sections out side by side.

    Args:
        sections: at least two.
        titles: of the sections.
        anchors: that the lines lead to.
    """
    lines = tuple(
        OverviewLine(title=title, anchor=anchor, cells=_line(section))
        for section, title, anchor in zip(sections, titles, anchors, strict=True)
    )
    return Overview(lines=lines, across=_across(sections))


def _line(section: Section) -> tuple[Cell, ...]:
    records = section.records
    unfinished = sum(record.status != "ok" for record in records)
    cells = Cell(text=plural(len(records), "cell"), detail=f"{unfinished} without a full result" if unfinished else "")
    reference = section.fp32
    fp32 = absent_cell(Absent(reason="no FP32 row")) if reference is None else summary_cell(reference.step_ms)
    low_bit = [row for row in section.rows if row.is_low_bit]
    peaks = [(row.peak_allocated_bytes, row) for row in low_bit if not isinstance(row.peak_allocated_bytes, Absent)]
    smallest = absent_cell(_NO_LOW_BIT)
    if peaks:
        peak, row = min(peaks, key=lambda pair: pair[0])
        smallest = Cell(text=bytes_cell(peak).text, detail=row.named)
    fastest = _fastest(low_bit)
    if fastest is None:
        return (cells, fp32, *[absent_cell(_NO_LOW_BIT)] * 3, smallest)
    ratio, delta = interval_cell(fastest.time_vs_fp32), difference_cell(fastest.accuracy_vs_fp32)
    return (cells, fp32, Cell(text=fastest.label, chips=fastest.labels), ratio, delta, smallest)


def _fastest(rows: Sequence[Row]) -> Row | None:
    """The row with the lowest ratio among those whose ratio has an interval; none where one process timed each."""
    ranked = [
        (row.time_vs_fp32.value, row)
        for row in rows
        if isinstance(row.time_vs_fp32, Ratio) and isinstance(row.time_vs_fp32.interval, Interval)
    ]
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _across(sections: Sequence[Section]) -> tuple[AcrossMachines, ...]:
    groups: dict[tuple[str, ...], list[Section]] = {}
    for section in sections:
        key = (section.suite, section.model_name, section.data_name, section.batch_size, section.code_version)
        groups.setdefault(key, []).append(section)
    found = []
    for (suite, model, data, batch, code), members in groups.items():
        if len(members) < 2:
            continue
        names = [machine_name(section.rows[0].first) for section in members]
        labels = list(dict.fromkeys(row.label for section in members for row in section.rows))
        by_label = [{row.label: row for row in section.rows} for section in members]
        rows = tuple((label, tuple(_ratio_on(rows.get(label)) for rows in by_label)) for label in labels[:MAX_COMPARED])
        found.append(
            AcrossMachines(
                title=f"{suite}, {model} on {data}, batch {batch or 'not recorded'}, code {code}",
                machines=tuple(
                    f"{name} ({section.fingerprint})" if names.count(name) > 1 else name
                    for name, section in zip(names, members, strict=True)
                ),
                rows=rows,
            )
        )
    return tuple(found)


def _ratio_on(row: Row | None) -> Cell:
    if row is None:
        return absent_cell(Absent(reason="not run here"))
    return dataclasses.replace(interval_cell(row.time_vs_fp32), chips=row.labels)
