"""Accuracy against what it costs: step time and peak memory, the Pareto front marked."""

from __future__ import annotations

from collections.abc import Sequence

from bench.records.schema import Summary
from bench.units import MEBIBYTE, Absent
from reports.figures.quantity import ends_of
from reports.figures.row_style import RowStyles, row_styles
from reports.figures.style import (
    INK,
    NotDrawn,
    Sketch,
    cap_rows,
    legend_below,
    log_axis,
    panels,
    tag,
    wants_log,
)
from reports.rows import Estimate, Row, Section
from reports.text import clean_text

LOG_ABOVE = 12  # largest over smallest cost
ON_ANOTHER = 0.012  # of the cost, and of the range of accuracies: less than half a marker
_AREA = 64


def accuracy_vs_cost(section: Section, styles: RowStyles | None = None) -> Sketch | NotDrawn:
    """Accuracy against step time and against peak memory; the Pareto front joins rows that none beats in both."""
    key, topic, title = "accuracy", "accuracy", "Accuracy against cost"
    points, more = cap_rows([row for row in section.rows if isinstance(row.accuracy, Estimate)])
    timed = [(row, row.step_ms.median) for row in points if isinstance(row.step_ms, Summary)]
    sized = [(row, peak / MEBIBYTE) for row in points if not isinstance(peak := row.peak_allocated_bytes, Absent)]
    name = "peak allocated"
    if not sized:
        sized = [(row, peak / MEBIBYTE) for row in points if not isinstance(peak := row.peak_process_bytes, Absent)]
        name = "peak of the process"
    drawn = [(pairs, what, unit) for pairs, what, unit in ((timed, "step time", "ms"), (sized, name, "MiB")) if pairs]
    if not drawn:
        reason = "synthetic data has no accuracy" if section.synthetic else "no row has both an accuracy and a cost"
        return NotDrawn(key=key, topic=topic, title=title, reason=reason)
    figure, axes = panels(section, 1, len(drawn), height_in=3.9 + 0.12 * len(points), sharey=True)
    styles = styles or row_styles([section])
    sentences: list[str] = []
    alike: dict[tuple[str, ...], list[str]] = {}
    for ax, (pairs, what, unit) in zip(axes[0], drawn, strict=True):
        whole = [index for index, (row, _) in enumerate(pairs) if not row.unfinished]
        front = [whole[i] for i in pareto_front([(pairs[i][1], accuracy_of(pairs[i][0])) for i in whole])]
        joined = sorted((pairs[index][1], accuracy_of(pairs[index][0])) for index in front)
        if joined:
            ax.plot(*zip(*joined, strict=True), color=INK, linewidth=1.0, linestyle="--", alpha=0.6, zorder=1)
        groups = _one_on_another([(row.label, cost, accuracy_of(row)) for row, cost in pairs])
        alike |= {group: [*alike.get(group, []), what] for group in groups}
        for index, (row, cost) in enumerate(pairs):
            style = styles[row.label]
            value = accuracy_of(row)
            if what == "step time" and (ends := ends_of(row.step_ms)) is not None:
                ax.plot(ends, [value] * 2, color=style.colour, linewidth=1.4)
            if (ends := ends_of(row.accuracy)) is not None:
                ax.plot([cost] * 2, ends, color=style.colour, linewidth=1.4)
            ax.scatter(
                cost, value, s=_size(row.label, groups), marker=style.marker, color=style.colour, zorder=3,
                label=tag(row, seeds=True), edgecolor=INK if index in front else "none", linewidth=1.3,
            )  # fmt: skip
        if wants_log([cost for _, cost in pairs], LOG_ABOVE):
            log_axis(ax, "x")
        ax.margins(x=0.08, y=0.1)
        ax.set_xlabel(f"{what}, {unit}{' (median)' if unit == 'ms' else ''}")
        best = ", ".join(
            f"{pairs[i][0].named} ({accuracy_of(pairs[i][0]):.4g} %, {pairs[i][1]:.4g} {unit})"
            for i in sorted(front, key=lambda i: pairs[i][1])
        )
        sentences.append(f"On the Pareto front of accuracy against {what}, cheapest first: {best or 'no row'}.")
    axes[0][0].set_ylabel("test accuracy, %")
    legend_below(figure, axes[0][0])
    caption = (
        "Up and left is better. Outlined points, joined by the dashed line, are beaten by no row in both as measured, "
        "which may be chance; two rows’ step times were not taken side by side, and only their ratios to FP32 compare "
        f"them. Bars: quartiles of the time; 95 % over seeds where there are several (n).{more}"
    )
    missing = [row.label for row in section.rows if row not in [row for pairs, *_ in drawn for row, _ in pairs]]
    for group, whats in alike.items():
        caption += (
            f" Of {clean_text(', '.join(group))}, which coincide over {' and '.join(whats)}, the first is drawn larger."
        )
    if cut := [row.named for row in points if row.unfinished]:
        caption += f" Never outlined, since not all of their seeds finished: {clean_text(', '.join(cut))}."
    if missing and not more:
        caption += f" Without accuracy or cost, so not shown: {clean_text(', '.join(missing))}."
    return Sketch(key=key, topic=topic, title=title, caption=caption, alt=" ".join(sentences), figure=figure)


def _one_on_another(points: Sequence[tuple[str, float, float]]) -> list[tuple[str, ...]]:
    """Names of points (name, cost, gain) that would hide one another, in groups of two and more."""
    span = max(gain for *_, gain in points) - min(gain for *_, gain in points) or 1.0
    groups: list[list[tuple[str, float, float]]] = []
    for point in points:
        _, cost, gain = point
        near = (g for g in groups if abs(g[0][1] / cost - 1) < ON_ANOTHER and abs(g[0][2] - gain) < ON_ANOTHER * span)
        group = next(near, None)
        if group is None:
            groups.append([point])
        else:
            group.append(point)
    return [tuple(name for name, *_ in group) for group in groups if len(group) > 1]


def _size(name: str, groups: Sequence[tuple[str, ...]]) -> float:
    """Area of a marker: of points that coincide the first is drawn largest, and the others on it."""
    group = next((group for group in groups if name in group), (name,))
    return _AREA * 2.4 ** (len(group) - 1 - group.index(name)) if len(group) < 4 else _AREA


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of points (cost, gain) that no other beats: at most as costly, at least as good, and better in one."""
    return [
        index
        for index, (cost, gain) in enumerate(points)
        if not any(c <= cost and g >= gain and (c < cost or g > gain) for c, g in points)
    ]


def accuracy_of(row: Row) -> float:
    """The row's accuracy, percent."""
    assert isinstance(row.accuracy, Estimate), "only rows with an accuracy are drawn"
    return row.accuracy.value
