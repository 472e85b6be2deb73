"""How a row is drawn, the same in every figure of a report, and how curves that coincide stay visible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import seaborn as sns

from reports.figures.style import INK, PALETTE
from reports.rows import Section
from reports.text import clean_text

FP32_GREY = "#8a8a8a"
COINCIDE = 0.004  # of a panel's span: less than the width of a line
_DASH = 5.0  # length of one, in line widths
_MARKERS = "osD^vPX<>p*h"
_STRONG = [colour for colour in PALETTE if colour not in {"#ece133", "#fbafe4", "#949494"}]  # too pale, or FP32's grey
_COLOURS = [*_STRONG, *sns.color_palette([sns.dark_palette(colour, 10)[6] for colour in _STRONG]).as_hex()]


@dataclass(frozen=True, slots=True)
class RowStyle:
    """A row's colour, marker and line."""

    colour: str
    marker: str
    line: str = "-"
    width: float = 1.4


#: By the row's label.
RowStyles = Mapping[str, RowStyle]


def row_styles(sections: Sequence[Section]) -> RowStyles:
    """A style for every row of some sections; rows of one label share it.

    FP32 stands in dotted grey and the straight-through estimator in dashed ink, the first of each: readers compare
    with them. The others follow the palette, its darker half after its first.

    Args:
        sections: of one report.
    """
    styles: dict[str, RowStyle] = {}
    references = {"fp32": (FP32_GREY, ":"), "ste": (INK, "--")}
    others = 0
    for row in (row for section in sections for row in section.rows):
        if row.label in styles:
            continue
        marker = _MARKERS[len(styles) % len(_MARKERS)]
        if row.method.name in references:
            colour, line = references.pop(row.method.name)
            styles[row.label] = RowStyle(colour, marker, line, 1.8)
        else:
            styles[row.label] = RowStyle(_COLOURS[others % len(_COLOURS)], marker)
            others += 1
    return styles


def coinciding(curves: Mapping[str, np.ndarray], *, log: bool = False) -> list[tuple[str, ...]]:
    """Names of curves that lie on one another, in groups of two and more.

    Args:
        curves: (points, 2) each, x and y, in the order of drawing.
        log: whether y is drawn on a logarithmic axis.
    """
    shown = {
        name: np.column_stack([of[:, 0], np.log(of[:, 1])]) if log else of for name, of in curves.items() if len(of)
    }
    if not shown:
        return []
    everything = np.concatenate(list(shown.values()))
    span = np.ptp(everything, axis=0)
    span[span == 0] = 1.0
    groups: list[list[str]] = []
    for name, curve in shown.items():
        for group in groups:
            first = shown[group[0]]
            if first.shape == curve.shape and (np.abs(first - curve) <= COINCIDE * span).all():
                group.append(name)
                break
        else:
            groups.append([name])
    return [tuple(group) for group in groups if len(group) > 1]


def alternating(name: str, groups: Iterable[tuple[str, ...]], *, every: int = 1) -> dict[str, Any]:
    """Line options that let each of some coinciding curves show: dashes and markers take turns; none for one alone.

    Args:
        name: of the curve.
        groups: as ``coinciding`` gives them.
        every: how many points there are to a marker.
    """
    group = next((group for group in groups if name in group), ())
    if not group:
        return {"markevery": every}
    turn, count = group.index(name), len(group)
    dashes = ((count - turn) % count * _DASH, (_DASH, (count - 1) * _DASH))
    return {"linestyle": dashes, "linewidth": 1.8, "markevery": (turn * every, count * every)}


def coincidence_note(groups_by_name: Mapping[str, Sequence[tuple[str, ...]]]) -> str:
    """A sentence for a caption: which curves take turns in which panel; "" where none coincide.

    Args:
        groups_by_name: groups of labels, by the name of the panel.
    """
    told: dict[tuple[str, ...], list[str]] = {}
    for name, groups in groups_by_name.items():
        for group in groups:
            told.setdefault(group, []).append(name)
    parts = [f"{', '.join(group)} (in {', '.join(names)})" for group, names in told.items()]
    return f" Coinciding, so drawn in alternating dashes: {clean_text('; '.join(parts))}." if parts else ""
