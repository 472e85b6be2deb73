"""What a hypernetwork does: amplification during training, its learned function, and what its size is worth.

Source: MetaQuant, Fig. 4 (amplification) and Table 6 (hidden size).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bench.errors import RecordError
from bench.records.schema import HypernetSurface
from bench.records.surface import SURFACE_FILE, read_surface
from reports.figures.beside import COLUMNS, read_hypernet_steps
from reports.figures.quantity import Quantity, ends_of, in_mib, is_known, middle_of
from reports.figures.row_style import RowStyles, alternating, coincidence_note, coinciding, row_styles
from reports.figures.style import (
    DIVERGING,
    INK,
    Folders,
    NotDrawn,
    Sketch,
    cap_rows,
    legend_below,
    log_axis,
    panels,
    same_but,
    shorten,
    tag,
)
from reports.rows import Row, Section
from reports.text import clean_text

MAX_LINES = 12
MAX_SURFACES = 3
NO_HYPERNET = "no row has a hypernetwork"
_LABELS = {"amplification": "amplification |g̃|/|g|", "cosine": "cosine of g̃ and g", "zero_share_pct": "zeros in g̃, %"}


def amplification(section: Section, folders: Folders, styles: RowStyles | None = None) -> Sketch | NotDrawn:
    """Amplification, angle and zeros of the replaced gradient over steps: median and quartiles over the layers."""
    key, topic, title = "amplification", "hypernetwork", "The gradient during training"
    rows, more = cap_rows([row for row in section.rows if row.has_hypernet], MAX_LINES)
    read = {row.label: read_hypernet_steps(folders.get(row.first.key)) for row in rows}
    drawn = [(row, frame) for row in rows if not isinstance(frame := read[row.label], str)]
    reasons = Counter(frame for frame in read.values() if isinstance(frame, str))
    if not drawn:
        reason = reasons.most_common(1)[0][0] if reasons else NO_HYPERNET
        return NotDrawn(key=key, topic=topic, title=title, reason=reason)
    figure, axes = panels(section, 1, len(COLUMNS), height_in=3.1 + 0.06 * len(drawn), sharex=True)
    styles = styles or row_styles([section])
    together = {}
    for ax, name in zip(axes[0], COLUMNS, strict=True):
        curves = {row.label: frame[["step", f"{name}_median"]].to_numpy() for row, frame in drawn}
        groups = together[_LABELS[name]] = coinciding({of: xy for of, xy in curves.items() if np.isfinite(xy).all()})
        for row, frame in drawn:
            style = styles[row.label]
            steps = frame["step"].to_numpy()
            low, middle, high = (frame[f"{name}_{end}"].to_numpy() for end in ("q1", "median", "q3"))
            ax.fill_between(steps, low, high, color=style.colour, alpha=0.15, linewidth=0)
            ax.plot(
                steps, middle, color=style.colour, marker=style.marker, markersize=3.5, label=tag(row),
                **{"linewidth": style.width} | alternating(row.label, groups, every=max(1, len(steps) // 16)),
            )  # fmt: skip
        ax.set_title(_LABELS[name])
        ax.set_xlabel("steps")
    axes[0][0].axhline(1.0, color=INK, linewidth=0.8, linestyle=":")
    legend_below(figure, axes[0][0])
    told = [f"{row.named} {_course(frame['amplification_median'])}" for row, frame in drawn]
    alt = f"Median amplification over the layers during training: {'; '.join(told)}."
    caption = (
        "g is the layer's gradient, g̃ what the hypernetwork and the quantizer make of it. Lines: median over the "
        f"layers; bands: quartiles over the layers; the lowest seed; the dotted line is no amplification.{more}"
    )
    caption += coincidence_note(together)
    for reason, count in sorted(reasons.items()):
        caption += f" Not shown: {count} of {len(rows)} rows ({reason})."
    return Sketch(key=key, topic=topic, title=title, caption=caption, alt=alt, figure=figure)


def _course(values: pd.Series) -> str:
    """A curve in words: its ends and how far it went between."""
    known = values.dropna()
    if known.empty:
        return "unknown"
    first, last, low, high = (f"{value:.4g}" for value in (known.iloc[0], known.iloc[-1], known.min(), known.max()))
    if low == high:
        return f"{low} at every observed step"
    return f"{first} at the first observed step and {last} at the last, between {low} and {high}"


def surfaces(section: Section, folders: Folders, styles: RowStyles | None = None) -> Sketch | NotDrawn:
    """f_psi over weight and gradient before and after training, and what it learned between; a curve for one input."""
    key, topic, title = "surface", "hypernetwork", "The hypernetwork's function, before and after training"
    rows = [row for row in section.rows if row.has_hypernet]
    found: list[tuple[Row, HypernetSurface]] = []
    reasons: Counter[str] = Counter()
    for row in rows:
        folder = folders.get(row.first.key)
        if folder is None or not (folder / SURFACE_FILE).is_file():
            reasons[f"no {SURFACE_FILE} lies beside the record"] += 1
            continue
        if len(found) == MAX_SURFACES:
            reasons[f"the first {MAX_SURFACES} are drawn"] += 1
            continue
        try:
            found.append((row, read_surface(folder)))
        except RecordError:  # its sentence names a path, which a report must not
            reasons[f"its {SURFACE_FILE} cannot be read"] += 1
    if not found:
        reason = reasons.most_common(1)[0][0] if reasons else NO_HYPERNET
        return NotDrawn(key=key, topic=topic, title=title, reason=reason)
    flat = [(row, surface) for row, surface in found if len(surface.axes) == 1]
    maps = [(row, surface) for row, surface in found if len(surface.axes) == 2]
    lines = len(maps) + bool(flat)
    figure, axes = panels(section, lines, 3 if maps else 1, height_in=0.7 + 2.3 * lines)
    sentences = [_draw_maps(line, row, surface) for line, (row, surface) in zip(axes, maps, strict=False)]
    if flat:
        for unused in axes[-1][1:]:
            unused.set_visible(False)
        sentences += _draw_curves(axes[-1][0], flat, styles or row_styles([section]))
    caption = (
        "The function that all layers share, over the range of the widest layer, of the lowest seed; an LSTM from a "
        "zero state. Right: after minus before, in a scale of its own."
        if maps
        else "The function that all layers share, of the lowest seed; thin before training, thick after."
    )
    for reason, count in sorted(reasons.items()):
        caption += f" Not shown: {count} of {len(rows)} rows ({reason})."
    return Sketch(key=key, topic=topic, title=title, caption=caption, alt=" ".join(sentences), figure=figure)


def hidden_sizes(section: Section, styles: RowStyles | None = None) -> Sketch | NotDrawn:
    """Accuracy, step time and added memory over the hypernetwork's hidden size H, everything else equal."""
    key, topic, title = "hidden_size", "hypernetwork", "The hypernetwork's hidden size"
    groups: dict[str, list[Row]] = {}
    for row in section.rows:
        if row.has_hypernet and isinstance(row.method.hidden, int):
            groups.setdefault(_without_hidden(row), []).append(row)
    sweeps = [
        sorted(group, key=lambda row: row.method.hidden if isinstance(row.method.hidden, int) else 0)
        for group in groups.values()
        if len({row.method.hidden for row in group}) > 1
    ][:MAX_LINES]
    if not sweeps:
        reason = "no hypernetwork was measured with two hidden sizes, all else equal" if groups else NO_HYPERNET
        return NotDrawn(key=key, topic=topic, title=title, reason=reason)
    quantities: list[tuple[str, Callable[[Row], Quantity]]] = [
        ("test accuracy, %", lambda row: row.accuracy),
        ("step against FP32, ratio", lambda row: row.time_vs_fp32),
        ("hypernetwork adds, MiB allocated", lambda row: in_mib(row.hypernet_extra_allocated_bytes)),
    ]
    shown = [(label, of) for label, of in quantities if any(is_known(of(row)) for sweep in sweeps for row in sweep)]
    if not shown:
        return NotDrawn(key=key, topic=topic, title=title, reason="no row of the sweep was measured")
    figure, axes = panels(section, 1, len(shown), height_in=3.1 + 0.06 * len(sweeps), sharex=True)
    sentences = []
    styles = styles or row_styles([section])
    for ax, (label, of) in zip(axes[0], shown, strict=True):
        for sweep in sweeps:
            known = [(row.method.hidden, of(row)) for row in sweep if is_known(of(row))]
            if not known:
                continue
            style = styles[sweep[0].label]
            sizes, values = [size for size, _ in known], [middle_of(value) for _, value in known]
            ax.plot(
                sizes, values, color=style.colour, marker=style.marker, markersize=5, linewidth=1.4,
                label=_sweep_name(sweep[0]),
            )  # fmt: skip
            for size, value in known:
                if (ends := ends_of(value)) is not None:
                    ax.plot([size] * 2, ends, color=style.colour, linewidth=1.4)
            told = ", ".join(f"{size}: {value:.4g}" for size, value in zip(sizes, values, strict=True))
            sentences.append(f"{label} by hidden size, {_sweep_name(sweep[0])}: {told}.")
        ax.set_title(label)
        ax.set_xlabel("hidden size H")
    log_axis(axes[0][0], "x", (1.0, 3.0))
    legend_below(figure, axes[0][0], 2)
    caption = (
        "Rows that differ in the hidden size alone, in the colour of the smallest; bars: 95 % intervals where there "
        "are any."
    )
    return Sketch(key=key, topic=topic, title=title, caption=caption, alt=" ".join(sentences), figure=figure)


def _draw_maps(line: Any, row: Row, surface: HypernetSurface) -> str:
    before, after = np.array(surface.before), np.array(surface.after)
    across, up = surface.axes
    extent = (across.values[0], across.values[-1], up.values[0], up.values[-1])
    limit = float(max(np.abs(before).max(), np.abs(after).max())) or 1.0
    change = after - before
    widest = float(np.abs(change).max())
    tables = (
        ("before", before, limit),
        ("after", after, limit),
        (f"after − before, at most {widest:.2g}", change, widest or 1.0),
    )
    for ax, (name, table, top) in zip(line, tables, strict=True):
        image = ax.imshow(
            table, origin="lower", extent=extent, aspect="auto", cmap=DIVERGING, vmin=-top, vmax=top,
            interpolation="nearest",
        )  # fmt: skip
        ax.grid(visible=False)
        ax.set_xlabel(across.name)
        ax.set_title(name, fontsize=8)
        if name != "before":  # both sides of the training share a scale
            bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.03, 0.0, 0.035, 1.0)))
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=7)
    line[0].set_title(f"{tag(row)}: {surface.output}\nbefore", fontsize=8)
    line[0].set_ylabel(up.name)
    return (
        f"{row.named}: {surface.output} over {across.name} and {up.name} runs from {before.min():.3g} to "
        f"{before.max():.3g} before training and from {after.min():.3g} to {after.max():.3g} after it; it changed by "
        f"at most {widest:.3g}."
    )


def _draw_curves(ax: Axes, flat: list[tuple[Row, HypernetSurface]], styles: RowStyles) -> list[str]:
    sentences = []
    before, after = (
        coinciding({row.label: np.column_stack([of.axes[0].values, getattr(of, side)[0]]) for row, of in flat})
        for side in ("before", "after")
    )
    for row, surface in flat:
        colour = styles[row.label].colour
        (axis,) = surface.axes
        thin, thick = (alternating(row.label, groups) for groups in (before, after))
        ax.plot(axis.values, surface.before[0], color=colour, **thin | {"linewidth": 0.9}, alpha=0.8)
        ax.plot(axis.values, surface.after[0], color=colour, **thick | {"linewidth": 2.0}, label=tag(row))
        sentences.append(
            f"{row.named}: {surface.output} over {axis.name} runs from {min(surface.before[0]):.3g} to "
            f"{max(surface.before[0]):.3g} before training and from {min(surface.after[0]):.3g} to "
            f"{max(surface.after[0]):.3g} after it."
        )
    ax.set_xlabel(", ".join(dict.fromkeys(surface.axes[0].name for _, surface in flat)))
    ax.set_ylabel(", ".join(dict.fromkeys(surface.output for _, surface in flat)))
    ax.legend(fontsize=7.5)
    return sentences


def _without_hidden(row: Row) -> str:
    def settings(cell: dict[str, Any]) -> dict[str, Any]:
        hypernet = cell.get("hypernet")
        rest = {name: v for name, v in hypernet.items() if name != "hidden"} if isinstance(hypernet, dict) else hypernet
        return cell | {"hypernet": rest}

    return same_but(row, method={"hidden": 0}, cell=settings)


def _sweep_name(row: Row) -> str:
    facts = row.method
    bits = f"W{facts.weight_bits} A{facts.activation_bits} ∇W{facts.grad_bits}"
    activation = "" if facts.hypernet_activation == "none" else f", {facts.hypernet_activation}"
    ran = f" · {row.ran_as}" if isinstance(row.ran_as, str) and row.is_low_bit else ""
    return shorten(clean_text(f"{facts.name} {bits}: {facts.hypernet}{activation}, {facts.strategy}"), 60) + ran
