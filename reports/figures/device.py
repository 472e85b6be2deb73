"""Power, clocks and load of the device while steps were timed."""

from __future__ import annotations

from collections import Counter

import numpy as np

from bench.records.schema import DeviceSeries
from bench.units import MEBIBYTE, Absent
from reports.figures.row_style import RowStyles, row_styles
from reports.figures.style import (
    INK,
    RASTER_ABOVE,
    NotDrawn,
    Sketch,
    cap_rows,
    legend_below,
    panels,
    tag,
)
from reports.rows import Row, Section
from reports.text import clean_text

MAX_LINES = 12
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
    figure, axes = panels(section, lines, columns, height_in=1.0 + 2.1 * lines + 0.06 * len(rows), sharex=True)
    styles = styles or row_styles([section])
    sentences = []
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    for ax, (name, label, factor) in zip(axes.flat, shown, strict=False):
        seen: list[float] = []
        for row in known[name]:
            for series in series_of(row):
                values = _values(series, name)
                if values is None:
                    continue
                known_at = np.flatnonzero(np.isfinite(values))
                part = slice(known_at[0], known_at[-1] + 1)  # unknown ends would stretch the axis
                values, times = values[part] * factor, np.array(series.time_s)[part]
                dense = len(times) > RASTER_ABOVE
                ax.plot(
                    times, values, color=styles[row.label].colour, linewidth=1.1, alpha=0.85, label=tag(row),
                    rasterized=dense,
                )  # fmt: skip
                slow = _throttled(series)[part]
                if slow.any():
                    ax.scatter(times[slow], values[slow], marker="x", s=26, color=INK, zorder=3, label="throttled")
                seen += values[np.isfinite(values)].tolist()
        ax.set_title(label)
        if len(seen):
            sentences.append(f"{label}: {min(seen):.4g} to {max(seen):.4g}, median {float(np.median(seen)):.4g}.")
    for ax in axes.flat[max(0, len(shown) - columns) : len(shown)]:
        ax.set_xlabel("seconds of the timing process")
        ax.tick_params(labelbottom=True)
    legend_below(figure, axes.flat[0])
    caption = (
        f"One line a timing process, sampled beside it; crossed: the device said that it ran slower than asked.{more}"
    )
    if known["process_bytes"]:
        caption += (
            " A timing process holds the FP32 model besides the row’s: this is not the peak that the memory pass told."
        )
    if absent:
        named = {name: label.rsplit(",", 1)[0] for name, label, _ in QUANTITIES}
        caption += " " + "; ".join(f"{named[name]}: n/a ({why})" for name, why in absent.items()) + "."
    return Sketch(
        key=key, topic=topic, title=title, caption=clean_text(caption), alt=" ".join(sentences), figure=figure
    )


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
