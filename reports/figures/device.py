"""Power, clocks and load of the device while steps were timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from bench.records.schema import DeviceSeries
from bench.units import MEBIBYTE, Absent
from reports.figures.row_style import RowStyles, row_styles
from reports.figures.style import (
    GRID,
    INK,
    RASTER_ABOVE,
    NotDrawn,
    Sketch,
    cap_rows,
    name_rows,
    panels,
    tag,
)
from reports.rows import Row, Section
from reports.text import clean_text

MAX_LINES = 12
THROTTLED = "throttled"
GAP = np.array([np.nan])  # between two processes of a row
LANE = 0.8  # height of one, of the distance between two
QUANTITIES = (
    ("power_w", "power, W", 1.0), ("clock_mhz", "clock, MHz", 1.0), ("memory_clock_mhz", "memory clock, MHz", 1.0),
    ("temperature_c", "temperature, °C", 1.0), ("utilisation_pct", "utilisation, %", 1.0),
    ("process_bytes", "memory of the timing process, MiB", 1 / MEBIBYTE),
)  # fmt: skip


def device_over_time(section: Section, styles: RowStyles | None = None) -> Sketch | NotDrawn:
    """What was sampled of the device over the seconds of each timing process; throttled samples are crossed."""
    key, topic, title = "device", "time", "The device over time"
    rows, more = cap_rows([row for row in section.rows if series_of(row)], MAX_LINES)
    known = {
        name: [row for row in rows if any(_values(series, name) is not None for series in series_of(row))]
        for name, *_ in QUANTITIES
    }
    shown = [quantity for quantity in QUANTITIES if known[quantity[0]]]
    absent = {name: _reason(rows, name) for name, *_ in QUANTITIES if not known[name]}
    if not shown:
        reason = _reason(rows, "power_w") if rows else "the device was not sampled while steps were timed"
        return NotDrawn(key=key, topic=topic, title=title, reason=reason)
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    figure, axes = panels(
        section, lines, columns, height_in=0.7 + lines * (0.75 + 0.32 * len(rows)), sharex=True, sharey=True
    )
    styles = styles or row_styles([section])
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    sentences = [
        _draw_lanes(ax, rows, quantity, styles) for ax, quantity in zip(axes.flat[: len(shown)], shown, strict=True)
    ]
    name_rows(axes[0][0], rows)
    for ax in axes.flat[max(0, len(shown) - columns) : len(shown)]:
        ax.set_xlabel("seconds of the timing process")
        ax.tick_params(labelbottom=True)
    handles = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if THROTTLED in handles:
        figure.legend([handles[THROTTLED]], [THROTTLED], loc="outside lower center")
    caption = (
        "Each row runs in a lane of its own, one line a timing process, sampled beside it; a lane reaches from the "
        "lowest to the highest value that any row had, and its median stands at the right. Crossed: the device said "
        f"that it ran slower than asked.{more}"
    )
    if known["process_bytes"]:
        caption += (
            " A timing process holds the FP32 model besides the row’s: this is not the peak that the memory pass told."
        )
    if absent:
        named = {name: label.rsplit(",", 1)[0] for name, label, _ in QUANTITIES}
        caption += " Unknown here: " + "; ".join(f"{named[name]}: n/a ({why})" for name, why in absent.items()) + "."
    return Sketch(
        key=key, topic=topic, title=title, caption=clean_text(caption), alt=" ".join(sentences), figure=figure
    )


def _draw_lanes(ax: Axes, rows: Sequence[Row], quantity: tuple[str, str, float], styles: RowStyles) -> str:
    """One quantity of every row, each at its own height; answers its range in words."""
    name, label, factor = quantity
    curves = [[curve for series in series_of(row) if (curve := _curve(series, name, factor))] for row in rows]
    every = np.concatenate([values[np.isfinite(values)] for of in curves for _, values, _ in of])
    low, high = float(every.min()), float(every.max())
    for lane, (row, of) in enumerate(zip(rows, curves, strict=True)):
        placed = [
            (
                times,
                lane - LANE * ((values - low) / (high - low) - 0.5) if high > low else np.full(len(values), lane),
                slow,
            )
            for times, values, slow in of
        ]
        if placed:  # one line for all processes, with gaps: of thousands of processes each would be a second's work
            times, heights = (np.concatenate([part for one in placed for part in (one[i], GAP)][:-1]) for i in (0, 1))
            ax.plot(
                times, heights, color=styles[row.label].colour, linewidth=1.0, alpha=0.85, label=tag(row),
                rasterized=len(times) > RASTER_ABOVE,
            )  # fmt: skip
        for times, heights, slow in placed:
            if slow.any():
                ax.scatter(times[slow], heights[slow], marker="x", s=22, color=INK, zorder=3, label=THROTTLED)
        if of:
            middle = float(np.nanmedian(np.concatenate([values for _, values, _ in of])))
            ax.text(1.01, lane, f"{middle:.4g}", transform=ax.get_yaxis_transform(), va="center", fontsize=7)
        if lane:
            ax.axhline(lane - 0.5, color=GRID, linewidth=0.6)
    ax.grid(visible=False, axis="y")
    ax.set_title(f"{label}: {low:.4g} to {high:.4g}")
    return f"{label}: {low:.4g} to {high:.4g}, median {float(np.median(every)):.4g}."


def _curve(series: DeviceSeries, name: str, factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Seconds, values and whether it was throttled, from the first to the last known value; None without any."""
    values = _values(series, name)
    if values is None:
        return None
    known_at = np.flatnonzero(np.isfinite(values))
    part = slice(known_at[0], known_at[-1] + 1)  # unknown ends would stretch the axis
    return np.array(series.time_s)[part], values[part] * factor, _throttled(series)[part]


def series_of(row: Row) -> list[DeviceSeries]:
    """The series of every timing process of the row, all seeds."""
    repeats = [repeat for record in row.records if record.timing for repeat in record.timing.repeats]
    return [repeat.device for repeat in repeats if repeat.device is not None]


def _values(series: DeviceSeries, name: str) -> np.ndarray | None:
    """A series with NaN where a sample is unknown; None where all are."""
    values = getattr(series, name)
    if isinstance(values, Absent):
        return None
    array = np.array([np.nan if isinstance(value, Absent) else value for value in values], dtype=np.float64)
    return array if np.isfinite(array).any() else None


def _throttled(series: DeviceSeries) -> np.ndarray:
    if isinstance(series.throttled, Absent):
        return np.zeros(len(series.time_s), dtype=bool)
    return np.array([value is True for value in series.throttled])


def _reason(rows: list[Row], name: str) -> str:
    """The most frequent reason for a quantity that nowhere is known."""
    reasons: Counter[str] = Counter()
    for row in rows:
        for series in series_of(row):
            values = getattr(series, name)
            absent = [values] if isinstance(values, Absent) else [v for v in values if isinstance(v, Absent)]
            reasons.update(value.reason for value in absent)
    return reasons.most_common(1)[0][0] if reasons else "no sample was taken"
