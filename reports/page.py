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
from reports.overview import Overview, build_overview
from reports.paper import PaperTable, paper_tables
from reports.paper_claims import Claim, paper_claims
from reports.reproduce import code_text, section_commands
from reports.rows import Section, machine_name, status_text
from reports.tables import TOPICS, topic_tables
from reports.tables.model import Table
from reports.text import plural, slug
from reports.values import is_synthetic, leaves
from reports.verdict import Verdict, headlines, section_titles, section_verdicts

FULL_DETAILS = 120  # records shown in full; the others in brief: 5,000 in full would be a file of 200 MB
SIDE_TABLE_ROWS = 600  # rows of the page that have tables besides the main one, whole sections at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure as the page shows it."""

    topic: str  # a key of TOPICS
    title: str
    caption: str
    alt: str
    svg: Markup
    file: str  # below the report's folder, without the ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """What a section says about one question."""

    anchor: str
    title: str
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionView:
    """One section as the page shows it."""

    anchor: str
    title: str
    machine: str
    lead: str
    section: Section
    verdicts: tuple[Verdict, ...]
    topics: tuple[Topic, ...]  # the first holds the main table first
    left_out: tuple[str, ...]  # what is not shown of this section, in sentences
    troubles: tuple[tuple[str, int, str, str], ...]  # row, seed, status, reason
    notices: tuple[tuple[str, str], ...]  # notice, rows
    code: str  # the revision that measured it
    commands: tuple[str, ...]

    @property
    def main(self) -> Table:
        """The main table."""
        return self.topics[0].tables[0]


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
    overview: Overview | None  # None for one section: its verdicts say it all
    sections: tuple[SectionView, ...]
    papers: tuple[PaperTable, ...]
    claims: tuple[Claim, ...]
    machines: tuple[Machine, ...]
    details: tuple[Detail, ...]
    num_brief: int  # details that are shown in brief
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
    titles = section_titles(sections)
    views, rows_before = [], 0
    for index, (title, section) in enumerate(zip(titles, sections, strict=True)):
        rows_before += len(section.rows)
        side_tables = index == 0 or rows_before <= SIDE_TABLE_ROWS
        shown = tuple(figures.get(index, ()))
        commands = section_commands(section, sections)
        views.append(
            _section_view(index, title, section, shown, notes.get(index, ""), commands, side_tables=side_tables)
        )
    details = _details(loaded, sections)
    return Page(
        title=f"metagrad-bench: {', '.join(dict.fromkeys(section.suite for section in sections))}",
        summary=_summary(loaded.records, sections),
        headlines=headlines(sections),
        overview=build_overview(sections, titles, [view.anchor for view in views]) if len(sections) > 1 else None,
        sections=tuple(views),
        papers=paper_tables(sections),
        claims=paper_claims(sections),
        machines=_machines(loaded.records),
        details=details,
        num_brief=sum(bool(detail.brief) for detail in details),
        anchors={detail.record.key: detail.anchor for detail in details},
        problems=loaded.problems,
        superseded=tuple(
            f"{record.variant}, seed {record.seed}, started {record.started_at}"
            for section in sections
            for record in section.superseded
        ),
    )


def _details(loaded: Loaded, sections: Sequence[Section]) -> tuple[Detail, ...]:
    """Every record by itself, in the order of the rows; the first seeds of the first rows in full."""
    shown = [(record, row) for section in sections for row in section.rows for record in row.records]
    first_seeds = [row.first.key for section in sections for row in section.rows]
    in_full = set(list(dict.fromkeys([*first_seeds, *(record.key for record, _ in shown)]))[:FULL_DETAILS])
    return tuple(
        build_detail(record, row, f"cell-{number}", loaded.files.get(record.key, ()), in_full=record.key in in_full)
        for number, (record, row) in enumerate(shown, start=1)
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
    index: int,
    title: str,
    section: Section,
    figures: tuple[Figure, ...],
    note: str,
    commands: tuple[str, ...],
    *,
    side_tables: bool,
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
    anchor = f"section-{index + 1}-{slug(section.suite)}"
    left_out = [note] if note else []
    if not side_tables:
        left_out.append(
            f"Side tables are shown for the largest sections, {SIDE_TABLE_ROWS} rows together; report this one alone "
            "for its own, or read tables/rows.csv."
        )
    return SectionView(
        anchor=anchor,
        title=title,
        machine=machine,
        lead="; ".join(parts),
        section=section,
        verdicts=section_verdicts(section),
        topics=_topics(section, anchor, figures, side_tables=side_tables),
        left_out=tuple(left_out),
        troubles=tuple(
            (row.label, record.seed, status_text(record), record.reason)
            for row in section.rows
            for record in row.troubles
        ),
        notices=_notices(section),
        code=code_text(section),
        commands=commands,
    )


def _topics(section: Section, anchor: str, figures: Sequence[Figure], *, side_tables: bool) -> tuple[Topic, ...]:
    """The section's topics that have a table or a figure; the first is always there."""
    topics: list[Topic] = []
    for key, (title, _) in TOPICS.items():
        tables = topic_tables(section, key) if side_tables or not topics else ()
        drawn = tuple(figure for figure in figures if figure.topic == key)
        if tables or drawn:
            topics.append(Topic(anchor=f"{anchor}-{key}", title=title, tables=tables, figures=drawn))
    return tuple(topics)


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
