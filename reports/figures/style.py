"""What all figures share: one style, colours that colour-blind readers tell apart, text for those who see none.

Text and lines carry two marker colours that ``inline_svg`` turns into CSS variables, so that one drawing reads well
on a light and on a dark page. Colours are seaborn's colour-blind-safe palette; no fact is told by colour alone.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from reports.rows import Row, Section, machine_name
from reports.text import clean_text

MAX_ROWS = 30  # of one figure: more bars cannot be told apart
RASTER_ABOVE = 4000  # points; an SVG of more is slow to open
WIDTH_IN = 8.6
TAG_LETTERS = 40
INK = "#1a1b1c"  # marker colours, told apart from data colours by being unused elsewhere
GRID = "#d4d5d6"
PALETTE: list[str] = sns.color_palette("colorblind").as_hex()
DIVERGING = "vlag"  # seaborn's map for values on both sides of a middle
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "metagrad-bench",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "savefig.facecolor": "none",
    "text.parse_math": False,  # a dollar sign in a name starts no formula
}

#: Folder of each record's files, by the record's key; a record without one has no files beside it.
Folders = Mapping[str, Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """A figure as it stands in memory, its caption, and what it shows in words."""

    key: str  # file name, without the ending
    topic: str  # the part of a report that it belongs to: a key of ``reports.tables.TOPICS``
    title: str
    caption: str
    alt: str
    figure: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class NotDrawn:
    """A figure that there is no data for, and why."""

    key: str
    topic: str
    title: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A drawn figure: both formats, caption, and what it shows in words."""

    key: str
    topic: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw in the one style, into memory, whatever display there is."""
    plt.switch_backend("agg")
    style: dict[Any, Any] = {**sns.axes_style("whitegrid"), **_STYLE}
    with mpl.rc_context(style), warnings.catch_warnings():
        # Names may hold letters that the PNG's font lacks; the SVG leaves them to the reader's fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def panels(
    sections: Section | Sequence[Section], rows: int, columns: int, *, height_in: float, **options: Any
) -> tuple[Figure, Any]:
    """A figure with its axes (rows, columns) and, above them, what was measured on what.

    Args:
        sections: that it shows.
        rows: of axes.
        columns: of axes.
        height_in: inches.
        options: of ``plt.subplots``.
    """
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH_IN, height_in), squeeze=False, layout="constrained", **options
    )
    shown = [sections] if isinstance(sections, Section) else sections
    figure.suptitle(context_line(shown), x=0.006, ha="left", fontsize=7.5, alpha=0.75)
    return figure, axes


def context_line(sections: Sequence[Section]) -> str:
    """Model, data and machine of what is drawn; a figure that is passed on alone still says it."""
    first = sections[0]
    parts = [f"{first.model_name} on {first.data_name}"]
    if any(section.synthetic for section in sections):
        parts[0] += " (synthetic data)"
    if first.batch_size:
        parts.append(f"batch {first.batch_size}")
    machines = {(section.device, section.fingerprint) for section in sections}
    parts.append(machine_name(first.rows[0].first) if len(machines) == 1 else f"{len(machines)} machines")
    return clean_text(" · ".join(shorten(part, 60) for part in parts))


def render(sketch: Sketch) -> Drawing:
    """Write a sketch as SVG and PNG and close it; equal sketches give equal bytes."""
    figure = sketch.figure
    engine = figure.get_layout_engine()
    if engine is not None:  # once, not once per format
        engine.execute(figure)
        figure.set_layout_engine("none")
    svg, png = io.StringIO(), io.BytesIO()
    # No date and no version of the drawing library: equal records give equal bytes.
    # The canvas is asked itself: savefig would draw everything twice to find out what the layout above has settled.
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": "metagrad-bench"})
    figure.set_dpi(144)
    figure.set_facecolor("white")
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": "metagrad-bench"})
    plt.close(figure)
    return Drawing(
        key=sketch.key, topic=sketch.topic, title=sketch.title, caption=sketch.caption, alt=clean_text(sketch.alt),
        svg=_unique_ids(svg.getvalue()), png=png.getvalue(),
    )  # fmt: skip


def _unique_ids(svg: str) -> str:
    """Number the ids that occur again: matplotlib names a picture by its content, and two may show the same."""
    seen: Counter[str] = Counter()

    def number(found: re.Match[str]) -> str:
        seen[found[1]] += 1
        return found[0] if seen[found[1]] == 1 else f'id="{found[1]}-{seen[found[1]]}"'

    return re.sub(r'\bid="([^"]+)"', number, svg)


def inline_svg(svg: str, prefix: str, alt: str) -> str:
    """Make a drawing fit for a page: no prolog, ids of its own, theme colours, and described for screen readers.

    Args:
        svg: a file as ``draw_section`` gives it.
        prefix: unique on the page.
        alt: what the figure shows; escaped here.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    body = body.replace(INK, "var(--ink)").replace(GRID, "var(--rule)")
    words = alt.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    return re.sub(r"<svg\b[^>]*>", lambda found: _svg_tag(found.group(0), words), body, count=1)


def _svg_tag(tag: str, alt: str) -> str:
    box = re.search(r'viewBox="[^"]+"', tag)
    assert box is not None, "matplotlib writes a viewBox"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box.group(0)} role="img" aria-label="{alt}">'


def log_axis(ax: Axes, name: str, steps: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Make an axis logarithmic and label it with plain numbers."""
    ax.set(**{f"{name}scale": "log"})
    axis = ax.xaxis if name == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def wants_log(values: Iterable[float], ratio: float) -> bool:
    """Whether positive values spread so far that a linear axis would press most of them together."""
    known = list(values)
    return bool(known) and min(known) > 0 and max(known) / min(known) > ratio


def tag(row: Row, *, seeds: bool = False) -> str:
    """The row's name with what its products ran as (emulated, simulated) and, if asked for, its number of seeds."""
    parts = [shorten(clean_text(row.label), TAG_LETTERS)]
    if isinstance(row.ran_as, str) and row.is_low_bit:
        parts.append(row.ran_as)
    if seeds:
        parts.append(f"n = {len(row.records)}")
    text = " · ".join(parts)
    return f" {text}" if text.startswith("_") else text  # matplotlib leaves such names out of a legend


def shorten(text: str, letters: int) -> str:
    """A text of at most so many letters."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def cap_rows(rows: Sequence[Row], limit: int = MAX_ROWS) -> tuple[list[Row], str]:
    """The rows that one figure can show, and a sentence about the others for its caption."""
    left_out = len(rows) - limit
    return list(rows[:limit]), f" The first {limit} of {len(rows)} rows." if left_out > 0 else ""


def legend_below(figure: Figure, ax: Axes, columns: int = 3) -> None:
    """One legend for the whole figure, under it."""
    handles, labels = ax.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    figure.legend(
        list(by_label.values()), list(by_label), loc="outside lower center", ncols=min(columns, len(by_label))
    )


def name_rows(ax: Axes, rows: Sequence[Row]) -> None:
    """Rows as the ticks of a y axis that runs from top to bottom."""
    ax.set_yticks(range(len(rows)), [tag(row) for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")


def same_but(row: Row, *, method: Mapping[str, Any], cell: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    """Identity of a configuration without what is about to be compared.

    Args:
        row: of the configuration.
        method: facts to leave out, with what stands in their place.
        cell: leaves settings out of the composed config.
    """
    settings = {name: value for name, value in row.first.cell.items() if name not in {"seed", "variant_name"}}
    facts = dataclasses.astuple(dataclasses.replace(row.method, **method))
    return json.dumps([facts, cell(settings)], sort_keys=True, default=str)
