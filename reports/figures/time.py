"""Where a step's time goes by phase, and every single step that was measured."""

from __future__ import annotations

import numpy as np

from bench.records.schema import Summary
from bench.units import Absent
from reports.figures.row_style import RowStyles, row_styles
from reports.figures.style import (
    INK,
    PALETTE,
    RASTER_ABOVE,
    NotDrawn,
    Sketch,
    cap_rows,
    legend_below,
    log_axis,
    name_rows,
    panels,
    wants_log,
)
from reports.rows import PHASES, Row, Section

LOG_ABOVE = 30  # largest over smallest step
_COLOURS = {
    "data": "#949494", "forward": PALETTE[0], "backward": PALETTE[1], "meta": PALETTE[4], "optimizer": PALETTE[2],
    "unattributed": "#c8c8c8",
}  # fmt: skip
_HATCHES = {"data": "..", "forward": "", "backward": "//", "meta": "xx", "optimizer": "\\\\", "unattributed": ""}


def phase_times(section: Section) -> Sketch | NotDrawn:
    """Stacked phases of the step, in milliseconds and as shares."""
    key, topic, title = "phases", "time", "Where the time goes"
    rows, more = cap_rows([row for row in section.rows if not isinstance(row.phase_share_pct, Absent)])
    if not rows:
        return NotDrawn(key=key, topic=topic, title=title, reason="no row was timed")
    figure, axes = panels(section, 1, 2, height_in=1.6 + 0.32 * len(rows), sharey=True)
    left, right = axes[0]
    shares = [shares_of(row) for row in rows]
    means = [mean_step_ms(row) for row in rows]
    names = [name for name in (*PHASES, *sorted(set().union(*shares) - set(PHASES))) if any(name in s for s in shares)]
    places = range(len(rows))
    starts_ms, starts_pct = np.zeros(len(rows)), np.zeros(len(rows))
    for name in names:
        share = np.array([of.get(name, 0.0) for of in shares])
        time_ms = np.array(means) * share / 100
        style = {
            "color": _COLOURS.get(name, PALETTE[5]), "hatch": _HATCHES.get(name, "oo"), "edgecolor": "#ffffff",
            "linewidth": 0.4, "height": 0.72,
        }  # fmt: skip
        left.barh(places, time_ms, left=starts_ms, label=name, **style)
        right.barh(places, share, left=starts_pct, **style)
        starts_ms += time_ms
        starts_pct += share
    name_rows(left, rows)
    right.grid(visible=False, axis="y")
    left.set_xlabel("mean step, ms")
    right.set_xlabel("share of the mean step, %")
    right.set_xlim(0, 100)
    legend_below(figure, left, len(names))
    longest = max(range(len(rows)), key=lambda index: means[index])
    largest = {name: max(range(len(rows)), key=lambda i: shares[i].get(name, 0.0)) for name in names}
    alt = (
        f"Stacked bars of {', '.join(names)} for {len(rows)} rows. The longest mean step is {rows[longest].named} with "
        f"{means[longest]:.4g} ms. Largest shares: "
        + ", ".join(f"{name} {shares[i].get(name, 0.0):.1f} % in {rows[i].named}" for name, i in largest.items())
        + "."
    )
    caption = f"Phases of the mean training step; unattributed is what no phase covers.{more}"
    return Sketch(key=key, topic=topic, title=title, caption=caption, alt=alt, figure=figure)


def step_times(section: Section, styles: RowStyles | None = None) -> Sketch | NotDrawn:
    """Every measured step as a point, over a box of quartiles."""
    key, topic, title = "steps", "time", "Every measured step"
    rows, more = cap_rows([row for row in section.rows if isinstance(row.step_ms, Summary)])
    if not rows:
        return NotDrawn(key=key, topic=topic, title=title, reason="no row was timed")
    samples = [samples_of(row) for row in rows]
    count = sum(len(values) for values in samples)
    figure, axes = panels(section, 1, 1, height_in=1.2 + 0.36 * len(rows))
    ax, styles = axes[0][0], styles or row_styles([section])
    for place, (row, values) in enumerate(zip(rows, samples, strict=True)):
        # A fixed pattern instead of random jitter: equal records give equal bytes.
        heights = place + 0.2 * ((np.arange(len(values)) * 0.618034) % 1.0 * 2 - 1)
        ax.scatter(
            values, heights, s=11, color=styles[row.label].colour, marker=styles[row.label].marker, alpha=0.75,
            linewidth=0, zorder=2, rasterized=count > RASTER_ABOVE,
        )  # fmt: skip
        box = row.step_ms
        assert isinstance(box, Summary), "only timed rows are drawn"
        ax.barh(place, box.q3 - box.q1, left=box.q1, height=0.56, facecolor="none", edgecolor=INK, linewidth=0.9)
        ax.plot([box.median] * 2, [place - 0.28, place + 0.28], color=INK, linewidth=1.8)
    name_rows(ax, rows)
    everything = np.concatenate(samples)
    if wants_log((float(everything.min()), float(everything.max())), LOG_ABOVE):
        log_axis(ax, "x")
    ax.set_xlabel("step time, ms")
    slowest = max(range(len(rows)), key=lambda i: samples[i].max() / np.median(samples[i]))
    ratio = samples[slowest].max() / np.median(samples[slowest])
    alt = (
        f"Step times of {len(rows)} rows, {count:,} measured steps, every one a point; boxes span the quartiles. The "
        f"slowest step against its row's median is one of {rows[slowest].named}, {ratio:.3g} times as long."
    )
    caption = f"Each point is one step, of all processes; the box spans the quartiles, its line is the median.{more}"
    return Sketch(key=key, topic=topic, title=title, caption=caption, alt=alt, figure=figure)


def shares_of(row: Row) -> dict[str, float]:
    """Share of each phase in the mean step, percent."""
    return {} if isinstance(row.phase_share_pct, Absent) else dict(row.phase_share_pct)


def samples_of(row: Row) -> np.ndarray:
    """Every step time of the row, all seeds and processes, ms."""
    repeats = [repeat for record in row.records if record.timing for repeat in record.timing.repeats]
    return np.array([value for repeat in repeats for value in repeat.step_ms], dtype=np.float64)


def mean_step_ms(row: Row) -> float:
    """Mean of every measured step, ms."""
    values = samples_of(row)
    return float(values.mean()) if values.size else 0.0
