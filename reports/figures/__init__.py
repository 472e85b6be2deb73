"""Every figure of a report: one file per family, one style; a figure without data is not drawn, and says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from reports.figures.convergence import convergence
from reports.figures.cost import accuracy_vs_cost, pareto_front
from reports.figures.device import device_over_time
from reports.figures.hypernet import amplification, hidden_sizes, surfaces
from reports.figures.layers import layer_times
from reports.figures.machines import across_machines, comparable_sections
from reports.figures.memory import memory_by_category, memory_of_strategies
from reports.figures.roofline import roofline
from reports.figures.row_style import RowStyles, row_styles
from reports.figures.style import Drawing, Folders, NotDrawn, Sketch, figure_style, inline_svg, render
from reports.figures.time import phase_times, step_times
from reports.rows import Section

Builder = Callable[[Section, Folders, RowStyles], Sketch | NotDrawn]

#: In the order of a report.
FIGURES: tuple[Builder, ...] = (
    lambda section, _, styles: accuracy_vs_cost(section, styles),
    lambda section, *_: phase_times(section),
    lambda section, _, styles: step_times(section, styles),
    lambda section, *_: memory_by_category(section),
    lambda section, *_: memory_of_strategies(section),
    amplification,
    surfaces,
    lambda section, _, styles: hidden_sizes(section, styles),
    lambda section, _, styles: layer_times(section, styles),
    lambda section, _, styles: roofline(section, styles),
    lambda section, _, styles: convergence(section, styles),
    lambda section, _, styles: device_over_time(section, styles),
)


@dataclass(frozen=True, slots=True)
class SectionFigures:
    """What a section's data gave figures of, and what not."""

    drawn: tuple[Drawing, ...]
    not_drawn: tuple[NotDrawn, ...]


def draw_section(section: Section, folders: Folders | None = None, styles: RowStyles | None = None) -> SectionFigures:
    """Draw every figure that the section has data for.

    Args:
        section: of a report.
        folders: of its records' files, by key; without them, figures of such files are not drawn.
        styles: of all rows of the report; none: of this section's alone.
    """
    styles = styles or row_styles([section])
    return _rendered(lambda: (build(section, folders or {}, styles) for build in FIGURES))


def draw_across(sections: Sequence[Section]) -> SectionFigures:
    """Draw what compares sections of the same work on several machines.

    Args:
        sections: one group of ``comparable_sections``.
    """
    return _rendered(lambda: iter([across_machines(sections)]))


def _rendered(sketches: Callable[[], Iterator[Sketch | NotDrawn]]) -> SectionFigures:
    drawn: list[Drawing] = []
    not_drawn: list[NotDrawn] = []
    with figure_style():
        for sketch in sketches():
            if isinstance(sketch, NotDrawn):
                not_drawn.append(sketch)
            else:
                drawn.append(render(sketch))
    return SectionFigures(tuple(drawn), tuple(not_drawn))


__all__ = [
    "FIGURES",
    "Drawing",
    "Folders",
    "NotDrawn",
    "SectionFigures",
    "Sketch",
    "comparable_sections",
    "draw_across",
    "draw_section",
    "figure_style",
    "inline_svg",
    "pareto_front",
    "row_styles",
]
