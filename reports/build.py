"""The report from end to end: records in, ``report.html``, ``report.md``, ``figures/`` and ``tables/`` out."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import RecordError, system_reason
from bench.files import write_whole

if TYPE_CHECKING:
    from reports.figures import Drawing
    from reports.load import Loaded, UnreadFile
    from reports.page import Figure
    from reports.rows import Section

MAX_FIGURE_SECTIONS = 4  # a drawn section of 8 rows costs about two seconds, one of 30 rows four
MAX_FIGURE_ROWS = 60  # of all drawn sections together
MANY_RECORDS = 1000  # from here on one section is drawn: the report is to be there in 20 seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportResult:
    """Where the report lies and what it says first."""

    html: Path
    markdown: Path
    headlines: tuple[str, ...]  # the three most telling sentences
    problems: tuple[UnreadFile, ...]  # files that were left aside, with the reason


def build_report(paths: Sequence[Path], out_dir: Path) -> ReportResult:
    """Write the report of all records below the paths; equal records give equal bytes.

    Args:
        paths: folders of runs, or single ``record.json`` files.
        out_dir: made where it does not exist; files of an earlier report are replaced.

    Raises:
        NothingMeasuredError: if there is no record.
        RecordError: if a path cannot be read or the output folder not be written.
    """
    from bench.records.outline import StoredProfileError
    from reports.load import load_records

    with _without_collection():
        loaded = load_records(paths)
    try:
        return _write_report(loaded, Path(out_dir))
    except StoredProfileError:  # one that is shown; all are read first then, so that each such record is named
        with _without_collection():
            loaded = load_records(paths, check_profiles=True)
        return _write_report(loaded, Path(out_dir))


def _write_report(loaded: Loaded, out_dir: Path) -> ReportResult:
    # Drawing and data frames take seconds to import: only here.
    from reports.csv_files import write_tables
    from reports.page import build_page
    from reports.render import render_html, render_markdown
    from reports.sections import build_sections

    gc.freeze()  # what was read stays until the end: later searches for cycles leave out its millions of values
    try:
        for folder in (out_dir, out_dir / "figures", out_dir / "tables"):
            folder.mkdir(parents=True, exist_ok=True)
        with _without_collection():
            sections = build_sections(loaded.records)
        figures, notes = _write_figures(sections, loaded.folders, out_dir)
        html, markdown = out_dir / "report.html", out_dir / "report.md"
        with _without_collection():
            write_tables(sections, loaded.records, loaded.folders, out_dir / "tables")
            page = build_page(loaded, sections, figures, notes)
            write_whole(html, render_html(page).encode())
            write_whole(markdown, render_markdown(page).encode())
    except OSError as error:
        reason = system_reason(error)
        raise RecordError(
            f"the report cannot be written to {out_dir}: {reason}; name another folder with -o"
        ) from error
    finally:
        gc.unfreeze()
    return ReportResult(html=html, markdown=markdown, headlines=page.headlines, problems=loaded.problems)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """No search for cycles meanwhile: records and pages have none, and walking them again and again takes seconds."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _write_figures(
    sections: Sequence[Section], folders: Mapping[str, Path], out_dir: Path
) -> tuple[dict[int, tuple[Figure, ...]], dict[int, str]]:
    from reports.figures import comparable_sections, draw_across, draw_section, row_styles

    shown: dict[int, tuple[Figure, ...]] = {}
    notes: dict[int, str] = {}
    across = {group[0]: group for group in comparable_sections(sections)[:MAX_FIGURE_SECTIONS]}
    count = _count_drawn(sections)
    styles = row_styles(sections[:count])
    for index, section in enumerate(sections):
        if index >= count:
            which = "largest section" if count == 1 else f"{count} largest sections"
            notes[index] = f"Figures are drawn for the {which}; report this one alone for its own."
            continue
        prefix = "" if len(sections) == 1 else f"{index + 1}-"
        figures = draw_section(section, folders, styles)
        drawn = figures.drawn
        if index in across:
            drawn = (*draw_across([sections[position] for position in across[index]]).drawn, *drawn)
        shown[index] = tuple(_write_figure(drawing, prefix, out_dir) for drawing in drawn)
        for missing in figures.not_drawn:  # none of an earlier report may stand for it
            for ending in ("svg", "png"):
                (out_dir / f"figures/{prefix}{missing.key}.{ending}").unlink(missing_ok=True)
        reasons = "; ".join(f"{figure.title} ({figure.reason})" for figure in figures.not_drawn)
        notes[index] = f"Not drawn: {reasons}." if reasons else ""
    return shown, notes


def _count_drawn(sections: Sequence[Section]) -> int:
    """How many sections, the largest first, can be drawn within the report's time; one at least, if any."""
    from reports.figures.style import MAX_ROWS

    many = sum(len(section.records) for section in sections) >= MANY_RECORDS
    rows, count = 0, 0
    for section in sections[: min(MAX_FIGURE_SECTIONS, 1) if many else MAX_FIGURE_SECTIONS]:
        rows += min(len(section.rows), MAX_ROWS)
        if count and rows > MAX_FIGURE_ROWS:
            break
        count += 1
    return count


def _write_figure(drawing: Drawing, prefix: str, out_dir: Path) -> Figure:
    from markupsafe import Markup

    from reports.figures import inline_svg
    from reports.page import Figure
    from reports.text import clean_text

    name = f"figures/{prefix}{drawing.key}"
    write_whole(out_dir / f"{name}.svg", drawing.svg.encode())
    write_whole(out_dir / f"{name}.png", drawing.png)
    # matplotlib escapes the texts that it draws; inline_svg escapes the description.
    svg = Markup(inline_svg(drawing.svg, f"{prefix}{drawing.key}", clean_text(drawing.alt)))
    return Figure(
        topic=drawing.topic,
        title=drawing.title,
        caption=drawing.caption,
        alt=drawing.alt,
        svg=svg,
        file=name,
    )
