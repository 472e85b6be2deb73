"""Seaborn figures of one section, one function each; every figure is written as SVG and PNG and described in words.

Text and lines carry two marker colours that ``inline_svg`` turns into CSS variables, so that one drawing reads well
on a light and on a dark page. Colours are seaborn's colour-blind-safe palette; no fact is told by colour alone.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.records.schema import Interval, Summary
from bench.units import MEBIBYTE, Absent
from reports.frames import curves_frame, samples_frame
from reports.rows import PHASES, Estimate, Row, Section
from reports.text import clean_text
from reports.values import is_synthetic

MAX_ROWS = 30  # of one figure: more bars cannot be told apart
RASTER_ABOVE = 4000  # points; an SVG of more is slow to open
_INK = "#1a1b1c"  # marker colours, told apart from data colours by being unused elsewhere
_GRID = "#d4d5d6"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "metagrad-bench",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "text.parse_math": False,  # a dollar sign in a name starts no formula
}
_PALETTE = sns.color_palette("colorblind").as_hex()
_PHASE_COLOURS = {
    "data": "#949494", "forward": _PALETTE[0], "backward": _PALETTE[1], "meta": _PALETTE[4], "optimizer": _PALETTE[2],
    "unattributed": "#c8c8c8",
}  # fmt: skip
_WIDTH_IN = 8.6
_HATCHES = {"data": "..", "forward": "", "backward": "//", "meta": "xx", "optimizer": "\\\\", "unattributed": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A drawn figure: bytes of both formats, caption, and what it shows in words."""

    key: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes


def draw_section(section: Section) -> tuple[Drawing, ...]:
    """Draw every figure that the section has data for."""
    plt.switch_backend("agg")  # draws into memory, whatever display there is
    drawn = []
    style: dict[Any, Any] = {**sns.axes_style("whitegrid"), **_STYLE}
    with mpl.rc_context(style), warnings.catch_warnings():
        # Names may hold letters that the PNG's font lacks; the SVG leaves them to the reader's fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for build in (accuracy_vs_cost, phase_times, memory, step_times, convergence):
            drawing = build(section)
            if drawing is not None:
                drawn.append(drawing)
    return tuple(drawn)


def accuracy_vs_cost(section: Section) -> Drawing | None:
    """Accuracy against step time and against peak memory; the Pareto front joins rows that none beats in both."""
    points = [row for row in section.rows if isinstance(row.accuracy, Estimate)]
    timed = [(row, row.step_ms.median) for row in points if isinstance(row.step_ms, Summary)]
    sized = [
        (row, row.peak_allocated_bytes / MEBIBYTE) for row in points if not isinstance(row.peak_allocated_bytes, Absent)
    ]
    panels = [
        (pairs, label) for pairs, label in ((timed, "step time, ms (median)"), (sized, "peak allocated, MiB")) if pairs
    ]
    if not panels:
        return None
    figure, axes = plt.subplots(
        1, len(panels), figsize=(_WIDTH_IN, 3.7), squeeze=False, sharey=True, layout="constrained"
    )
    colours = _row_colours(section.rows)
    sentences = []
    for ax, (pairs, label) in zip(axes[0], panels, strict=True):
        front = pareto_front([(cost, _accuracy(row)) for row, cost in pairs])
        path = sorted(pairs[index][1] for index in front)
        ax.plot(
            path, [_accuracy(pairs[i][0]) for i in sorted(front, key=lambda i: pairs[i][1])], color=_INK, linewidth=1.0,
            linestyle="--", alpha=0.6, zorder=1,
        )  # fmt: skip
        for index, (row, cost) in enumerate(pairs):
            estimate = row.accuracy
            assert isinstance(estimate, Estimate), "only rows with an accuracy are drawn"
            if isinstance(row.step_ms, Summary) and label.startswith("step"):
                ax.plot(
                    [row.step_ms.q1, row.step_ms.q3], [estimate.value] * 2, color=colours[row.label][0], linewidth=1.4
                )
            if isinstance(estimate.interval, Interval):
                ax.plot(
                    [cost] * 2,
                    [estimate.interval.low, estimate.interval.high],
                    color=colours[row.label][0],
                    linewidth=1.4,
                )
            colour, marker = colours[row.label]
            ax.scatter(
                cost, estimate.value, s=64, marker=marker, color=colour, zorder=3, label=_tag(row),
                edgecolor=_INK if index in front else "none", linewidth=1.2,
            )  # fmt: skip
        costs = [cost for _, cost in pairs]
        if min(costs) > 0 and max(costs) / min(costs) > 12:
            _log_axis(ax, "x")
        ax.set_xlabel(label)
        best = ", ".join(row.label for row, _ in sorted((pairs[i] for i in front), key=lambda pair: pair[1]))
        sentences.append(f"On the Pareto front of accuracy against {label.split(',')[0]}: {best}.")
    axes[0][0].set_ylabel("test accuracy, %")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize=8)
    caption = "Up and left is better. Outlined points, joined by the dashed line, are beaten by no row in both. Bars: quartiles of the time; 95 % over seeds."  # noqa: E501
    return _finish("accuracy", "Accuracy against cost", caption, " ".join(sentences), figure)


def phase_times(section: Section) -> Drawing | None:
    """Stacked phases of the step, in milliseconds and as shares."""
    rows = [row for row in section.rows if not isinstance(row.phase_share_pct, Absent)][:MAX_ROWS]
    if not rows:
        return None
    height = 1.5 + 0.34 * len(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(_WIDTH_IN, height), sharey=True, layout="constrained")
    names = [row_name for row_name in PHASES if any(row_name in _shares(row) for row in rows)]
    positions = range(len(rows))
    offsets_ms, offsets_pct = [0.0] * len(rows), [0.0] * len(rows)
    for name in names:
        shares = [_shares(row).get(name, 0.0) for row in rows]
        times = [_mean_step(row) * share / 100 for row, share in zip(rows, shares, strict=True)]
        style = {
            "color": _PHASE_COLOURS[name],
            "hatch": _HATCHES[name],
            "edgecolor": "#ffffff",
            "linewidth": 0.4,
            "height": 0.7,
        }
        left.barh(positions, times, left=offsets_ms, label=name, **style)
        right.barh(positions, shares, left=offsets_pct, **style)
        offsets_ms = [a + b for a, b in zip(offsets_ms, times, strict=True)]
        offsets_pct = [a + b for a, b in zip(offsets_pct, shares, strict=True)]
    left.set_yticks(list(positions), [_tag(row) for row in rows])
    left.invert_yaxis()
    left.set_xlabel("mean step, ms")
    right.set_xlabel("share of the mean step, %")
    right.set_xlim(0, 100)
    for ax in (left, right):
        ax.grid(visible=False, axis="y")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(names), fontsize=8)
    longest = max(rows, key=_mean_step)
    slowest = f"the longest mean step is {longest.label} with {_mean_step(longest):.4g} ms"
    alt = f"Stacked bars of {', '.join(names)} for {len(rows)} rows; {slowest}."
    return _finish(
        "phases",
        "Where the time goes",
        "Phases of the training step; unattributed is what no phase covers.",
        alt,
        figure,
    )


def memory(section: Section) -> Drawing | None:
    """Peak allocated memory with the part that the hypernetwork adds, strategies side by side."""
    rows = [row for row in section.rows if not isinstance(row.peak_allocated_bytes, Absent)][:MAX_ROWS]
    title, unit = "allocated", "peak_allocated_bytes"
    if not rows:
        rows = [row for row in section.rows if not isinstance(row.peak_process_bytes, Absent)][:MAX_ROWS]
        title, unit = "process", "peak_process_bytes"
    if not rows:
        return None
    extra_name = f"hypernet_extra_{title}_bytes"
    figure, ax = plt.subplots(figsize=(_WIDTH_IN, 1.4 + 0.34 * len(rows)), layout="constrained")
    peaks = [getattr(row, unit) / MEBIBYTE for row in rows]
    extras = [
        0.0 if isinstance(getattr(row, extra_name), Absent) else getattr(row, extra_name) / MEBIBYTE for row in rows
    ]
    extras = [min(max(extra, 0.0), peak) for extra, peak in zip(extras, peaks, strict=True)]
    rest = [peak - extra for peak, extra in zip(peaks, extras, strict=True)]
    positions = range(len(rows))
    ax.barh(positions, rest, color=_PALETTE[0], height=0.7, label="model, activations, optimizer, workspace")
    ax.barh(positions, extras, left=rest, color=_PALETTE[4], hatch="xx", edgecolor="#ffffff", linewidth=0.4, height=0.7,
            label="added by the hypernetwork")  # fmt: skip
    for position, (row, peak) in enumerate(zip(rows, peaks, strict=True)):
        ax.annotate(f" {peak:.3g}", (peak, position), va="center", fontsize=8)
        if isinstance(getattr(row, extra_name), Absent) and row.has_hypernet:
            ax.annotate("        (added part n/a)", (peak, position), va="center", fontsize=7)
    ax.set_yticks(list(positions), [_tag(row) for row in rows])
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set_xlabel(f"peak {title}, MiB")
    ax.grid(visible=False, axis="y")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    largest = max(range(len(rows)), key=lambda index: peaks[index])
    alt = (
        f"Peak {title} memory of {len(rows)} rows; the largest is {rows[largest].label} with {peaks[largest]:.4g} MiB."
    )
    caption = "The hypernetwork's part is the peak with it minus the peak without it, in two fresh processes."
    return _finish("memory", "Peak memory", caption, alt, figure)


def step_times(section: Section) -> Drawing | None:
    """Every measured step as a point, over a box of quartiles."""
    rows = [row for row in section.rows if isinstance(row.step_ms, Summary)][:MAX_ROWS]
    if not rows:
        return None
    frames = []
    for row in rows:
        frame = samples_frame(row.records)
        frames.append(frame[frame["of"] == "cell"].assign(row=row.label)[["row", "step_ms"]])
    samples = pd.concat(frames, ignore_index=True)
    figure, ax = plt.subplots(figsize=(_WIDTH_IN, 1.1 + 0.38 * len(rows)), layout="constrained")
    colours = _row_colours(section.rows)
    for position, row in enumerate(rows):
        assert isinstance(row.step_ms, Summary), "only timed rows are drawn"
        values = samples.loc[samples["row"] == row.label, "step_ms"].to_numpy()
        # A fixed pattern instead of random jitter: equal records give equal bytes.
        heights = [position + 0.17 * ((index * 0.618034) % 1.0 * 2 - 1) for index in range(len(values))]
        ax.scatter(
            values,
            heights,
            s=11,
            color=colours[row.label][0],
            alpha=0.75,
            linewidth=0,
            zorder=2,
            rasterized=len(samples) > RASTER_ABOVE,
        )
        box, middle = row.step_ms, [row.step_ms.median] * 2
        ax.barh(position, box.q3 - box.q1, left=box.q1, height=0.5, facecolor="none", edgecolor=_INK, linewidth=0.9)
        ax.plot(middle, [position - 0.25, position + 0.25], color=_INK, linewidth=1.8)
    ax.set_yticks(range(len(rows)), [_tag(row) for row in rows])
    ax.invert_yaxis()
    spread = samples["step_ms"]
    if spread.min() > 0 and spread.max() / spread.min() > 30:
        _log_axis(ax, "x")
    ax.set_xlabel("step time, ms")
    ax.grid(visible=False, axis="y")
    alt = f"Step times of {len(rows)} rows, {len(samples)} measured steps, every one a point; boxes span the quartiles."
    return _finish(
        "steps",
        "Every measured step",
        "Each point is one step; the box spans the quartiles, its line is the median.",
        alt,
        figure,
    )


def convergence(section: Section) -> Drawing | None:
    """Loss and accuracy over steps and over seconds; one line a seed."""
    rows = section.rows[:MAX_ROWS]
    frames = []
    for row in rows:
        frame = curves_frame(row.records)
        if not frame.empty:
            frames.append(frame.assign(row=row.label))
    if not frames:
        return None
    curves = pd.concat(frames, ignore_index=True)
    with_accuracy = not is_synthetic(rows[0].first) and curves["test_accuracy_pct"].notna().any()
    quantities = [("train_loss", "training loss")]
    if with_accuracy:
        quantities.append(("test_accuracy_pct", "test accuracy, %"))
    figure, axes = plt.subplots(
        len(quantities), 2, figsize=(_WIDTH_IN, 2.5 * len(quantities) + 0.9), squeeze=False, sharex="col", sharey="row",
        layout="constrained",
    )  # fmt: skip
    colours = _row_colours(section.rows)
    for (name, label), line in zip(quantities, axes, strict=True):
        for ax, (column, words) in zip(line, (("step", "steps"), ("seconds", "seconds of training")), strict=True):
            for row in rows:
                mine = curves[curves["row"] == row.label]
                for index, (_, seed) in enumerate(mine.groupby("seed", sort=True)):
                    points = seed.dropna(subset=[name]).sort_values("step")
                    colour, marker = colours[row.label]
                    ax.plot(
                        points[column], points[name].astype(float), color=colour, marker=marker, markersize=3.5,
                        linewidth=1.3, linestyle="-" if row.is_low_bit else "--",
                        label=_tag(row) if index == 0 else None,
                    )  # fmt: skip
            if ax in axes[-1]:
                ax.set_xlabel(words)
        line[0].set_ylabel(label)
    if (curves["train_loss"].dropna() > 0).all():
        _log_axis(axes[0][0], "y")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize=8)
    what = "Training loss and test accuracy" if with_accuracy else "Training loss"
    alt = f"{what} of {curves['row'].nunique()} rows over steps and over seconds."
    return _finish(
        "convergence", "Convergence", "One line a seed, one point an epoch; dashed: floating point.", alt, figure
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of points (cost, gain) that no other beats: at most as costly, at least as good, and better in one."""
    return [
        index
        for index, (cost, gain) in enumerate(points)
        if not any(c <= cost and g >= gain and (c < cost or g > gain) for c, g in points)
    ]


def inline_svg(svg: str, prefix: str, alt: str) -> str:
    """Make a drawing fit for a page: no prolog, ids of its own, theme colours, and described for screen readers.

    Args:
        svg: a file as ``draw_section`` gives it.
        prefix: unique on the page.
        alt: what the figure shows; escaped here.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = re.sub(r'(xlink:)?href="#([^"]+)"', rf'href="#{prefix}-\2"', body)
    body = body.replace(_INK, "var(--ink)").replace(_GRID, "var(--rule)")
    words = alt.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    return re.sub(r"<svg\b[^>]*>", lambda found: _svg_tag(found.group(0), words), body, count=1)


def _svg_tag(tag: str, alt: str) -> str:
    box = re.search(r'viewBox="[^"]+"', tag)
    assert box is not None, "matplotlib writes a viewBox"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box.group(0)} role="img" aria-label="{alt}">'


def _finish(key: str, title: str, caption: str, alt: str, figure: Figure) -> Drawing:
    svg, png = io.StringIO(), io.BytesIO()
    # No date and no version of the drawing library: equal records give equal bytes.
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "metagrad-bench"})
    figure.savefig(png, format="png", dpi=144, facecolor="white", metadata={"Software": "metagrad-bench"})
    plt.close(figure)
    return Drawing(key=key, title=title, caption=caption, alt=alt, svg=svg.getvalue(), png=png.getvalue())


def _log_axis(ax: Axes, name: str) -> None:
    """Make an axis logarithmic and label it with plain numbers."""
    ax.set(**{f"{name}scale": "log"})
    axis = ax.xaxis if name == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _row_colours(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """A colour and a marker per row, the same in every figure of the section."""
    markers = "osD^vPX<>p*h"
    colours = [colour for colour in _PALETTE if colour not in {"#ece133", "#fbafe4"}]  # too pale on white
    return {row.label: (colours[i % len(colours)], markers[i % len(markers)]) for i, row in enumerate(rows)}


def _tag(row: Row) -> str:
    """The row's name with its label."""
    name = row.label if len(row.label) <= 44 else f"{row.label[:43]}…"
    tag = f"{name} · {row.ran_as}" if isinstance(row.ran_as, str) and row.is_low_bit else name
    return clean_text(tag)


def _accuracy(row: Row) -> float:
    assert isinstance(row.accuracy, Estimate), "only rows with an accuracy are drawn"
    return row.accuracy.value


def _shares(row: Row) -> dict[str, float]:
    return {} if isinstance(row.phase_share_pct, Absent) else dict(row.phase_share_pct)


def _mean_step(row: Row) -> float:
    samples: list[Any] = [
        s for record in row.records if record.timing for repeat in record.timing.repeats for s in repeat.step_ms
    ]
    return float(sum(samples) / len(samples)) if samples else 0.0
