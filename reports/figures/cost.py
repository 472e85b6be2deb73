"""Accuracy against what it costs: step time and peak memory, the Pareto front marked."""

from __future__ import annotations

from collections.abc import Sequence

from bench.records.schema import Interval, Summary
from bench.units import MEBIBYTE, Absent
from reports.figures.style import (
    INK,
    NotDrawn,
    Sketch,
    cap_rows,
    legend_below,
    log_axis,
    panels,
    row_colours,
    tag,
    wants_log,
)
from reports.rows import Estimate, Row, Section
from reports.text import clean_text

LOG_ABOVE = 12  # largest over smallest cost


def accuracy_vs_cost(section: Section) -> Sketch | NotDrawn:
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
    colours = row_colours(section.rows)
    sentences = []
    for ax, (pairs, what, unit) in zip(axes[0], drawn, strict=True):
        front = pareto_front([(cost, accuracy_of(row)) for row, cost in pairs])
        joined = sorted((pairs[index][1], accuracy_of(pairs[index][0])) for index in front)
        ax.plot(*zip(*joined, strict=True), color=INK, linewidth=1.0, linestyle="--", alpha=0.6, zorder=1)
        for index, (row, cost) in enumerate(pairs):
            colour, marker = colours[row.label]
            value, interval = accuracy_of(row), row.accuracy.interval if isinstance(row.accuracy, Estimate) else None
            if what == "step time" and isinstance(row.step_ms, Summary):
                ax.plot([row.step_ms.q1, row.step_ms.q3], [value] * 2, color=colour, linewidth=1.4)
            if isinstance(interval, Interval):
                ax.plot([cost] * 2, [interval.low, interval.high], color=colour, linewidth=1.4)
            ax.scatter(
                cost, value, s=64, marker=marker, color=colour, zorder=3, label=tag(row, seeds=True),
                edgecolor=INK if index in front else "none", linewidth=1.3,
            )  # fmt: skip
        if wants_log([cost for _, cost in pairs], LOG_ABOVE):
            log_axis(ax, "x")
        ax.margins(x=0.08, y=0.1)
        ax.set_xlabel(f"{what}, {unit}{' (median)' if unit == 'ms' else ''}")
        best = ", ".join(
            f"{pairs[i][0].label} ({accuracy_of(pairs[i][0]):.4g} %, {pairs[i][1]:.4g} {unit})"
            for i in sorted(front, key=lambda i: pairs[i][1])
        )
        sentences.append(f"On the Pareto front of accuracy against {what}, cheapest first: {best}.")
    axes[0][0].set_ylabel("test accuracy, %")
    legend_below(figure, axes[0][0])
    caption = (
        "Up and left is better. Outlined points, joined by the dashed line, are beaten by no row in both. Bars: "
        f"quartiles of the time; 95 % over seeds where there are several (n).{more}"
    )
    missing = [row.label for row in section.rows if row not in [row for pairs, *_ in drawn for row, _ in pairs]]
    if missing and not more:
        caption += f" Without accuracy or cost, so not shown: {clean_text(', '.join(missing))}."
    return Sketch(key=key, topic=topic, title=title, caption=caption, alt=" ".join(sentences), figure=figure)


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
