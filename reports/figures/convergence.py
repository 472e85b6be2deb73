"""Loss and accuracy over steps and over seconds, every method against the straight-through estimator.

Source: the layout of MetaQuant's Figs. 5 to 15 (Chen et al., NeurIPS 2019), with seconds beside steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bench.records.schema import EpochPoint, Interval
from bench.stats import mean_interval
from bench.units import Absent
from reports.figures.row_style import (
    RowStyle,
    RowStyles,
    alternating,
    coincidence_note,
    coinciding,
    row_styles,
)
from reports.figures.style import (
    NotDrawn,
    Sketch,
    cap_rows,
    legend_below,
    log_axis,
    panels,
    tag,
    wants_log,
)
from reports.rows import Row, Section

MAX_LINES = 14
REFERENCES = ("ste", "fp32")  # drawn first, in ink and grey
_LOG_ABOVE = 4  # largest over smallest loss


@dataclass(frozen=True, slots=True)
class Curve:
    """One quantity of one row: by seed, and their mean where they share their steps."""

    seeds: tuple[np.ndarray, ...]  # (points, 3) each: step, seconds, value
    mean: np.ndarray  # (points, 5): step, seconds, mean, low, high; low = high = mean for one seed


def convergence(section: Section, styles: RowStyles | None = None) -> Sketch | NotDrawn:
    """Mean training loss and test accuracy after every epoch, over steps and over seconds of training."""
    key, topic, title = "convergence", "convergence", "Convergence"
    trained = [row for row in section.rows if any(points_of(row, "train_loss"))]
    rows, more = cap_rows(_with_references_first(trained), MAX_LINES)
    if not rows:
        return NotDrawn(key=key, topic=topic, title=title, reason="no row was trained")
    quantities = [("train_loss", "training loss")]
    if not section.synthetic and any(any(points_of(row, "test_accuracy_pct")) for row in rows):
        quantities.append(("test_accuracy_pct", "test accuracy, %"))
    figure, axes = panels(
        section,
        len(quantities),
        2,
        height_in=2.5 * len(quantities) + 1.0 + 0.05 * len(rows),
        sharex="col",
        sharey="row",
    )
    styles = styles or row_styles([section])
    losses = [value for row in rows for seed in points_of(row, "train_loss") for *_, value in seed]
    log = wants_log(losses, _LOG_ABOVE)
    together = {}
    for (name, label), line in zip(quantities, axes, strict=True):
        curves = {row.label: curve for row in rows if (curve := curve_of(row, name)) is not None and len(curve.mean)}
        over_steps = {of: curve.mean[:, [0, 2]] for of, curve in curves.items()}
        together[label] = coinciding(over_steps, log=log and name == "train_loss")
        for row in rows:
            if row.label in curves:
                for column, (ax, groups) in enumerate(zip(line, (together[label], ()), strict=True)):
                    _draw(ax, row, curves[row.label], column, styles[row.label], groups)
        line[0].set_ylabel(label)
    if log:
        log_axis(axes[0][0], "y")
    axes[-1][0].set_xlabel("steps")
    axes[-1][1].set_xlabel("seconds of training")
    legend_below(figure, axes[0][0])
    ste = [row for row in rows if row.method.name == "ste"]
    caption = (
        "One point an epoch: the epoch's mean loss, the accuracy after it. STE is dashed, FP32 dotted in grey; of "
        "several seeds (n) a thin line each, their mean, and its 95 % interval."
    )
    if any(_starts_trained(row) for row in rows):
        caption += " Rows start from FP32 weights that were trained before: FP32 goes on where it was."
    caption += more
    caption += coincidence_note({f"{name} over steps": groups for name, groups in together.items()})
    if not ste:
        caption += " No STE row was measured here."
    alt = _describe(rows, with_accuracy=len(quantities) > 1)
    return Sketch(key=key, topic=topic, title=title, caption=caption, alt=alt, figure=figure)


def points_of(row: Row, name: str) -> list[list[tuple[float, float, float]]]:
    """By seed: (step, seconds, value) of every epoch in which the value is known."""
    seeds: list[list[tuple[float, float, float]]] = []
    for record in row.records:
        curve: Sequence[EpochPoint] = record.accuracy.curve if record.accuracy is not None else ()
        points = [(float(p.step), p.seconds, v) for p in curve if not isinstance(v := getattr(p, name), Absent)]
        if points:
            seeds.append(points)
    return seeds


def _starts_trained(row: Row) -> bool:
    return any(
        record.accuracy is not None and not isinstance(record.accuracy.pretrained_accuracy_pct, Absent)
        for record in row.records
    )


def curve_of(row: Row, name: str) -> Curve | None:
    """The row's curves by seed and their mean with its 95 % interval, as far as all seeds went."""
    seeds = points_of(row, name)
    if not seeds:
        return None
    shared = sorted(set.intersection(*({step for step, *_ in seed} for seed in seeds)))
    mean = []
    for step in shared:
        at = [next(point for point in seed if point[0] == step) for seed in seeds]
        interval = mean_interval([value for *_, value in at])
        seconds, value = (float(np.mean([point[i] for point in at])) for i in (1, 2))
        ends = (interval.low, interval.high) if isinstance(interval, Interval) else (value, value)
        mean.append((step, seconds, value, *ends))
    return Curve(tuple(np.array(seed) for seed in seeds), np.array(mean).reshape(-1, 5))


def _draw(ax: Axes, row: Row, curve: Curve, column: int, style: RowStyle, groups: Sequence[tuple[str, ...]]) -> None:
    colour = style.colour
    if len(curve.seeds) > 1:
        for seed in curve.seeds:
            ax.plot(seed[:, column], seed[:, 2], color=colour, linewidth=0.7, alpha=0.45, linestyle=style.line)
        ax.fill_between(
            curve.mean[:, column], curve.mean[:, 3], curve.mean[:, 4], color=colour, alpha=0.15, linewidth=0
        )
    every = max(1, len(curve.mean) // 16)  # a marker on each of 100 epochs is a thick line
    line: dict[str, Any] = {"linewidth": style.width, "linestyle": style.line}
    line |= alternating(row.label, groups, every=every)
    ax.plot(
        curve.mean[:, column], curve.mean[:, 2], color=colour, marker=style.marker, markersize=3.8,
        label=tag(row, seeds=True), **line,
    )  # fmt: skip


def _with_references_first(rows: Sequence[Row]) -> list[Row]:
    """STE and FP32 first: they are what a reader compares with; of too many rows one of each at most stays in front."""
    order = [[row for row in rows if row.method.name == name] for name in REFERENCES]
    others = [row for row in rows if row.method.name not in REFERENCES]
    keep = len(rows) if len(rows) <= MAX_LINES else 1
    return [*(row for of in order for row in of[:keep]), *others, *(row for of in order for row in of[keep:])]


def _describe(rows: Sequence[Row], *, with_accuracy: bool) -> str:
    ends = []
    for row in rows:
        loss, accuracy = curve_of(row, "train_loss"), curve_of(row, "test_accuracy_pct")
        if loss is None or not len(loss.mean):
            continue
        words = f"{row.named} loss {loss.mean[0, 2]:.3g} to {loss.mean[-1, 2]:.3g}"
        if with_accuracy and accuracy is not None and len(accuracy.mean):
            words += f", accuracy {accuracy.mean[0, 2]:.4g} to {accuracy.mean[-1, 2]:.4g} %"
        ends.append(f"{words} in {loss.mean[-1, 0]:,.0f} steps")
    what = "Training loss and test accuracy" if with_accuracy else "Training loss"
    return f"{what} over steps and over seconds, from the first epoch to the last: {'; '.join(ends)}."
