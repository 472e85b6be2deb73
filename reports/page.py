"""What both templates print: one page model of sections, papers, machines and every record in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bench.records.schema import RunRecord
from bench.units import format_duration
from reports.definitions import DEFINITIONS
from reports.details import Detail, build_detail, value_text
from reports.load import Loaded, UnreadFile
from reports.paper import PaperTable, paper_claims, paper_tables
from reports.reproduce import section_commands
from reports.rows import Section, machine_name, status_text
from reports.tables import section_tables
from reports.tables.model import Table
from reports.text import plural, slug
from reports.values import is_synthetic, leaves
from reports.verdict import Verdict, headlines, section_titles, section_verdicts

MAX_DETAILS = 120  # records shown in full; the CSV tables hold all


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure as the page shows it."""

    title: str
    caption: str
    alt: str
    svg: Markup
    file: str  # below the report's folder, without the ending


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionView:
    """One section as the page shows it."""

    anchor: str
    title: str
    machine: str
    lead: str
    section: Section
    verdicts: tuple[Verdict, ...]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    figures_left_out: str
    troubles: tuple[tuple[str, int, str, str], ...]  # row, seed, status, reason
    notices: tuple[tuple[str, str], ...]  # notice, rows
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine's environment, flattened."""

    name: str
    fingerprint: str
    fields: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything that the report says."""

    title: str
    summary: str
    headlines: tuple[str, ...]
    sections: tuple[SectionView, ...]
    papers: tuple[PaperTable, ...]
    claims: tuple[tuple[str, str], ...]
    machines: tuple[Machine, ...]
    details: tuple[Detail, ...]
    details_left_out: str
    anchors: Mapping[str, str]  # record key -> anchor of its details
    problems: tuple[UnreadFile, ...]
    superseded: tuple[str, ...]
    definitions: tuple[tuple[str, str], ...] = DEFINITIONS


def build_page(
    loaded: Loaded, sections: Sequence[Section], figures: Mapping[int, Sequence[Figure]], notes: Mapping[int, str]
) -> Page:
    """Build the page model.

    Args:
        loaded: records and unread files.
        sections: of its records, as ``build_sections`` gives them.
        figures: by the section's position.
        notes: why a section has no figures, by its position.
    """
    shown = [record for section in sections for record in section.records][:MAX_DETAILS]
    anchors = {record.key: f"cell-{index}" for index, record in enumerate(shown, start=1)}
    left_out = len(loaded.records) - len(shown) - sum(len(section.superseded) for section in sections)
    models, data_sets = (
        {suite: len({getattr(s, name) for s in sections if s.suite == suite}) for suite in {s.suite for s in sections}}
        for name in ("model_name", "data_name")
    )
    labels = {record.key: row.label for section in sections for row in section.rows for record in row.records}
    return Page(
        title=f"metagrad-bench: {', '.join(dict.fromkeys(section.suite for section in sections))}",
        summary=_summary(loaded.records, sections),
        headlines=headlines(sections),
        sections=tuple(
            _section_view(
                index,
                title,
                section,
                tuple(figures.get(index, ())),
                notes.get(index, ""),
                section_commands(section, models[section.suite], data_sets[section.suite]),
            )
            for index, (title, section) in enumerate(zip(section_titles(sections), sections, strict=True))
        ),
        papers=paper_tables(sections),
        claims=paper_claims(),
        machines=_machines(loaded.records),
        details=tuple(build_detail(record, labels[record.key], anchors[record.key]) for record in shown),
        details_left_out=f"{plural(left_out, 'more record')} in tables/cells.csv" if left_out > 0 else "",
        anchors=anchors,
        problems=loaded.problems,
        superseded=tuple(
            f"{record.variant}, seed {record.seed}, started {record.started_at}"
            for section in sections
            for record in section.superseded
        ),
    )


def _summary(records: Sequence[RunRecord], sections: Sequence[Section]) -> str:
    machines = dict.fromkeys(machine_name(record) for record in records)
    variants = {(record.suite, record.variant) for record in records}
    models = dict.fromkeys(record.model_name for record in records)
    data = dict.fromkeys(f"{r.data_name} (synthetic)" if is_synthetic(r) else r.data_name for r in records)
    seeds = {record.seed for record in records}
    first, last = min(r.started_at for r in records)[:10], max(r.started_at for r in records)[:10]
    when = f"on {last}" if first == last else f"from {first} to {last}"
    took = format_duration(sum(record.duration_s for record in records))
    gpu = "" if any(section.on_gpu for section in sections) else " Nothing ran on a GPU."
    return (
        f"{plural(len(records), 'cell')} of {plural(len(variants), 'variant')} compared: {', '.join(models)} on "
        f"{', '.join(data)}, {plural(len(seeds), 'seed')}, {plural(len(machines), 'machine')} ({', '.join(machines)}), "
        f"measured {when} in {took} altogether.{gpu}"
    )


def _section_view(
    index: int, title: str, section: Section, figures: tuple[Figure, ...], note: str, commands: tuple[str, ...]
) -> SectionView:
    machine = machine_name(section.rows[0].first)
    records = section.records
    epochs = sorted({record.accuracy.epochs for record in records if record.accuracy is not None})
    parts = [machine, f"code {section.code_version}"]
    data = next((record.data for record in records if record.data is not None), None)
    if data is not None:
        shape = "×".join(map(str, data.image_shape))
        parts.append(f"{data.train_samples:,} training and {data.test_samples:,} test images of {shape}")
    if section.batch_size:
        parts.append(f"batch {section.batch_size}")
    if epochs:
        parts.append(f"{', '.join(map(str, epochs))} {'epoch' if epochs == [1] else 'epochs'}")
    if section.synthetic:
        parts.append("synthetic data")
    return SectionView(
        anchor=f"section-{index + 1}-{slug(section.suite)}",
        title=title,
        machine=machine,
        lead="; ".join(parts),
        section=section,
        verdicts=section_verdicts(section),
        tables=section_tables(section),
        figures=figures,
        figures_left_out=note,
        troubles=tuple(
            (row.label, record.seed, status_text(record), record.reason)
            for row in section.rows
            for record in row.troubles
        ),
        notices=_notices(section),
        commands=commands,
    )


def _notices(section: Section) -> tuple[tuple[str, str], ...]:
    rows_by_notice: dict[str, dict[str, None]] = {}
    for row in section.rows:
        for record in row.records:
            for notice in record.notices:
                rows_by_notice.setdefault(notice, {})[row.label] = None
    everywhere = len(section.rows)
    return tuple(
        (notice, "every row" if len(rows) == everywhere and everywhere > 1 else ", ".join(rows))
        for notice, rows in rows_by_notice.items()
    )


def _machines(records: Sequence[RunRecord]) -> tuple[Machine, ...]:
    machines: dict[str, Machine] = {}
    for record in records:
        if record.fingerprint not in machines:
            fields = tuple((path, value_text(value)) for path, value in leaves(record.environment))
            machines[record.fingerprint] = Machine(
                name=machine_name(record), fingerprint=record.fingerprint, fields=fields
            )
    return tuple(machines.values())
